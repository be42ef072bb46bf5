"""Laws of every registered correction, and local descent, which they are part of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import cos, pi

import pytest
import torch
from torch import Tensor

from fedpeft.algorithms.scaffold import Scaffold
from fedpeft.core.interfaces import Added, Correction, Local, LossFn
from fedpeft.core.tensors import add_prefix, equal, layout
from fedpeft.core.types import Batch, Cohort, Context, State, Tensors, Update
from fedpeft.registry import build, names

every = pytest.mark.parametrize("name", sorted(names("correction")))

PARAMS = {"a": torch.tensor([0.5, -1.0, 2.0]), "b": torch.ones(2, 2)}
NOW = {"a": torch.tensor([1.0, -1.0, 2.5]), "b": torch.zeros(2, 2)}
GRADIENT = {"a": torch.tensor([0.1, 0.2, -0.3]), "b": torch.full((2, 2), 0.7)}


def shared_of(correction: Correction, share: float = 0.0) -> Tensors:
    return {n: torch.full_like(x, share) for n, x in PARAMS.items()} if correction.share else {}


def clones(x: Tensors) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in x.items()}


@every
def test_at_the_start_nothing_is_corrected(name: str) -> None:
    """Where it was received, with no memory and nothing shared yet, the gradient is the client's
    own."""
    correction: Correction = build("correction", name)
    held = correction.begin(PARAMS, shared_of(correction), {})
    assert equal(correction.apply(GRADIENT, PARAMS, held), GRADIENT)


@every
def test_names_shapes_and_types_stay_and_arguments_are_not_touched(name: str) -> None:
    correction: Correction = build("correction", name)
    shared, path = shared_of(correction, 0.3), torch.tensor(0.2)
    memory: Tensors = {}
    for _ in range(2):
        delta = {n: x - PARAMS[n] for n, x in NOW.items()}
        olds = clones(shared), clones(memory), clones(delta), clones(GRADIENT), clones(NOW)
        corrected = correction.apply(GRADIENT, NOW, correction.begin(PARAMS, shared, memory))
        change, kept = correction.finish(delta, shared, memory, path)
        assert all(
            equal(x, old)
            for x, old in zip((shared, memory, delta, GRADIENT, NOW), olds, strict=True)
        )
        assert layout(corrected) == layout(GRADIENT)
        assert sorted(layout(change)) == sorted(layout(shared))
        memory = dict(kept)


@every
def test_only_what_has_a_gradient_is_corrected(name: str) -> None:
    correction: Correction = build("correction", name)
    held = correction.begin(PARAMS, shared_of(correction, 0.3), {})
    assert correction.apply({"a": GRADIENT["a"]}, NOW, held).keys() == {"a"}


def test_prox_by_hand() -> None:
    correction = build("correction", {"name": "prox", "mu": 0.5})
    got = correction.apply(GRADIENT, NOW, correction.begin(PARAMS, {}, {}))
    # 0.1 + 0.5 (1 - 0.5), and so on.
    torch.testing.assert_close(got["a"], torch.tensor([0.35, 0.2, -0.05]))
    torch.testing.assert_close(got["b"], torch.full((2, 2), 0.2))


def test_prox_without_mu_is_nothing_at_all() -> None:
    correction = build("correction", {"name": "prox", "mu": 0.0})
    assert correction.apply(GRADIENT, NOW, correction.begin(PARAMS, {}, {})) is GRADIENT


@pytest.mark.parametrize("mu", [-0.1, float("inf"), float("nan")])
def test_a_mu_out_of_range(mu: float) -> None:
    with pytest.raises(ValueError, match="mu must be at least 0"):
        type(build("correction", "prox"))(mu)


def test_scaffold_by_hand() -> None:
    """c = 1, c_i = 0.5, g = 2: g - c_i + c = 2.5; with delta = -0.2 over a path of 0.1, c_i = 0.5 -
    1 + 2 = 1.5."""
    correction = build("correction", "scaffold")
    params, shared = {"a": torch.tensor([7.0])}, {"a": torch.tensor([1.0])}
    memory = {"a": torch.tensor([0.5])}
    held = correction.begin(params, shared, memory)
    assert correction.apply({"a": torch.tensor([2.0])}, params, held)["a"].item() == 2.5
    delta, path = {"a": torch.tensor([-0.2])}, torch.tensor(0.1)
    change, kept = correction.finish(delta, shared, memory, path)
    assert kept["a"].item() == pytest.approx(1.5) and change["a"].item() == pytest.approx(1.0)


def test_the_control_variate_moves_by_the_share_that_answered() -> None:
    """4 of 10 answered; a tensor that nobody sent rests."""
    scaffold = Scaffold()
    shared = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(5.0)}
    cohort = Cohort(0, 10, 5, {f"c{k}": 1.0 for k in range(4)}, 1)
    after = scaffold.merge_share(shared, {"a": torch.tensor([0.5, -1.0])}, cohort)
    torch.testing.assert_close(after["a"], torch.tensor([1.2, 1.6]))
    assert after["b"] is shared["b"]
    assert scaffold.shares(shared)["c"] == layout(shared)


@dataclass(frozen=True)
class Bowl:
    """A loss of (k / 2)(x - at)^2 for one number x; `LossFn` for the tests below."""

    k: float
    at: float

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        return (self.k / 2 * (params["x"] - self.at) ** 2).reshape(1)

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        moved = {"mean": params["mean"] + 1} if "mean" in params else {}
        return {"x": self.k * (params["x"] - self.at)}, self(params, batch), moved

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        return {"x": self.gradient(params, batch)[0]["x"][None]}


@dataclass(frozen=True)
class Slope:
    """A loss with the same gradient everywhere, and one buffer that each pass changes."""

    slope: float

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        return (self.slope * params["x"]).reshape(1)

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        return (
            {"x": torch.full_like(params["x"], self.slope)},
            self(params, batch),
            {"mean": params["mean"] + 1},
        )

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        return {"x": self.gradient(params, batch)[0]["x"][None]}


def context(steps: int, round: int = 0, rounds: int = 1) -> Context:
    return Context("run", round, rounds, "c0", steps, steps, 0)


def descend(
    local: Local, losses: LossFn, received: Tensors, memory: Tensors, where: Context
) -> tuple[Tensors, Tensors]:
    carry = local.begin(received, memory, where)
    for _ in range(where.steps):
        carry = local.step(carry, {"mask": torch.ones(1)}, losses)
    delta, kept, totals = local.finish(carry, received, memory)
    assert totals["examples"] == where.steps
    return delta, kept


def local_of(**settings: object) -> Local:
    from fedpeft.registry import find

    spec = {"optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": False}, **settings}
    local: Local = build("local", {"name": "descent", **spec})
    assert type(local) is find("local", "descent")
    return local


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_a_control_variate_is_the_clients_own_mean_gradient(momentum: float, schedule: str) -> None:
    """With any momentum and schedule, whatever c and c_i were: on a slope of 3, the new c_i is
    3."""
    optimizer = {"name": "sgd", "momentum": momentum, "nesterov": momentum > 0}
    local = local_of(correction="scaffold", schedule=schedule, warmup=0.2, optimizer=optimizer)
    received = {
        "x": torch.tensor([5.0]),
        "mean": torch.zeros(1),
        "c/x": torch.tensor([1.0]),
        "c/mean": torch.ones(1),
    }
    delta, kept = descend(local, Slope(3.0), received, {"x": torch.tensor([-2.0])}, context(7))
    assert kept.keys() == {"x"} and kept["x"].item() == pytest.approx(3, abs=1e-4)
    assert delta["c/x"].item() == pytest.approx(5, abs=1e-4)
    assert delta.keys() == received.keys() and delta["mean"] == 7 and delta["c/mean"] == 0


def rounds_of(correction: str) -> Iterator[float]:
    """Two clients that want different things, many local steps: where the server's number is after
    each round."""
    local, mean = local_of(correction=correction, lr=0.05), build("aggregator", "mean")
    part: Correction = build("correction", correction)
    clients: Sequence[Bowl] = (Bowl(1.0, 1.0), Bowl(10.0, -1.0))
    cohort = Cohort(0, 2, 2, {"0": 1.0, "1": 1.0}, 0)
    params: Tensors = {"x": torch.tensor([0.3])}
    shared: Tensors = {"x": torch.zeros(1)} if part.share else {}
    memory: dict[int, Tensors] = {0: {}, 1: {}}
    for _ in range(60):
        updates, received = [], {**params, **add_prefix("c", shared)}
        for k, bowl in enumerate(clients):
            delta, memory[k] = descend(local, bowl, received, memory[k], context(20))
            updates.append(Update(str(k), delta))
        delta = mean(updates, State(0, params), lambda _: {}).delta
        params = {"x": params["x"] + delta["x"]}
        if part.share:
            shared = Scaffold().merge_share(shared, {"x": delta["c/x"]}, cohort)
        yield params["x"].item()


def test_scaffold_finds_the_common_minimum_where_averaging_does_not() -> None:
    """The mean of the two losses is least at (1 * 1 - 10 * 1) / 11; many local steps pull the plain
    average off it."""
    *_, scaffold = rounds_of("scaffold")
    *_, average = rounds_of("none")
    assert scaffold == pytest.approx(-9 / 11, abs=1e-4)
    assert abs(average + 9 / 11) > 0.3


def rates(schedule: str, warmup: float) -> list[float]:
    """The rates of the 8 steps of a run of two rounds, read off a slope of 1."""
    local = local_of(schedule=schedule, warmup=warmup, lr=0.5)
    found = []
    for round in (0, 1):
        where = context(4, round, 2)
        carry = local.begin({"x": torch.zeros(1), "mean": torch.zeros(1)}, {}, where)
        for _ in range(4):
            after = local.step(carry, {"mask": torch.ones(1)}, Slope(1.0))
            found.append((carry["params"]["x"] - after["params"]["x"]).item())
            carry = after
    return found


def test_schedules_by_hand() -> None:
    assert rates("constant", 0.0) == pytest.approx([0.5] * 8)
    assert rates("linear", 0.0) == pytest.approx([0.5 * (1 - k / 8) for k in range(8)], abs=1e-6)
    assert rates("cosine", 0.0) == pytest.approx(
        [0.25 * (1 + cos(pi * k / 8)) for k in range(8)], abs=1e-6
    )
    assert rates("constant", 0.5) == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert rates("linear", 0.5) == pytest.approx(
        [0.125, 0.25, 0.375, 0.5, 0.5, 0.375, 0.25, 0.125], abs=1e-6
    )


def test_clipping_by_hand() -> None:
    local, free = local_of(clip_norm=1.0, lr=1.0), local_of(lr=1.0)
    start = {"x": torch.tensor([4.0])}
    for bowl, clipped, whole in ((Bowl(1.0, 0.0), 3.0, 0.0), (Bowl(0.1, 0.0), 3.6, 3.6)):
        for part, want in ((local, clipped), (free, whole)):
            delta, _ = descend(part, bowl, start, {}, context(1))
            assert (start["x"] + delta["x"]).item() == pytest.approx(want)


@dataclass(frozen=True)
class Given:
    """A loss with this gradient everywhere."""

    slopes: Tensors

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        return torch.zeros(1)

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        return self.slopes, self(params, batch), {}

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        return {name: x[None] for name, x in self.slopes.items()}


def clipped_step(limit: float, gradient: Tensors) -> dict[str, Tensor]:
    """What one step of rate 1 from zero takes away."""
    start = {name: torch.zeros_like(x) for name, x in gradient.items()}
    delta, _ = descend(local_of(clip_norm=limit, lr=1.0), Given(gradient), start, {}, context(1))
    return {name: -x for name, x in delta.items()}


@pytest.mark.parametrize("size", [1e18, 1e19, 1e20, 1e30, 3e38])
def test_a_gradient_whose_squares_are_infinite_is_clipped_and_no_zero(size: float) -> None:
    got = clipped_step(2.0, {"x": torch.tensor([size, 0.0]), "y": torch.tensor(-size)})
    assert got["x"].tolist() == pytest.approx([2**0.5, 0], rel=1e-5)
    assert got["y"].item() == pytest.approx(-(2**0.5), rel=1e-5)
    far = clipped_step(1e30, {"x": torch.tensor([1e25])})
    assert far["x"].item() == pytest.approx(1e25)


def test_clipping_ordinary_gradients_changes_no_bit() -> None:
    """The norm in float32, one tensor after another: finished runs have it so."""
    draws = torch.Generator().manual_seed(3)
    gradient = {n: torch.randn(k, generator=draws) for n, k in (("a", 100), ("b", 7))}
    length = torch.stack([x.square().sum() for x in gradient.values()]).sum().sqrt()
    for limit in (0.1, 1.0, 100.0):
        factor = (limit / length).clamp_max(1.0)
        got = clipped_step(limit, gradient)
        assert all(torch.equal(got[n], x * factor) for n, x in gradient.items())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("inf")),
        ("schedule", "cosin"),
        ("warmup", 1.0),
        ("clip_norm", 0.0),
        ("precision", "float8"),
    ],
)
def test_values_out_of_range(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        type(build("local", "descent"))(**{key: value})
