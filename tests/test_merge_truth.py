"""Why an exact merge may end further from the truth than averaged factors, where the truth is
known.

One weight w = b·a, trained from a = 1 and b = 0 on the loss h/2·(w − t)²: descent in small steps
keeps a² − b² = 1, so that it ends at w = t with b·√(1 + b²) = t. The least of the clients' mean
loss is Σ h·t / Σ h. All clients train to the end, and are merged once.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fedpeft.core.types import State, Update
from fedpeft.registry import build

A, B = "w.lora_A.default.weight", "w.lora_B.default.weight"


def train(target: float, curvature: float) -> tuple[float, float]:
    """b and a after descent from (0, 1), by steps that are small for these curvatures."""
    b, a = 0.0, 1.0
    for _ in range(20_000):
        slope = curvature * (b * a - target)
        b, a = b - 1e-3 / curvature * slope * a, a - 1e-3 / curvature * slope * b
    return b, a


def factors(target: float) -> tuple[float, float]:
    """Where descent ends, in closed form."""
    square = ((1 + 4 * target**2) ** 0.5 - 1) / 2
    return (square**0.5 if target > 0 else -(square**0.5)), (1 + square) ** 0.5


def merge(name: str, targets: Sequence[float]) -> float:
    """w after one round of clients that end at these targets, each counting once."""
    state = State(0, {A: torch.tensor([[1.0]]), B: torch.tensor([[0.0]])})
    updates = [
        Update(f"c{k}", {A: torch.tensor([[a - 1]]), B: torch.tensor([[b]])})
        for k, (b, a) in enumerate(map(factors, targets))
    ]
    aggregator: Any = build("aggregator", name)
    merged = aggregator(iter(updates), state, lambda client: state.params)
    a, b = (float(state.params[n] + merged.delta[n]) for n in (A, B))
    exact = merged.exact
    return b * a + (float(exact["w.left"] @ exact["w.right"]) if exact else 0.0)


def optimum(targets: Sequence[float], curvatures: Sequence[float]) -> float:
    pulls = zip(targets, curvatures, strict=True)
    return sum(t * h for t, h in pulls) / sum(curvatures)


@pytest.mark.parametrize(("target", "curvature"), [(1.0, 1.0), (4.0, 0.01), (-2.0, 3.0)])
def test_descent_ends_where_the_closed_form_says(target: float, curvature: float) -> None:
    assert train(target, curvature) == pytest.approx(factors(target), rel=0.02)


@pytest.mark.parametrize("name", ["fedex", "flora", "flexlora"])
def test_of_equal_curvatures_the_exact_merge_is_the_truth(name: str) -> None:
    targets = [3.0, 1.0, -1.0]
    truth = optimum(targets, [1.0] * 3)
    assert merge(name, targets) == pytest.approx(truth, abs=1e-5)
    assert abs(merge("fedit", targets) - truth) > 0.1


@pytest.mark.parametrize("far", [16.0, -16.0])
@pytest.mark.parametrize("name", ["fedex", "flora", "flexlora"])
def test_who_goes_far_where_the_loss_is_flat_weighs_fully_in_an_exact_merge(
    name: str, far: float
) -> None:
    """Fifteen clients at 1 of curvature 1, and one at ±16 of curvature 1/100, as a client is that
    has no example against which to weigh: the truth is near 1. Factors are about roots of the
    products, so that their means damp the one who went far."""
    targets, curvatures = [1.0] * 15 + [far], [1.0] * 15 + [0.01]
    truth = optimum(targets, curvatures)
    exact, averaged = merge(name, targets), merge("fedit", targets)
    assert exact == pytest.approx((15 + far) / 16, abs=1e-4)
    assert abs(averaged - truth) < 0.75 * abs(exact - truth)


def test_the_numbers_of_that_quadratic() -> None:
    assert optimum([1.0] * 15 + [16.0], [1.0] * 15 + [0.01]) == pytest.approx(1.0100, abs=1e-4)
    assert merge("fedex", [1.0] * 15 + [16.0]) == pytest.approx(1.9375, abs=1e-4)
    assert merge("fedit", [1.0] * 15 + [16.0]) == pytest.approx(1.4220, abs=1e-3)
