"""Laws of every registered server optimizer. A new one is tested by being registered."""

from math import copysign, sqrt
from typing import Any

import pytest
import torch

from fedpeft.core.interfaces import ServerOptimizer
from fedpeft.core.tensors import equal, finite, layout
from fedpeft.core.types import Cohort, Tensors
from fedpeft.registry import build, names

NESTEROV = {"name": "momentum", "nesterov": True}
VARIANTS: list[Any] = [*sorted(names("server")), NESTEROV]
every = pytest.mark.parametrize("name", VARIANTS, ids=[*sorted(names("server")), "nesterov"])

PARAMS: Tensors = {"a": torch.tensor([0.5, -1.0, 2.0, 0.0]), "b.weight": torch.ones(2, 3)}
COHORT = Cohort(0, 10, 5, {f"c{k}": 1.0 for k in range(4)}, 1)


def towards(params: Tensors, seed: int) -> Tensors:
    draws = torch.Generator().manual_seed(seed)
    return {n: torch.randn(x.shape, generator=draws) for n, x in params.items()}


def clones(x: Tensors) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in x.items()}


@every
def test_the_first_step_goes_along_the_delta(name: Any) -> None:
    server: ServerOptimizer = build("server", name)
    params, memory = PARAMS, server.init(PARAMS)
    delta = towards(params, 1)
    moved, _ = server.step(params, memory, delta, COHORT)
    for key, x in moved.items():
        assert torch.equal((x - params[key]).sign(), delta[key].sign()), key


@every
def test_without_a_delta_nothing_moves(name: Any) -> None:
    server: ServerOptimizer = build("server", name)
    params, memory = PARAMS, server.init(PARAMS)
    moved, _ = server.step(
        params, memory, {n: torch.zeros_like(x) for n, x in params.items()}, COHORT
    )
    assert equal(moved, params)


@every
def test_arguments_are_not_touched_and_names_shapes_and_types_stay(name: Any) -> None:
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
def test_the_same_again_is_the_same(name: Any) -> None:
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


def test_nesterov_by_hand() -> None:
    """η = 0.7 and β = 0.9, with Δ = 1, 1, −1: v = 1, 1.9, 0.71 and steps of 0.7·1.9, 0.7·2.71 and
    −0.7·0.361, against 0.7·v of the heavy ball."""
    deltas, outer = [1.0, 1.0, -1.0], {"name": "momentum", "lr": 0.7, "momentum": 0.9}
    ahead = walk({**outer, "nesterov": True}, deltas)
    assert ahead == pytest.approx([1 + 1.33, 1 + 3.227, 1 + 2.9743], rel=1e-12)
    assert walk(outer, deltas) == pytest.approx([1.7, 3.03, 3.527], rel=1e-12)


def test_nesterov_without_momentum_is_averaging_to_the_bit() -> None:
    for lr in (1.0, 0.7):
        still = {**NESTEROV, "lr": lr, "momentum": 0.0}
        assert walk(still, [0.3, -0.2, 1e-9]) == walk(
            {"name": "average", "lr": lr}, [0.3, -0.2, 1e-9]
        )


def test_nesterov_is_torchs_on_the_clients_gradients() -> None:
    """One client, one step of SGD at rate 1 in each round: Δ is minus its gradient, here of
    x² / 2 + x."""
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.SGD([x], lr=0.1, momentum=0.9, nesterov=True)
    server: ServerOptimizer = build("server", {**NESTEROV, "lr": 0.1})
    params: Tensors = {"a": torch.ones(1, dtype=torch.float64)}
    memory = server.init(params)
    for _ in range(5):
        x.grad = x.detach() + 1
        theirs.step()
        params, memory = server.step(params, memory, {"a": -(params["a"] + 1)}, COHORT)
        assert float(params["a"]) == pytest.approx(float(x.detach()), rel=1e-12)


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
