"""Tuners of Hugging Face `peft`, put into a model in place; its class and its forward stay."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from warnings import catch_warnings, filterwarnings

from torch import nn

from fedpeft.compute.trainable import within
from fedpeft.errors import PlanError
from fedpeft.methods.pretrained_adapter import Start, start_from
from fedpeft.methods.targets import attention_projections, excluded, find_targets
from fedpeft.methods.transformer_layout import name_model, trained_head


def check_low_rank(rank: int, alpha: float, dropout: float) -> None:
    """The values that LoRA and its variants have in common.

    Raises:
      ValueError: one is out of range.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
    check_dropout(dropout)


def check_dropout(dropout: float) -> None:
    """Raises ValueError for a value that is no probability below 1."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")


def low_rank_config(model: nn.Module, method: Any, **variant: bool) -> Any:
    """The `peft` configuration of LoRA or a variant of it; an empty target means query and value.

    Args:
      method: has `rank`, `alpha`, `dropout`, `target` and `head`.
    """
    from peft import LoraConfig

    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=find_targets(model, method.target, method.head)
        or attention_projections(model, "qv"),
        **variant,
    )
    return without_whole(config, model, method.head)


def without_whole(config: Any, model: nn.Module, head: str) -> Any:
    """The configuration, which passes over layers that are trained whole: a tuner in them would be
    a second way to change the same weights."""
    if whole := excluded(model, list(config.target_modules), head):
        config.exclude_modules = whole
    return config


def inject_tuner(
    config: Any,
    model: nn.Module,
    head: str,
    start: Start | None = None,
    tuner: Callable[[nn.Module, Any], nn.Module] | None = None,
) -> nn.Module:
    """Put the tuner of `config` in, train it and the head, freeze the rest.

    Args:
      head: the head's name; "auto" and "" as `trained_head` understands them.
      start: a saved adapter whose values the tuner begins with.
      tuner: puts the tuner in, where `peft`'s function for that refuses to.

    Raises:
      PlanError: the tuner finds no layer to work on, or the saved adapter is another's.
    """
    from peft.functional import inject_adapter_in_model

    head = trained_head(model, head)
    what = name_model(model)
    try:
        with known_warnings_ignored():
            model = (tuner or (lambda m, c: inject_adapter_in_model(c, m)))(model, config)
    except (ValueError, TypeError) as error:
        raise PlanError(f"the method does not fit {what}: {error}") from None
    for name, parameter in model.named_parameters():
        if head and within(name, head):
            parameter.requires_grad_(True)
    if start is not None:
        start_from(start, config, model, head)
    return model


@contextmanager
def known_warnings_ignored() -> Iterator[None]:
    """Without four warnings that `peft` causes and a user can do nothing about."""
    with catch_warnings():
        # A LayerNorm has no in and out features.
        filterwarnings("ignore", "Unsupported layer type", UserWarning)
        # It finds out by itself that GPT-2's layers hold their weights transposed.
        filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        # Peft asks transformers for it.
        filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        # A merged export gives the tuned layer a weight of its own.
        filterwarnings("ignore", "Model has `tie_word_embeddings", UserWarning)
        yield
