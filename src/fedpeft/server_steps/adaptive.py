"""FedAdam, FedYogi and FedAdagrad: server optimizers whose step adapts to each coordinate (Reddi et
al., 2021, arXiv:2003.00295, Algorithm 2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.tensors import add_prefix, map_tensors, take_prefix, zeros_like
from fedpeft.core.types import Cohort, Tensors


@dataclass(frozen=True)
class Adam:
    """v ← β₂·v + (1 − β₂)·Δ²; see `adapt` for the step.

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
        second = lambda v, square: v.lerp(square, 1 - self.beta2)
        return adapt(params, memory, delta, second, lr=self.lr, beta1=self.beta1, tau=self.tau)


@dataclass(frozen=True)
class Yogi:
    """v ← v − (1 − β₂)·Δ²·sign(v − Δ²); see `adapt` for the step.

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


@dataclass(frozen=True)
class Adagrad:
    """v ← v + Δ²; see `adapt` for the step.

    Attributes:
      lr: η.
      beta1: β₁, how long the mean of the deltas lasts; the paper's experiments have 0.
      tau: τ, how far the step adapts to a coordinate; √v starts from it.

    Raises:
      ValueError: a value out of range.
    """

    lr: float = 0.01
    beta1: float = 0.0
    tau: float = 1e-3
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SCALES_STEP})

    def __post_init__(self) -> None:
        check(self.lr, self.tau, beta1=self.beta1)

    def init(self, params: Tensors) -> Tensors:
        return begin(params, self.tau)

    def step(
        self, params: Tensors, memory: Tensors, delta: Tensors, cohort: Cohort
    ) -> tuple[Tensors, Tensors]:
        second = lambda v, square: v + square
        return adapt(params, memory, delta, second, lr=self.lr, beta1=self.beta1, tau=self.tau)


def check(lr: float, tau: float, **betas: float) -> None:
    """Raises ValueError for a value out of range."""
    for name, value in (("lr", lr), ("tau", tau)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    for name, value in betas.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")


def begin(params: Tensors, tau: float) -> Tensors:
    """m = 0 as `m/<name>` and v = τ² as `v/<name>`."""
    zero = zeros_like(params)
    return {**add_prefix("m", zero), **add_prefix("v", map_tensors(lambda z: z + tau**2, zero))}


def adapt(
    params: Tensors,
    memory: Tensors,
    delta: Tensors,
    second: Callable[[Tensor, Tensor], Tensor],
    *,
    lr: float,
    beta1: float,
    tau: float,
) -> tuple[Tensors, Tensors]:
    """m ← β₁·m + (1 − β₁)·Δ; v ← second(v, Δ²); θ ← θ + η·m / (√v + τ). The bias of m is not
    corrected."""
    m = map_tensors(lambda m, d: m.lerp(d, 1 - beta1), take_prefix("m", memory), delta)
    v = map_tensors(lambda v, d: second(v, d.square()), take_prefix("v", memory), delta)
    params = map_tensors(lambda p, m, v: p.addcdiv(m, v.sqrt() + tau, value=lr), params, m, v)
    return params, {**add_prefix("m", m), **add_prefix("v", v)}
