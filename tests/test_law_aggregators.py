"""Laws of every registered aggregator. A new one is tested by being registered."""

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize

from fedpeft.aggregators.distances import borne, rank_by_krum
from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.interfaces import Aggregator
from fedpeft.core.tensors import equal, layout
from fedpeft.core.types import State, Tensors, Update, Weighted
from fedpeft.errors import PlanError
from fedpeft.registry import build, names

SETTINGS: dict[str, dict[str, object]] = {
    "ties": {"density": 1.0},  # any other drops entries of an update that is alone
    "agreeing": {"judged": ["*"]},  # the default judges LoRA's factors, which are not here
}
"""What a part must be given to keep the laws; a new one whose defaults do is not here."""
every = pytest.mark.parametrize("name", sorted(names("aggregator")))


def cohort(size: int, dtype: torch.dtype = torch.float32) -> list[Update]:
    draws = torch.Generator().manual_seed(size)
    return [
        Update(
            f"c{k}",
            {
                "a": torch.randn(2, 3, generator=draws).to(dtype),
                "s": torch.randn((), generator=draws).to(dtype),
            },
            float(k + 1),
            {"loss": Weighted(2.0 * k, k + 1.0)},
        )
        for k in range(size)
    ]


def reduced(name: object, updates: object) -> Update:
    spec = {"name": name, **SETTINGS.get(name, {})} if isinstance(name, str) else name
    aggregator: Aggregator = build("aggregator", spec)
    state = State(0, cohort(1)[0].delta)
    return aggregator(updates, state, lambda client: state.params)  # type: ignore[arg-type]


@every
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_equals_of_one_are_that_one(name: str, size: int) -> None:
    [one] = cohort(1)
    got = reduced(name, [Update(f"c{k}", one.delta, 1.0 + k) for k in range(size)])
    assert layout(got.delta) == layout(one.delta)
    for key, x in one.delta.items():
        torch.testing.assert_close(got.delta[key], x, rtol=0, atol=1e-6)


@every
def test_order_changes_next_to_nothing(name: str) -> None:
    first = reduced(name, cohort(5))
    for order in list(permutations(cohort(5)))[::7]:
        other = reduced(name, order)
        for key, x in first.delta.items():
            torch.testing.assert_close(other.delta[key], x, rtol=0, atol=1e-6)


@every
@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_the_result_lies_between_the_least_and_the_greatest(name: str, size: int) -> None:
    updates = cohort(size)
    for key, x in reduced(name, updates).delta.items():
        stacked = torch.stack([update.delta[key] for update in updates])
        assert bool((x >= stacked.amin(0) - 1e-6).all() and (x <= stacked.amax(0) + 1e-6).all())


@every
def test_nobody_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="no update arrived"):
        reduced(name, iter(()))


@every
def test_a_tensor_that_some_did_not_send_is_of_the_others_or_an_error(name: str) -> None:
    whole, part = cohort(2), Update("c9", {"a": torch.zeros(2, 3)}, 5.0)
    if Fact.COMPARES not in offered_by(build("aggregator", name)):
        got = reduced(name, [*whole, part])
        others = {key for key in got.delta if key != "a"}
        assert others
        for key in others:
            torch.testing.assert_close(got.delta[key], reduced(name, whole).delta[key])
        return
    with pytest.raises(ValueError, match="names differ"):
        reduced(name, [*whole, part])


@every
def test_updates_are_read_once_and_not_touched(name: str) -> None:
    updates = cohort(4)
    before = [{n: x.clone() for n, x in update.delta.items()} for update in updates]
    got = reduced(name, (update for update in updates))
    assert equal(got.delta, reduced(name, updates).delta)
    assert all(equal(update.delta, old) for update, old in zip(updates, before, strict=True))


@every
def test_weights_and_metrics_are_summed(name: str) -> None:
    got = reduced(name, cohort(3))
    assert (got.client, got.weight, got.metrics) == ("", 6.0, {"loss": Weighted(6.0, 6.0)})


@every
def test_a_metric_that_only_some_have(name: str) -> None:
    [first, second] = cohort(2)
    extra = Update("c2", second.delta, 2.0, {"accuracy": Weighted(1.0, 2.0)})
    assert reduced(name, [first, extra]).metrics == {
        "loss": Weighted(0.0, 1.0),
        "accuracy": Weighted(1.0, 2.0),
    }


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_summed_in_a_wide_one(name: str, dtype: torch.dtype) -> None:
    """bfloat16 counts to 256 and no further: 1 + 256 is 256."""
    updates = [Update(u.client, u.delta, 1.0) for u in cohort(400, dtype)]
    got = reduced(name, updates).delta["a"]
    wide = [
        Update(u.client, {"a": u.delta["a"].double(), "s": u.delta["s"].double()}, 1.0)
        for u in updates
    ]
    want = reduced(name, wide).delta["a"]
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=torch.finfo(dtype).eps, atol=1e-6)


