"""What a task's forward pass gives, by name.

logits: of a classifier (batch, classes), of a language model (batch, tokens, words).
token_losses: of a language model, where nobody asks for its logits and they would be large, the
  loss of each token but the first, (batch, tokens - 1); 0 where a token does not count.
counted: of a language model (batch, tokens), true where a token's logits count in the loss.
features: what comes into the head, (batch, features), where it is asked for; of a language model
  (batch, tokens, features).
likelihoods: of a task that compares answers (batch, 2), the log-likelihoods of the better one and
  of the worse one.
prediction: of a task without classes, what the model tells, (batch, ...).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from torch import Tensor, nn

Outputs: TypeAlias = Mapping[str, Tensor]
LOGITS = "logits"
TOKEN_LOSSES = "token_losses"
COUNTED = "counted"
FEATURES = "features"
LIKELIHOODS = "likelihoods"
PREDICTION = "prediction"


@contextmanager
def head_input(model: nn.Module, head: str | None) -> Iterator[dict[str, Tensor]]:
    """Inside, each call of the module `head` puts its first argument into the dictionary that this
    gives, as `features`; with None nothing is recorded, and nothing is paid.

    The hook lives for one forward pass, inside of what `functional_call` and `vmap` see, so that
    what it records has the pass's gradients and belongs to the pass's clients.
    """
    found: dict[str, Tensor] = {}
    if head is None:
        yield found
        return

    def record(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found[FEATURES] = given[0]

    hook = model.get_submodule(head).register_forward_pre_hook(record)
    try:
        yield found
    finally:
        hook.remove()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode: it draws no dropout and counts no statistics."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
