"""Train and send everything: conventional federated learning (McMahan et al., 2017,
arXiv:1602.05629)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fedpeft.compute.trainable import persistent_buffers, trainable


@dataclass(frozen=True)
class Full:
    """All parameters, and the running statistics of BatchNorm, which are averaged like
    parameters.

    Attributes:
      head: the head's module, where something asks for it; left out: what the usual names tell. It
        changes nothing of what is trained.
    """

    head: str | None = None

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(True)

    def names(self, model: nn.Module) -> Sequence[str]:
        return [*trainable(model), *persistent_buffers(model)]
