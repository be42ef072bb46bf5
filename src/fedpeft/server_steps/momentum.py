"""FedAvgM: averaging with momentum on the server (Hsu et al., 2019, arXiv:1909.06335)."""

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.core.facts import Fact
from fedpeft.core.tensors import add_prefix, map_tensors, take_prefix, zeros_like
from fedpeft.core.types import Cohort, Tensors


@dataclass(frozen=True)
class Momentum:
    """v ← β·v + Δ; θ ← θ + η·v. The memory holds v as `m/<name>`, zero at first.

    Attributes:
      lr: η. A delta moves the parameters by η / (1 − β) of itself in the end.
      momentum: β; at 0 this is plain averaging.

    Raises:
      ValueError: a value out of range.
    """

    lr: float = 1.0
    momentum: float = 0.9
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SCALES_STEP})

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")

    def init(self, params: Tensors) -> Tensors:
        return add_prefix("m", zeros_like(params))

    def step(
        self, params: Tensors, memory: Tensors, delta: Tensors, cohort: Cohort
    ) -> tuple[Tensors, Tensors]:
        velocity = map_tensors(
            lambda v, d: d.add(v, alpha=self.momentum), take_prefix("m", memory), delta
        )
        params = map_tensors(lambda p, v: p.add(v, alpha=self.lr), params, velocity)
        return params, add_prefix("m", velocity)
