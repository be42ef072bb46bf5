"""The step that FedAdagrad, FedYogi and FedAdam share (Reddi et al., 2021, arXiv:2003.00295,
Algorithm 2)."""

from collections.abc import Callable

from torch import Tensor

from fedpeft.core.tensors import add_prefix, map_tensors, take_prefix, zeros_like
from fedpeft.core.types import Tensors


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
