"""Parallel one-rank adaptation (PLoRA of Fed-PLoRA; Zhang et al., 2026, arXiv:2602.16936,
section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from fedpeft.compute.trainable import trainable
from fedpeft.core.facts import Fact
from fedpeft.core.low_rank import A, B
from fedpeft.core.types import Tensors
from fedpeft.methods.lora import LoRA
from fedpeft.methods.peft_tuners import check_low_rank
from fedpeft.methods.targets import target_layers
from fedpeft.methods.transformer_layout import features_of, train_parts, trained_head

FIRST, SECOND = "plora_A", "plora_B"
"""How the lists of a layer's one-rank factors are called."""


class Parallel(nn.Module):
    """A layer, and what one-rank modules add to it: s·Σ_j B_j·A_j·x for A_j (1, in), B_j (out, 1).

    A begins with the distribution that LoRA's has in `peft`, and B at zero.
    """

    def __init__(self, base: nn.Module, modules: int, scale: float, drop: float) -> None:
        super().__init__()
        weight = base.get_parameter("weight")
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        into, out = features_of(base)
        whole = nn.init.kaiming_uniform_(torch.empty(modules, into), a=5**0.5)
        firsts = torch.split(whole.to(weight.device, dtype), 1)
        seconds = [torch.zeros(out, 1, device=weight.device, dtype=dtype) for _ in firsts]
        self.base, self.scale, self.drop = base, scale, drop
        self.plora_A = nn.ParameterList(x.clone() for x in firsts)
        self.plora_B = nn.ParameterList(seconds)

    @property
    def weight(self) -> Tensor:
        """The layer's, of which T5 asks the type before it calls the layer."""
        return self.base.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        within = linear(dropout(x, self.drop, self.training), torch.cat(list(self.plora_A)))
        added = linear(within, torch.cat(list(self.plora_B), 1))
        whole: Tensor = self.base(x) + self.scale * added
        return whole


@dataclass(frozen=True)
class PLoRA:
    """y = W·x + (α/R)·Σ_j B_j·A_j·x for R modules of rank one; plus the head. It is LoRA of rank R
    whose rows of A and columns of B are tensors of their own, so that a client may train some of
    them and freeze the others.

    With routing = [{ name = "drawn", pattern = "*.plora_?.{}", groups = 8, counts = [1, 2, 4], by =
    "client" }] it is Fed-PLoRA. A client receives all modules. It trains as many as it can, of a
    new draw in each round, and the others stay in its model as they came (Select-N-Fold). So
    nothing of the common model is lost where a client begins. A module's mean is over those who
    trained it. The authors add the frozen modules to the frozen weights, which comes to the same.

    Attributes:
      modules: R.
      alpha: α.
      dropout: the share of a layer's inputs to the modules that are left out in training.
      target: which linear layers, by the last parts of their names, or "all-linear" for every one
        outside the head; empty means query and value.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.

    Raises:
      ValueError: a value out of range.
    """

    modules: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target: tuple[str, ...] = ()
    head: str = "auto"
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.LOW_RANK})

    def __post_init__(self) -> None:
        if self.modules < 1:
            raise ValueError(f"modules must be at least 1, got {self.modules}")
        check_low_rank(self.modules, self.alpha, self.dropout)

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        head = trained_head(model, self.head)
        parts: list[nn.Module] = []
        for name in target_layers(model, self.target, self.head):
            base, scale = model.get_submodule(name), self.alpha / self.modules
            made = Parallel(base, self.modules, scale, self.dropout)
            model.set_submodule(name, made)
            parts += [made.plora_A, made.plora_B]
        return train_parts(model, parts, head)

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)

    def as_exported(self, model: nn.Module, tensors: Tensors) -> tuple[LoRA, dict[str, Tensor]]:
        """The same as plain LoRA of rank R."""
        plain = dict(tensors)
        found = [name.removesuffix(f".{FIRST}.0") for name in tensors if f".{FIRST}.0" in name]
        for layer in found:
            ranks = range(self.modules)
            firsts = [plain.pop(f"{layer}.{FIRST}.{j}") for j in ranks]
            seconds = [plain.pop(f"{layer}.{SECOND}.{j}") for j in ranks]
            plain[f"{layer}{A}default.weight"] = torch.cat(firsts)
            plain[f"{layer}{B}default.weight"] = torch.cat(seconds, 1)
        return LoRA(self.modules, self.alpha, self.dropout, self.target, self.head), plain
