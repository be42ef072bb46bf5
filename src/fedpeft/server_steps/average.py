"""θ ← θ + η·Δ; at η = 1 this is federated averaging (McMahan et al., 2017, arXiv:1602.05629)."""

from dataclasses import dataclass

from fedpeft.core.facts import Fact
from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import Cohort, Tensors


@dataclass(frozen=True)
class Average:
    """One step along the mean delta.

    Attributes:
      lr: η, the server's learning rate.

    Raises:
      ValueError: `lr` is not positive and finite.
    """

    lr: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")

    @property
    def offers(self) -> frozenset[Fact]:
        return frozenset() if self.lr == 1 else frozenset({Fact.SCALES_STEP})

    def init(self, params: Tensors) -> Tensors:
        return {}

    def step(
        self, params: Tensors, memory: Tensors, delta: Tensors, cohort: Cohort
    ) -> tuple[Tensors, Tensors]:
        return map_tensors(lambda p, d: p.add(d, alpha=self.lr), params, delta), memory
