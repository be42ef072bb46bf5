"""θ ← θ + η·Δ; at η = 1 this is federated averaging (McMahan et al., 2017, arXiv:1602.05629)."""

from dataclasses import dataclass

from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import Cohort, Tensors


@dataclass(frozen=True)
class Average:
    lr: float = 1.0

    @property
    def keeps(self) -> tuple[str, ...]:
        return ()

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        return params, {}

    def step(self, params: Tensors, memory: Tensors, delta: Tensors, cohort: Cohort) -> tuple[Tensors, Tensors]:
        return map_tensors(lambda p, d: p.add(d, alpha=self.lr), params, delta), memory
