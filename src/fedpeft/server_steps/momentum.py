"""FedAvgM: averaging with momentum on the server (Hsu et al., 2019, arXiv:1909.06335).

With `nesterov` it is the outer optimizer of DiLoCo (Douillard et al., 2023, arXiv:2311.08105) and
of Photon (Sani et al., 2024, arXiv:2411.02908), read in Photon's code: with g = −Δ,
m ← β·m + g and θ ← θ − η·(g + β·m). Photon's FedMom, v⁺ = θ − η·g and θ ← (1 + β)·v⁺ − β·v, is the
same recursion, since v⁺ − v = −η·m (derived here).
"""

from dataclasses import dataclass
from typing import ClassVar

from fedpeft.core.facts import Fact
from fedpeft.core.tensors import add_prefix, map_tensors, take_prefix, zeros_like
from fedpeft.core.types import Cohort, Tensors
from fedpeft.registry import unwritten


@dataclass(frozen=True)
class Momentum:
    """v ← β·v + Δ; θ ← θ + η·v, or with `nesterov` θ ← θ + η·(Δ + β·v). The memory holds v as
    `m/<name>`, zero at first.

    Attributes:
      lr: η. A delta moves the parameters by η / (1 − β) of itself in the end.
      momentum: β; at 0 this is plain averaging.
      nesterov: whether a step looks ahead by one more β. DiLoCo has it with η = 0.7 and β = 0.9.

    Raises:
      ValueError: a value out of range.
    """

    lr: float = 1.0
    momentum: float = 0.9
    nesterov: bool = unwritten(False)
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
        ahead = velocity
        if self.nesterov:
            ahead = map_tensors(lambda d, v: d.add(v, alpha=self.momentum), delta, velocity)
        params = map_tensors(lambda p, v: p.add(v, alpha=self.lr), params, ahead)
        return params, add_prefix("m", velocity)
