"""Low-rank adaptation (Hu et al., 2022, arXiv:2106.09685), through Hugging Face `peft`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedpeft.core.trainable import head_of, trainable
from fedpeft.methods.injection import attention_projections, inject_tuner


@dataclass(frozen=True)
class LoRA:
    """y = W·x + (α/r)·B·A·x for A of shape (r, in) and B of shape (out, r); A random, B zero at first; plus the head.

    Attributes:
      alpha: α; the update's scale is alpha / rank (alpha / sqrt(rank) with `rslora`).
      target: which linear layers, by the last parts of their names; empty means query and value.
      rslora: rank-stabilised scale (Kalajdzievski, 2023, arXiv:2312.03732).
      dora: weight-decomposed (Liu et al., 2024, arXiv:2402.09353): magnitudes of shape (out,) are trained too.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target: tuple[str, ...] = ()
    rslora: bool = False
    dora: bool = False
    head: str = "auto"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def pretrained(self) -> bool:
        return True

    def config(self, model: nn.Module) -> Any:
        """The `peft` configuration, from which an export is written too."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a float is used as it is
            lora_dropout=self.dropout,
            target_modules=list(self.target) or attention_projections(model, "qv"),
            use_rslora=self.rslora,
            use_dora=self.dora,
        )

    def inject(self, model: nn.Module) -> nn.Module:
        return inject_tuner(self.config(model), model, head_of(model, self.head))

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)
