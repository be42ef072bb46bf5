"""Adapters on keys and values that may stay with each client (FedPerfix: Sun et al., 2023,
arXiv:2308.09160), read in the authors' code."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedpeft.compute.trainable import trainable
from fedpeft.core.facts import Fact
from fedpeft.errors import PlanError, unknown
from fedpeft.methods.targets import PROJECTIONS
from fedpeft.methods.transformer_layout import name_model, train_parts, trained_head

BASES = ("frozen", "trained")


class Shift(nn.Module):
    """scale · up(tanh(down(x))) with down: d -> width and up: width -> out, both with bias."""

    def __init__(self, like: nn.Linear, width: int, scale: float, zero_up: bool) -> None:
        super().__init__()
        device = like.weight.device
        dtype = like.weight.dtype if like.weight.is_floating_point() else torch.float32
        self.down = nn.Linear(like.in_features, width, device=device, dtype=dtype)
        self.up = nn.Linear(width, like.out_features, device=device, dtype=dtype)
        self.scale = scale
        for parameter in self.up.parameters() if zero_up else ():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.scale * self.up(self.down(x).tanh())
        return added


class Shifted(nn.Module):
    """A projection, and what is added to it."""

    def __init__(self, base: nn.Module, perfix: Shift) -> None:
        super().__init__()
        self.base = base
        self.perfix = perfix

    def forward(self, x: Tensor) -> Tensor:
        shifted: Tensor = self.base(x) + self.perfix(x)
        return shifted


@dataclass(frozen=True)
class Perfix:
    """K(x) + s·up_K(tanh(down(x))) and V(x) + s·up_V(tanh(down(x))) in the attention of every
    block, with one `down` for both; plus the head.

    The adapters' names hold "perfix", so that routing = [{ name = "personal", patterns =
    ["*perfix*", "classifier.*"] }] keeps them and the head with each client. What travels then is
    the rest, which base = "trained" trains; with base = "frozen" nothing would be left to travel.
    The authors' code trains a ViT from nothing (pretrained = false, base = "trained") and begins
    with random `up` (zero_up = false), so that the model is not the base's at first.

    Attributes:
      width: of the bottleneck.
      scale: s.
      zero_up: whether `up` is zero at first.
      base: "frozen", or "trained" with all its weights.
      pretrained: whether the base starts from its pre-trained weights.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.

    Raises:
      ValueError: a value out of range.
    """

    width: int = 256
    scale: float = 1.5
    zero_up: bool = True
    base: str = "frozen"
    pretrained: bool = True
    head: str = "auto"
    not_exported: ClassVar[str] = "the adapters beside its keys and values"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")
        if not isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale}")
        if self.base not in BASES:
            raise ValueError(unknown("base", self.base, BASES))

    @property
    def offers(self) -> frozenset[Fact]:
        return frozenset() if self.zero_up and self.pretrained else frozenset({Fact.MOVES_START})

    def inject(self, model: nn.Module) -> nn.Module:
        head = trained_head(model, self.head)
        shifts: list[Shift] = []
        for around, key, value in _attentions(model):
            first, second = (self._shift(around, name) for name in (key, value))
            # parameters and not the module, which functional_call would not put back in two places
            second.down.weight, second.down.bias = first.down.weight, first.down.bias
            for name, shift in ((key, first), (value, second)):
                setattr(around, name, Shifted(getattr(around, name), shift))
                shifts.append(shift)
        trained: list[nn.Module] = [model] if self.base == "trained" else [*shifts]
        return train_parts(model, trained, head)

    def _shift(self, around: nn.Module, name: str) -> Shift:
        return Shift(getattr(around, name), self.width, self.scale, self.zero_up)

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)


def _attentions(model: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """Modules that hold both projections, with the names of these in them.

    Raises:
      PlanError: there are none.
    """
    found = []
    for module in model.modules():
        linear = {name for name, one in module.named_children() if isinstance(one, nn.Linear)}
        key, value = (
            next((name for name in PROJECTIONS[one] if name in linear), "") for one in "kv"
        )
        if key and value and key != value:
            found.append((module, key, value))
    if not found:
        raise PlanError(
            f"{name_model(model)} has no attention with linear layers of their own for keys and "
            "values, which perfix adds to (one layer for queries, keys and values together is "
            'none); use a ViT, BERT or Llama of transformers, or method = "adapter"'
        )
    return found
