"""FedYogi (Reddi et al., 2021, arXiv:2003.00295, Algorithm 2)."""

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.core.facts import Fact
from fedpeft.core.types import Cohort, Tensors
from fedpeft.server_steps.adaptive import adapt, begin, check


@dataclass(frozen=True)
class Yogi:
    """v ← v − (1 − β₂)·Δ²·sign(v − Δ²); see `adaptive.adapt` for the step.

    Attributes:
      lr: η.
      beta1, beta2: β₁ and β₂, how long the means of the deltas and of their squares last.
      tau: τ, how far the step adapts to a coordinate; √v starts from it.

    Raises:
      ValueError: a value out of range.
    """

    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SCALES_STEP})

    def __post_init__(self) -> None:
        check(self.lr, self.tau, beta1=self.beta1, beta2=self.beta2)

    def init(self, params: Tensors) -> Tensors:
        return begin(params, self.tau)

    def step(
        self, params: Tensors, memory: Tensors, delta: Tensors, cohort: Cohort
    ) -> tuple[Tensors, Tensors]:
        second = lambda v, square: v - (1 - self.beta2) * square * (v - square).sign()
        return adapt(params, memory, delta, second, lr=self.lr, beta1=self.beta1, tau=self.tau)
