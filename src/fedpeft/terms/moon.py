"""MOON: features like the received model's, unlike the client's last one's (Li et al., 2021,
arXiv:2103.16257)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import FEATURES, Outputs
from fedpeft.core.types import Batch, Tensors
from fedpeft.errors import PlanError


@dataclass(frozen=True)
class Moon:
    """weight · −log(exp(a / τ) / (exp(a / τ) + exp(b / τ))), with a = cos(z, z_received) and
    b = cos(z, z_previous) of the features z that come into the head.

    The weight is μ of the paper, whose authors tune it among 0.1, 1, 5 and 10. The contrast is
    between three models on one example, so that examples are not coupled. A client's previous model
    is the one that it ended its last round with, and stays with it; the first time it is the
    received one, and the gradient is 0. The paper puts a projection head of two layers before the
    features; here they are the base's own.

    Where nothing before the head is trained, features cannot move, and nor does anything else.

    Attributes:
      weight: μ; at 0 nothing is added.
      temperature: τ.
      head: the name of the head's module; "auto" finds the usual ones.

    Raises:
      ValueError: a value out of range.
    """

    weight: float = 1.0
    temperature: float = 0.5
    head: str | None = "auto"
    compares: ClassVar[tuple[str, ...]] = ("received", "previous")
    couples_examples: ClassVar[bool] = False
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.MERGES_BASE: "MOON compares with what a client trained in an earlier round, and "
        "{other} {what}, which that was not trained for: leave one of them out",
        Fact.ROWS_OF_EXITS: "MOON compares one row of features an example, and {other} {what}: set "
        'method.heads = "recurrent", or leave one of them out',
    }

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and isfinite(self.weight)):
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}")
        if not (self.temperature > 0 and isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if not self.head:
            raise ValueError('head is the name of a module, or "auto"; MOON needs its input')

    def loss(self, outputs: Outputs, batch: Batch, held: Tensors) -> Tensor:
        """Raises PlanError where an example has not one row of features."""
        mine = outputs[FEATURES].float()
        if mine.ndim != 2:
            raise PlanError(
                f"MOON needs one row of features an example, got {mine.ndim - 1} dimensions: it is "
                "for classification"
            )
        near, far = (
            cosine_similarity(mine, held[f"{model}/{FEATURES}"].float(), dim=-1)
            for model in self.compares
        )
        return softplus((far - near) / self.temperature)
