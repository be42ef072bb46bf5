"""Laws of every registered server optimizer. A new one is tested by being registered."""

from math import copysign, sqrt

import pytest
import torch

from fedpeft.core.interfaces import ServerOptimizer
from fedpeft.core.tensors import equal, finite, layout
from fedpeft.core.types import Cohort, Tensors
from fedpeft.registry import build, names

every = pytest.mark.parametrize("name", sorted(names("server")))

PARAMS: Tensors = {"a": torch.tensor([0.5, -1.0, 2.0, 0.0]), "b.weight": torch.ones(2, 3)}
COHORT = Cohort(0, 10, 5, {f"c{k}": 1.0 for k in range(4)}, 1)


def towards(params: Tensors, seed: int) -> Tensors:
    draws = torch.Generator().manual_seed(seed)
    return {n: torch.randn(x.shape, generator=draws) for n, x in params.items()}


def clones(x: Tensors) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in x.items()}


@every
def test_the_first_step_goes_along_the_delta(name: str) -> None:
    server: ServerOptimizer = build("server", name)
    params, memory = PARAMS, server.init(PARAMS)
    delta = towards(params, 1)
    moved, _ = server.step(params, memory, delta, COHORT)
    for key, x in moved.items():
        assert torch.equal((x - params[key]).sign(), delta[key].sign()), key


@every
def test_without_a_delta_nothing_moves(name: str) -> None:
    server: ServerOptimizer = build("server", name)
    params, memory = PARAMS, server.init(PARAMS)
    moved, _ = server.step(
        params, memory, {n: torch.zeros_like(x) for n, x in params.items()}, COHORT
    )
    assert equal(moved, params)


@every
def test_arguments_are_not_touched_and_names_shapes_and_types_stay(name: str) -> None:
    server: ServerOptimizer = build("server", name)
    before = clones(PARAMS)
    params, memory = PARAMS, server.init(PARAMS)
    for seed in range(3):
        delta = towards(params, seed)
        olds = clones(params), clones(memory), clones(delta)
        moved, kept = server.step(params, memory, delta, COHORT)
        assert all(equal(x, old) for x, old in zip((params, memory, delta), olds, strict=True))
        assert sorted(layout(moved)) == sorted(layout(params)) and sorted(layout(kept)) == sorted(
            layout(memory)
        )
        assert finite(moved) and finite(kept)
        params, memory = moved, kept
    assert equal(PARAMS, before)


@every
def test_the_same_again_is_the_same(name: str) -> None:
    server: ServerOptimizer = build("server", name)
    params, memory = PARAMS, server.init(PARAMS)
    delta = towards(params, 2)
    (a, memory_a), (b, memory_b) = (server.step(params, memory, delta, COHORT) for _ in range(2))
    assert equal(a, b) and equal(memory_a, memory_b)


def walk(spec: object, deltas: list[float]) -> list[float]:
    """Where a parameter that starts at 1 is after each delta."""
    server: ServerOptimizer = build("server", spec)
    params: Tensors = {"a": torch.ones(1, dtype=torch.float64)}
    memory = server.init(params)
    path = []
    for delta in deltas:
        params, memory = server.step(
            params, memory, {"a": torch.tensor([delta], dtype=torch.float64)}, COHORT
        )
        path.append(params["a"].item())
    return path


def test_averaging_by_hand() -> None:
    assert walk("average", [0.5, -1.0]) == [1.5, 0.5]
    assert walk({"name": "average", "lr": 0.5}, [0.5, -1.0]) == [1.25, 0.75]


def test_momentum_by_hand() -> None:
    assert walk("momentum", [1.0, 1.0, 0.0]) == pytest.approx([2.0, 3.9, 5.61])
    assert walk({"name": "momentum", "momentum": 0.0}, [0.5, -1.0]) == walk("average", [0.5, -1.0])


DELTAS = [0.3, -0.2, 0.05, 0.0, 1.0]


def adaptive(second: object, beta1: float, lr: float, tau: float) -> list[float]:
    """Algorithm 2 of arXiv:2003.00295, number by number."""
    x, m, v, path = 1.0, 0.0, tau**2, []
    for d in DELTAS:
        m = beta1 * m + (1 - beta1) * d
        v = second(v, d * d)  # type: ignore[operator]
        x += lr * m / (sqrt(v) + tau)
        path.append(x)
    return path


def test_adam_is_the_papers() -> None:
    want = adaptive(lambda v, s: 0.99 * v + 0.01 * s, 0.9, 0.01, 1e-3)
    assert walk("adam", DELTAS) == pytest.approx(want, rel=1e-12)


def test_yogi_is_the_papers() -> None:
    want = adaptive(lambda v, s: v - 0.01 * s * copysign(1, v - s), 0.9, 0.01, 1e-3)
    assert walk("yogi", DELTAS) == pytest.approx(want, rel=1e-12)


def test_adagrad_is_the_papers() -> None:
    want = adaptive(lambda v, s: v + s, 0.0, 0.01, 1e-3)
    assert walk("adagrad", DELTAS) == pytest.approx(want, rel=1e-12)


def test_the_first_step_of_adam_by_hand() -> None:
    """m = 0.1, v = 0.99 * 0.25 + 0.01 = 0.2575: 1 + 2 * 0.1 / (0.50744... + 0.5)."""
    [x] = walk({"name": "adam", "lr": 2.0, "tau": 0.5}, [1.0])
    assert x == pytest.approx(1 + 0.2 / (sqrt(0.2575) + 0.5), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("average", "lr", 0.0),
        ("average", "lr", float("inf")),
        ("momentum", "lr", -1.0),
        ("momentum", "momentum", 1.0),
        ("momentum", "momentum", -0.1),
        ("adam", "lr", 0.0),
        ("adam", "tau", 0.0),
        ("adam", "beta1", 1.0),
        ("adam", "beta2", -0.5),
        ("yogi", "beta2", 1.0),
        ("adagrad", "beta1", 2.0),
    ],
)
def test_values_out_of_range(name: str, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{key} must be"):
        type(build("server", name))(**{key: value})
