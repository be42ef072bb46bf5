"""Two adapters side by side, of which one may stay with each client (FedDAT; Chen et al., 2023,
arXiv:2308.12305), read in the authors' code."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedpeft.compute.trainable import trainable
from fedpeft.methods.transformer_layout import (
    features_of,
    mlp_outputs,
    train_parts,
    trained_head,
)

STD = 0.02
"""Of the first weights."""


class Branch(nn.Module):
    """up(ReLU(down(x))) with down: d -> width and up: width -> d, both with bias, zero at first."""

    def __init__(self, like: nn.Module, width: int, zero_up: bool) -> None:
        super().__init__()
        weight = like.get_parameter("weight")
        size, device = features_of(like)[1], weight.device
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        self.down = nn.Linear(size, width, device=device, dtype=dtype)
        self.up = nn.Linear(width, size, device=device, dtype=dtype)
        nn.init.normal_(self.down.weight, std=STD)
        nn.init.normal_(self.up.weight, std=STD)
        for parameter in (self.down.bias, self.up.bias, *((self.up.weight,) if zero_up else ())):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.up(self.down(x).relu())
        return added


class DualAdapted(nn.Module):
    """A layer's output h, and h + g₀·own(h) + g₁·shared(h) for a gate g, (½, ½) at first.

    The gate is a buffer, so that a local training may call the model with another one.
    """

    def __init__(self, base: nn.Module, width: int, zero_up: bool) -> None:
        super().__init__()
        self.base = base
        self.own_adapter = Branch(base, width, zero_up)
        self.shared_adapter = Branch(base, width, zero_up)
        like = self.own_adapter.up.weight
        self.gate: Tensor
        self.register_buffer("gate", torch.full((2,), 0.5).to(like), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The layer's, of which T5 asks the type before it calls the layer."""
        return self.base.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.base(x)
        own, shared = self.gate[0] * self.own_adapter(h), self.gate[1] * self.shared_adapter(h)
        mixed: Tensor = h + own + shared
        return mixed


@dataclass(frozen=True)
class DualAdapter:
    """x <- x + ½·own(x) + ½·shared(x) after the MLP of every block, for two adapters
    up(ReLU(down(x))); plus the head.

    For FedDAT the own adapter and the head stay with each client, by routing = [{ name =
    "personal", patterns = ["*.own_adapter.*", "classifier.*"] }], and local = "mutual" lets the two
    adapters teach each other. Each client's model is the mean of both. The authors begin with
    random `up` (zero_up = false), so that the model is not the base's at first.

    Attributes:
      reduction: d / width, rounded down.
      zero_up: whether the weights of `up` are zero at first.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.

    Raises:
      ValueError: a value out of range.
    """

    reduction: int = 16
    zero_up: bool = True
    head: str = "auto"
    not_exported: ClassVar[str] = "its two adapters side by side"

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {self.reduction}")

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        head = trained_head(model, self.head)
        parts: list[nn.Module] = []
        for name in mlp_outputs(model):
            layer = model.get_submodule(name)
            width = max(1, features_of(layer)[1] // self.reduction)
            made = DualAdapted(layer, width, self.zero_up)
            model.set_submodule(name, made)
            parts += [made.own_adapter, made.shared_adapter]
        return train_parts(model, parts, head)

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)
