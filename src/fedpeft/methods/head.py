"""Train a new last layer on the frozen features: the linear baseline of FedPEFT
(arXiv:2210.01708)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fedpeft.compute.trainable import trainable
from fedpeft.errors import PlanError
from fedpeft.methods.transformer_layout import name_model, train_parts, trained_head


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
        head = trained_head(model, self.head)
        if not head:
            raise PlanError(
                f"{name_model(model)} has no new head to train; name the output layer, e.g. "
                'head = "lm_head", or use another method'
            )
        return train_parts(model, (), head)

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)
