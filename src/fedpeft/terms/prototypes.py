"""Features near the prototypes of their class, of all clients and of single ones (FedPCL: Tan et
al., 2022, arXiv:2209.10083)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import FEATURES, Outputs
from fedpeft.core.types import Batch, Tensors
from fedpeft.errors import PlanError

OUT = -1e4
"""The logit of a class without a prototype, of which a softmax in float32 leaves 0. It is finite:
with −∞ the gradient would be NaN where no class has a prototype."""


@dataclass(frozen=True)
class PrototypeContrast:
    """weight · (ℓ(z, y; P̄) + (1 / S)·Σ_j ℓ(z, y; P_j)), with
    ℓ(z, y; P) = −log softmax_c(z·P_c / τ)[y] for z = features / ‖features‖.

    P̄ has the mean of each class over all clients, and P_j those of client j; the algorithm
    "prototypes" shares both. The anchor is one example and the contrast is with prototypes, so that
    examples are not coupled. The authors' code turns it round, with the examples of a batch as
    contrast. A class of which nobody told anything is in no softmax, and its examples add nothing.

    Attributes:
      weight: at 0 nothing is added.
      temperature: τ; the authors take 0.07.
      head: the name of the head's module, whose input is the features; "auto" finds the usual ones.

    Raises:
      ValueError: a value out of range.
    """

    weight: float = 1.0
    temperature: float = 0.07
    head: str | None = "auto"
    compares: ClassVar[tuple[str, ...]] = ()
    given_by: ClassVar[str] = "prototypes"
    couples_examples: ClassVar[bool] = False
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.SHARES_PROTOTYPES: 'the term "prototypes" compares features with what clients tell of '
        'theirs: set algorithms = ["prototypes"], or leave the term out'
    }
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.NO_LOGITS: "prototypes are means by class, and {other} {what}: leave it out"
    }

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and isfinite(self.weight)):
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}")
        if not (self.temperature > 0 and isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if not self.head:
            raise ValueError(
                'head is the name of a module, or "auto"; prototypes are means of its input'
            )

    def loss(self, outputs: Outputs, batch: Batch, held: Tensors) -> Tensor:
        """One value an example. `held` has `prototypes/mean` (classes, features),
        `prototypes/known` (classes,) and `prototypes/peers` (sets, classes, features).

        Raises:
          PlanError: an example has not one row of features and one class.
        """
        features = outputs[FEATURES].float()
        if features.ndim != 2 or "label" not in batch:
            raise PlanError(
                'the term "prototypes" is for examples with one class and one row of features '
                "each: leave it out"
            )
        mean, known, peers = (held[f"{self.given_by}/{n}"] for n in ("mean", "known", "peers"))
        sets = torch.cat([mean[None], peers])
        near = torch.einsum("bd,scd->bsc", normalize(features), sets) / self.temperature
        classes = torch.arange(len(known), device=known.device)
        true = (batch["label"][:, None] == classes).to(near.dtype)
        logs = near.masked_fill(known == 0, OUT).log_softmax(-1)
        # a sum with zeros and not an index, which a stack of clients would have to gather
        each = -(logs * true[:, None, :]).sum(-1) * (true * known).sum(-1, keepdim=True)
        return each[:, 0] + each[:, 1:].mean(1) if len(peers) else each[:, 0]
