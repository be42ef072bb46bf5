"""Prefix tuning (Li and Liang, 2021, arXiv:2101.00190) for decoder language models, through Hugging
Face `peft`."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

from torch import nn

from fedpeft.compute.trainable import head_of, train_only, trainable, within
from fedpeft.core.facts import Fact
from fedpeft.errors import PlanError
from fedpeft.methods.peft_tuners import known_warnings_ignored
from fedpeft.methods.transformer_layout import is_vocabulary, name_model, trained_head


@dataclass(frozen=True)
class Prefix:
    """Keys and values of `tokens` virtual tokens before the text, in every layer, trained directly;
    plus the head.

    One tensor of shape (tokens, 2 · layers · key-value heads · head size). The paper's
    reparametrisation by an MLP is
    for training only and is left out: it would multiply what travels. The model is `peft`'s
    wrapper, as a prefix enters beside the input; a classifier's trained head is then the copy that
    the wrapper makes of it.

    Attributes:
      tokens: how many.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.

    Raises:
      ValueError: a value out of range.
    """

    tokens: int = 20
    head: str = "auto"
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.MOVES_START})

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")

    @property
    def pretrained(self) -> bool:
        return True

    def config(self, model: nn.Module) -> Any:
        """The `peft` configuration for a base model (nothing injected yet); an export is written
        from it too."""
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(num_virtual_tokens=self.tokens, task_type=_task_of(model))

    def inject(self, model: nn.Module) -> nn.Module:
        from peft import get_peft_model

        taken = signature(model.forward).parameters
        if "past_key_values" in taken and "input_ids" not in taken:
            raise PlanError(
                f"{name_model(model)} reads no tokens, and a prefix stands before a text's: use "
                'method = "lora", "bias" or "adapter"'
            )
        if "past_key_values" not in taken:
            raise PlanError(
                f"{name_model(model)} takes no `past_key_values`, and so no prefix: it needs a "
                "decoder language model, "
                'e.g. a Llama; for a vision transformer there is method = "prompt"'
            )
        head = trained_head(model, self.head)
        with known_warnings_ignored():
            wrapped: nn.Module = get_peft_model(model, self.config(model))
        return train_only(
            wrapped, (n for n, _ in wrapped.named_parameters() if _is_trained(n, head))
        )

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)


def _is_trained(name: str, head: str) -> bool:
    if name.startswith("prompt_encoder."):
        return True
    return bool(head) and within(name, f"base_model.{head}") and ".original_module." not in name


def _task_of(model: Any) -> str:
    """What `peft` calls the task of a model, by which it chooses its wrapper."""
    head = head_of(model)
    if getattr(model.config, "is_encoder_decoder", False):
        return "SEQ_2_SEQ_LM"
    if not head:
        return "FEATURE_EXTRACTION"
    if is_vocabulary(model, head):
        return "CAUSAL_LM"
    return "TOKEN_CLS" if "TokenClassification" in type(model).__name__ else "SEQ_CLS"
