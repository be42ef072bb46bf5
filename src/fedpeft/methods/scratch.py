"""Train everything from random weights: what the pre-training is worth (FedPEFT's baseline,
arXiv:2210.01708)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fedpeft.compute.trainable import persistent_buffers, trainable
from fedpeft.core.facts import Fact


@dataclass(frozen=True)
class Scratch:
    """All parameters, and the running statistics of BatchNorm; the base's pre-trained weights are
    not loaded.

    Attributes:
      head: see `Full`.
    """

    head: str | None = None
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.MOVES_START})

    @property
    def pretrained(self) -> bool:
        return False

    def inject(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(True)

    def names(self, model: nn.Module) -> Sequence[str]:
        return [*trainable(model), *persistent_buffers(model)]
