"""Train a new last layer on the frozen features: the linear baseline of FedPEFT (arXiv:2210.01708)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fedpeft.core.trainable import head_of, train_only, trainable, within


@dataclass(frozen=True)
class Head:
    """Weight and bias of the head.

    Attributes:
      head: the module's name; "auto" finds the usual ones.
    """

    head: str = "auto"

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        head = head_of(model, self.head)
        return train_only(model, (n for n, _ in model.named_parameters() if within(n, head)))

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)
