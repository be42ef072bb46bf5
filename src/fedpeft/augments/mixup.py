"""Mixup: each example is mixed with another one of its batch (Zhang et al., 2018, arXiv:1710.09412,
equation 1)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedpeft.core.interfaces import OTHER, SHARE
from fedpeft.core.types import Batch
from fedpeft.errors import PlanError
from fedpeft.registry import unwritten


@dataclass(frozen=True)
class Mixup:
    """x ← a·x + (1 − a)·x' and the loss a·ℓ(y) + (1 − a)·ℓ(y'), with (x', y') a random example of
    the same batch and one a ~ Beta(α, α) for each batch, as in the authors' code.

    All columns of floats are mixed, and labels are not: a loss is taken of each. What fills up a
    batch, with a mask of 0, is mixed into nothing.

    Attributes:
      alpha: α; the smaller it is, the nearer is a to 0 or 1. At 0 nothing is mixed.
      fold: whether a is the larger one of a and 1 − a, so that an example stays most of itself, as
        in MixFM (arXiv:2206.08661) with α = ½.

    Raises:
      ValueError: α is negative or not finite.
    """

    alpha: float = 0.2
    fold: bool = unwritten(False)
    couples_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha must be at least 0 and finite, got {self.alpha}")

    def change(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Raises PlanError where examples have no label, or nothing that can be mixed."""
        if not self.alpha:
            return batch
        names = [name for name, x in batch.items() if name != "mask" and x.is_floating_point()]
        if "label" not in batch or not names:
            raise PlanError(
                "mixup is for examples with labels and with inputs of floats, such as pictures; "
                f"these have {', '.join(sorted(batch))}: leave it out of local.augments"
            )
        seed = int(torch.randint(2**62, (), generator=generator))
        share = float(np.random.default_rng(seed).beta(self.alpha, self.alpha))
        share = max(share, 1 - share) if self.fold else share
        order = partners(batch["mask"], generator)
        mixed = {name: torch.lerp(batch[name][order], batch[name], share) for name in names}
        other = {OTHER: batch["label"][order], SHARE: torch.full_like(batch["mask"], share)}
        return {**batch, **mixed, **other}


def partners(mask: Tensor, generator: torch.Generator) -> Tensor:
    """For each row of a batch the one that it is mixed with: those that count in a random order,
    the others themselves."""
    order = torch.arange(len(mask))
    counted = mask.cpu().nonzero()[:, 0]
    order[counted] = counted[torch.randperm(len(counted), generator=generator)]
    return order
