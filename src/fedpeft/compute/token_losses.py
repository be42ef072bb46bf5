"""A language model's loss of each token without the logits of all tokens at once.

Logits are as large as the vocabulary for each token: those of 16 texts of 2,048 tokens over 152,000
words take 20 GB in float32, and their softmax and its derivative as much again. Here the decoder
runs as ever, and its output layer some tokens at a time. What it computes for them is let go, and
computed again on the backward pass (Chen et al., 2016, arXiv:1604.06174).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

LARGE = 2**25
"""Logits of a batch up to which they are made at once, as the model makes them: 128 MiB."""
CHUNK = 9 * 2**20
"""Logits that are made at a time: 36 MiB, as glibc may keep what is below 32 for other sizes."""
MOST_WORDS = 2**18
"""The largest vocabulary of the field, Gemma's. Few tokens are few logits of any model, so that its
modules need not be looked through."""
HIDDEN = "last_hidden_state"
"""How `transformers` calls what comes out of a decoder."""


def is_large(model: nn.Module, ids: Tensor) -> bool:
    """Whether the logits of a batch of tokens would be made in parts."""
    if ids.numel() * MOST_WORDS <= LARGE:
        return False
    found = _language_model(model)
    return found is not None and ids.numel() * _words(found) > LARGE


def token_losses(
    model: nn.Module, inputs: Mapping[str, Tensor], wanted: Tensor, uncounted: int
) -> Tensor | None:
    """The cross entropy of each token given those before it, (batch, tokens - 1).

    A gradient of it must be taken where the model has the tensors that it has here: the output
    layer is called again on the backward pass.

    Args:
      inputs: what the model is called with; `input_ids` of shape (batch, tokens).
      wanted: the tokens to tell, (batch, tokens - 1); `uncounted` where none is, and the loss 0.

    Returns:
      None where the logits are few, or the model is none whose output layer can be called apart.
    """
    if not is_large(model, inputs["input_ids"]):
        return None
    size = max(1, CHUNK // _words(_language_model(model)))
    return chunked_losses(model, inputs, wanted, uncounted, size)


def chunked_losses(
    model: nn.Module, inputs: Mapping[str, Tensor], wanted: Tensor, uncounted: int, size: int
) -> Tensor | None:
    """The same, whatever the size of the batch, `size` tokens at a time."""
    found = _language_model(model)
    if found is None:
        return None
    decoder = found.get_decoder()
    with _recorded(decoder) as seen:
        model(**inputs, **_uncached(found))
    output = seen[0] if len(seen) == 1 else None
    hidden: Tensor | None = getattr(output, HIDDEN, None)
    if hidden is None or hidden.shape[:2] != inputs["input_ids"].shape:
        return None
    counted = wanted != uncounted
    each = _losses(found, output, hidden[:, :-1][counted], wanted[counted], size)
    return each.new_zeros(wanted.shape).masked_scatter(counted, each)


def _losses(found: Any, output: Any, hidden: Tensor, wanted: Tensor, size: int) -> Tensor:
    """The losses of tokens, from what comes out of the decoder for each: (tokens, features)."""
    decoder = found.get_decoder()

    def losses(hidden: Tensor, wanted: Tensor) -> Tensor:
        # what the model does behind its output layer, e.g. Gemma's capping, is its own to do
        with _replaced(decoder, lambda *_, **__: _with_hidden(output, hidden[None])):
            logits = found(input_ids=wanted[None], **_uncached(found)).logits[0]
        return cross_entropy(logits.float(), wanted, reduction="none")

    parts = [
        checkpoint(losses, some, theirs, use_reentrant=False)
        if torch.is_grad_enabled()
        else losses(some, theirs)
        for some, theirs in zip(torch.split(hidden, size), torch.split(wanted, size), strict=True)
    ]
    return torch.cat(parts)


def _language_model(model: nn.Module) -> Any:
    """The innermost module whose decoder and output layer can be called apart; None where there is
    none."""
    innermost = None
    for module in model.modules():
        layer: Any = getattr(module, "get_output_embeddings", lambda: None)()
        decoder: Any = getattr(module, "get_decoder", lambda: None)()
        if layer is not None and isinstance(decoder, nn.Module) and decoder is not module:
            innermost = module
    return innermost


def _uncached(found: Any) -> dict[str, bool]:
    """What tells a model that nothing is to follow these tokens, if it can be told."""
    return {"use_cache": False} if "use_cache" in signature(found.forward).parameters else {}


def _words(found: Any) -> int:
    """The size of the vocabulary: what the output layer gives for each token."""
    layer = found.get_output_embeddings()
    return int(getattr(layer, "out_features", 0) or len(layer.weight))


@contextmanager
def _recorded(decoder: nn.Module) -> Iterator[list[Any]]:
    """Inside, each output of the decoder is kept in the list that this gives, and one token of it
    goes on."""
    seen: list[Any] = []

    def record(_: nn.Module, given: Any, output: Any) -> Any:
        hidden = getattr(output, HIDDEN, None)
        if not isinstance(hidden, Tensor):
            return None
        seen.append(output)
        return _with_hidden(output, hidden[:, :1])

    hook = decoder.register_forward_hook(record)
    try:
        yield seen
    finally:
        hook.remove()


def _with_hidden(output: Any, hidden: Tensor) -> Any:
    other = copy(output)
    other[HIDDEN] = hidden
    return other


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, calling the module calls `forward`."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