@every
def test_integers_keep_their_type(name: str) -> None:
    updates = [Update(f"c{k}", {"n": torch.tensor([k, 2**40 + k])}, 1.0) for k in (1, 2, 3)]
    got: Tensors = reduced(name, updates).delta
    assert got["n"].dtype == torch.int64 and got["n"].tolist() == [2, 2**40 + 2]


def of(*values: float, weights: tuple[float, ...] | None = None) -> list[Update]:
    pairs = zip(values, weights or (1.0,) * len(values), strict=True)
    return [Update(f"c{k}", {"a": torch.tensor([float(v)])}, w) for k, (v, w) in enumerate(pairs)]


def test_means_by_hand() -> None:
    assert reduced("mean", of(0, 10, weights=(1, 3))).delta["a"].item() == 7.5
    assert reduced("mean", of(1, 2, 6, weights=(2, 2, 4))).delta["a"].item() == 3.75


def test_one_update_is_its_own_mean_to_the_bit() -> None:
    [one] = cohort(1)
    assert equal(reduced("mean", [Update("c0", one.delta, 7.0)]).delta, one.delta)


def test_no_weight_is_too_large_for_the_mean() -> None:
    assert reduced("mean", of(1, 3, weights=(1e300, 1e300))).delta["a"].item() == 2
    assert reduced("mean", of(1, 3, weights=(1e308, 1e308))).delta["a"].isfinite().all()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_not_positive_is_an_error(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be positive"):
        reduced("mean", of(1, 2, weights=(1, weight)))


def test_medians_by_hand() -> None:
    assert reduced("median", of(5, -1, 100, weights=(1, 1, 50))).delta["a"].item() == 5
    assert reduced("median", of(5, -1, 100, 7)).delta["a"].item() == 6


def test_trimmed_means_by_hand() -> None:
    ten = of(*range(8), 1000, -1000)  # 0.1 of ten drops one at each end, 0.2 two
    assert reduced("trimmed_mean", ten).delta["a"].item() == 3.5
    assert reduced({"name": "trimmed_mean", "trim": 0.2}, ten).delta["a"].item() == 3.5
    assert reduced({"name": "trimmed_mean", "trim": 0.0}, of(1, 2, 6)).delta["a"].item() == 3


@pytest.mark.parametrize(
    ("trim", "clients", "dropped"),
    [
        (0.1, 8, 1),
        (0.1, 10, 1),
        (0.1, 11, 2),
        (0.1, 2, 0),
        (0.1, 1, 0),
        (0.49, 3, 1),
        (0.07, 100, 7),
        (0.0, 9, 0),
    ],
)
def test_how_many_are_trimmed(trim: float, clients: int, dropped: int) -> None:
    assert build("aggregator", {"name": "trimmed_mean", "trim": trim}).dropped(clients) == dropped


@pytest.mark.parametrize("trim", [-0.1, 0.5, float("nan")])
def test_a_trim_out_of_range(trim: float) -> None:
    with pytest.raises(ValueError, match=r"trim must be in \[0, 0.5\)"):
        type(build("aggregator", "trimmed_mean"))(trim)


ROBUST = [
    "geometric_median",
    "median",
    {"name": "krum", "attackers": 0.3},
    {"name": "multi_krum", "attackers": 0.3},
    {"name": "trimmed_mean", "trim": 0.3},
]


@pytest.mark.parametrize("name", ROBUST)
def test_a_minority_cannot_pull_the_robust_ones_away(name: object) -> None:
    assert abs(reduced(name, of(1, 1.1, 0.9, 1.05, 1e9, -1e9, 1)).delta["a"].item() - 1) <= 0.1
    assert abs(reduced(name, of(1, 1.1, 0.9, 1.05, 1e9, 1e9, 1)).delta["a"].item() - 1) <= 0.1


def test_krum_by_hand() -> None:
    """Seven clients, f = 2, so the three nearest: of 0, 1, 2, 3, 9, 50, 51 the scores are 14, 6, 6,
    14, 149, ..."""
    seven = of(0, 1, 2, 3, 9, 50, 51, weights=(1, 1, 1, 1, 1, 1, 1000))
    values = [one.delta["a"].item() for one in seven]
    assert [values[k] for k in rank_by_krum(seven, 0.25)[:4]] == [2, 1, 3, 0], (
        "2 is nearer to all than 1"
    )
    assert reduced({"name": "krum", "attackers": 0.25}, seven).delta["a"].item() == 2
    # Of 0, 1, 2, 3, 9.
    assert reduced({"name": "multi_krum", "attackers": 0.25}, seven).delta["a"].item() == 3
    pairs = cohort_of_pairs()
    one = reduced("krum", pairs).delta
    assert any(equal(one, update.delta) for update in pairs), (
        "an update as it came, all its tensors of one client"
    )


def cohort_of_pairs() -> list[Update]:
    return [Update(u.client, {**u.delta, "b": u.delta["a"] * 2}) for u in cohort(6)]


@pytest.mark.parametrize(
    ("share", "clients", "count"),
    [(0.2, 10, 2), (0.2, 11, 3), (0.3, 10, 3), (0.2, 4, 0), (0.4, 5, 1), (0.0, 9, 0)],
)
def test_how_many_attackers_krum_bears(share: float, clients: int, count: int) -> None:
    assert borne(share, clients) == count


@pytest.mark.parametrize("name", ["krum", "multi_krum"])
@pytest.mark.parametrize("share", [-0.1, 0.5, float("nan")])
def test_a_share_of_attackers_out_of_range(name: str, share: float) -> None:
    with pytest.raises(ValueError, match=r"attackers must be in \[0, 0.5\)"):
        type(build("aggregator", name))(share)


def in_the_plane(*points: tuple[float, float]) -> list[Update]:
    return [
        Update(f"c{k}", {"x": torch.tensor(float(x)), "y": torch.tensor([float(y)])})
        for k, (x, y) in enumerate(points)
    ]


def test_geometric_medians_by_hand() -> None:
    """Of a triangle Fermat's point, which sees each side under 120 degrees; of a convex quadrangle
    where its diagonals cross; of points of which half are one, that one."""
    height = 3**0.5 / 2
    fermat = reduced("geometric_median", in_the_plane((0, 0), (1, 0), (0.5, height))).delta
    torch.testing.assert_close(fermat["x"], torch.tensor(0.5))
    torch.testing.assert_close(fermat["y"], torch.tensor([height / 3]))
    crossing = reduced("geometric_median", in_the_plane((0, 0), (4, 4), (0, 2), (2, 0))).delta
    torch.testing.assert_close(crossing["x"], torch.tensor(1.0), atol=1e-3, rtol=0)
    assert reduced("geometric_median", of(5, 5, 5, 1e9, -3)).delta["a"].item() == 5


def total_distance(points: npt.NDArray[np.float64], at: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(points - at, axis=1).sum())


def least(points: npt.NDArray[np.float64]) -> float:
    """The least sum of distances, as scipy's simplex finds it, or at one of the points."""
    settings = {"xatol": 1e-10, "fatol": 1e-12, "maxiter": 10_000, "maxfev": 10_000}
    found = [
        minimize(
            lambda at: total_distance(points, at), start, method="Nelder-Mead", options=settings
        )
        for start in (np.median(points, axis=0), points.mean(axis=0))
    ]
    return min(
        *(float(one.fun) for one in found), *(total_distance(points, point) for point in points)
    )


def cloud(kind: str, seed: int) -> npt.NDArray[np.float64]:
    draws = np.random.default_rng(seed)
    points = draws.standard_normal((int(draws.integers(3, 12)), int(draws.integers(1, 4))))
    match kind:
        case "begins at one of them":
            points[0] = np.median(points, axis=0)
        case "some are one":
            points[1::3] = points[0]
        case "on a grid":
            points = points.round()
        case "far out":
            points[0] *= 1e6
        case "far away":
            points += 1e6
    return points


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    "kind", ["drawn", "begins at one of them", "some are one", "on a grid", "far out", "far away"]
)
def test_a_geometric_median_has_the_least_sum_of_distances(kind: str, seed: int) -> None:
    points = cloud(kind, seed)
    updates = [Update(f"c{k}", {"a": torch.tensor(point)}) for k, point in enumerate(points)]
    got = reduced("geometric_median", updates).delta["a"].numpy()
    assert total_distance(points, got) <= least(points) * (1 + 1e-6)


def test_a_geometric_median_leaves_an_update_that_it_begins_at() -> None:
    """The middle of each coordinate is (0, 0), one of five. The others pull it up the axis by √2,
    and it holds with 1. At height y the pulls of (±1, 1) are those of (±3, 0) and (0, 0):
    2(1 − y) / √(1 + (1 − y)²) = 2y / √(9 + y²) + 1, which y = 0.269969 solves."""
    points = in_the_plane((0, 0), (-1, 1), (1, 1), (-3, 0), (3, 0))
    got = reduced("geometric_median", points).delta
    up = got["y"].item()
    assert abs(got["x"].item()) < 1e-6
    assert up == pytest.approx(0.269969, abs=1e-5)
    held = in_the_plane((0, 0), (-1, 0.5), (1, 0.5), (-3, 0), (3, 0))  # they pull by 0.894
    assert reduced("geometric_median", held).delta["y"].item() == 0


@pytest.mark.parametrize("changes", [{"steps": 0}, {"tolerance": 0.0}, {"tolerance": 1.0}])
def test_a_geometric_median_out_of_range(changes: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="steps must be at least 1"):
        build("aggregator", {"name": "geometric_median", **changes})
