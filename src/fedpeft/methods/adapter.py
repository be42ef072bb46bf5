"""Bottleneck adapters (Houlsby et al., 2019, arXiv:1902.00751), FedPEFT-Adapter in
arXiv:2210.01708."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from fedpeft.compute.trainable import trainable
from fedpeft.errors import PlanError
from fedpeft.methods.transformer_layout import (
    features_of,
    mlp_outputs,
    name_model,
    train_parts,
    trained_head,
)


class Bottleneck(nn.Module):
    """x + up(GELU(down(x))) with down: d -> width and up: width -> d, both with bias; d is the last
    axis."""

    def __init__(self, like: nn.Module, width: int, zero_down: bool) -> None:
        super().__init__()
        weight = like.get_parameter("weight")
        size, device = features_of(like)[1], weight.device
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        self.down = nn.Linear(size, width, device=device, dtype=dtype)
        self.up = nn.Linear(width, size, device=device, dtype=dtype)
        for parameter in (*self.up.parameters(), *(self.down.parameters() if zero_down else ())):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.up(gelu(self.down(x)))
        return x + added


class Adapted(nn.Module):
    """A layer, and an adapter on its output."""

    def __init__(self, base: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter

    @property
    def weight(self) -> Tensor:
        """The layer's, of which T5 asks the type before it calls the layer."""
        return self.base.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.adapter(self.base(x))
        return adapted


@dataclass(frozen=True)
class Adapter:
    """x <- MLP(LN(x)); x <- x + up(GELU(down(x))); x <- x + h, where h entered LN, in every block;
    plus the head.

    The adapter is on the MLP's last layer, before dropout and the block's skip. `down` is random
    and `up` zero at first, so that the model computes what the base does and both learn.

    Attributes:
      reduction: d / width, rounded down.
      width: of the bottleneck; 0 for d / reduction.
      shared: one adapter for all blocks, as in FedPEFT; its tensors travel once.
      as_published: shared, and all four tensors zero at first, as in the authors' code. Then only
        the bias of `up` can learn: the gradients of the three others stay zero for ever, but they
        travel.
      head: the module trained beside it; "auto" finds a classifier's, "" means none.

    Raises:
      ValueError: a value out of range.
    """

    reduction: int = 8
    width: int = 0
    shared: bool = False
    as_published: bool = False
    head: str = "auto"

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {self.reduction}")
        if self.width < 0:
            raise ValueError(f"width must be at least 1, or 0 for d / reduction, got {self.width}")

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        head = trained_head(model, self.head)
        layers = {name: model.get_submodule(name) for name in mlp_outputs(model)}
        adapters = self._adapters(model, list(layers.values()))
        for (name, layer), adapter in zip(layers.items(), adapters, strict=True):
            model.set_submodule(name, Adapted(layer, adapter))
        return train_parts(model, adapters, head)

    def _adapters(self, model: nn.Module, layers: Sequence[nn.Module]) -> list[Bottleneck]:
        sizes = sorted({features_of(layer)[1] for layer in layers})
        if not (self.shared or self.as_published):
            return [self._adapter(layer) for layer in layers]
        if len(sizes) > 1:
            raise PlanError(
                f"{name_model(model)} has blocks of widths {sizes}: they cannot share one adapter"
            )
        first = self._adapter(layers[0])
        return [first, *(_twin(self._adapter(layer), first) for layer in layers[1:])]

    def _adapter(self, layer: nn.Module) -> Bottleneck:
        width = self.width or max(1, features_of(layer)[1] // self.reduction)
        return Bottleneck(layer, width, zero_down=self.as_published)

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)


def _twin(adapter: Bottleneck, other: Bottleneck) -> Bottleneck:
    """The adapter with the other's parameters for its own.

    Blocks share parameters and not the module, because `torch.func.functional_call` does not put
    the old tensors back into a module that is in two places.
    """
    for mine, theirs in ((adapter.down, other.down), (adapter.up, other.up)):
        mine.weight, mine.bias = theirs.weight, theirs.bias
    return adapter
