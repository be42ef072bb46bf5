"""One round against many: on quadratics, where every number is known by hand, and on the package's
own digits."""

import json
from collections.abc import Sequence
from dataclasses import replace
from math import hypot, sqrt
from pathlib import Path

import pytest
import torch
from rounds import last, plan_of, points_plan, run
from running import PLAN, fedpeft

from fedpeft.core.tensors import equal
from fedpeft.core.types import Division, Examples, Table
from fedpeft.errors import PlanError
from fedpeft.oneshot.diagnose import Budget, diagnose, spread, work
from fedpeft.oneshot.theory import beyond, coins
from fedpeft.oneshot.trajectories import Signs, both_ways
from fedpeft.oneshot.verdict import answer
from fedpeft.oneshot.weight_change import measure_change, merge_into_copy
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.site import Site, site_of

PLAIN = {"name": "sgd", "momentum": 0.0, "nesterov": False}


def bowls(
    curvatures: Sequence[float],
    points: Sequence[Sequence[float]],
    lr: float = 0.1,
    epochs: int = 1,
    sizes: Sequence[int] = (),
) -> Site:
    """A client for each bowl, which it holds `sizes` times, one a step; held out is the bowl around
    0, twice."""
    features, count = len(points[0]), len(points)
    plan = read_plan(
        {
            "task": {"name": "parts:Bowls", "features": features},
            "method": "full",
            "local": {"lr": lr, "epochs": epochs, "optimizer": PLAIN, "batch_size": 1},
            "rounds": 2,
            "cohort": count,
        }
    )
    train = {"point": torch.tensor(points), "curvature": torch.tensor(curvatures)}
    test = {"point": torch.zeros(2, features), "curvature": torch.ones(2)}
    division = Division(
        {f"c{k}": torch.tensor([k]).repeat(size) for k, size in enumerate(sizes or [1] * count)}
    )
    return site_of(plan, Examples(Table(train), Table(test), ()), division)


def test_every_number_of_two_bowls() -> None:
    """Curvatures 1 and 3 around 0 from w = 1, with steps of 0.1: rounds go 1, 0.8, 0.64; one round
    (0.81 + 0.49) / 2.

    The farthest iterate is 0.49, and the clients' secants are their curvatures.
    """
    found = diagnose(bowls([1.0, 3.0], [[0.0], [0.0]]), Budget(rounds=2))

    def near(x: float) -> object:
        return pytest.approx(x, rel=1e-5)

    assert (found["clients"], found["rounds"], found["steps"], found["epochs"]) == (2, 2, 1.0, 1)
    assert found["update"] == {
        "rounds": {"whole": near(0.36), "layers": {"": near(0.36)}},
        "one": {"whole": near(0.35), "layers": {"": near(0.35)}},
    }
    smooth, distance, held = found["smoothness"], found["distance"], found["held_out"]
    assert (smooth["median"], smooth["max"]) == (near(2), near(3))
    assert (smooth["q25"], smooth["q75"]) == (near(1), near(3))
    assert distance["trained"] == near(0.01) and distance["merged"]["whole"] == near(0.01)
    assert distance["farthest"] == near(0.51)
    assert distance["paper_bound"] == near(3 * 0.51 * 2 * 1 * 2)
    assert distance["corrected_bound"] == near(2 * 0.1 * 3 * 0.51 * 1 * 1)
    assert distance["beyond"] == []
    assert held["rounds"] == [near(0.5), near(0.32), near(0.2048)]
    assert (held["one"], held["gain"], held["gap"]) == (near(0.21125), near(0.2952), near(0.00645))
    assert held["epochs_to_target"] == 2
    assert found["conflict"] == {"first_round": 0.0, "one_round": 0.0, "coins": 0.25}
    assert found["answer"] == "yes"


def test_every_number_of_unequal_clients_over_three_rounds() -> None:
    """Curvatures 1 and 3 from w = (1, 1), the first around (0, 2), with 1 and 3 examples of 1 step
    each: factors of 0.9 and 0.7³ toward each one's own point, the mean by ¼ and ¾, k = ¼·1 +
      ¾·3."""

    def trained(w: tuple[float, float], times: int) -> list[tuple[float, float]]:
        slow, fast = 0.9**times, 0.7 ** (3 * times)
        return [(w[0] * slow, 2 + (w[1] - 2) * slow), (w[0] * fast, w[1] * fast)]

    def mean(ends: list[tuple[float, float]]) -> tuple[float, float]:
        (a, b), (c, d) = ends
        return a / 4 + 3 * c / 4, b / 4 + 3 * d / 4

    state, seen = (1.0, 1.0), trained((1.0, 1.0), 3)
    one = mean(seen)
    for _ in range(3):
        seen += trained(state, 1)
        state = mean(trained(state, 1))
    far = max(hypot(x - 1, y - 1) for x, y in [*seen, state, one])
    found = diagnose(bowls([1.0, 3.0], [[0.0, 2.0], [0.0, 0.0]], sizes=[1, 3]), Budget(rounds=3))
    distance, tau = found["distance"], found["update"]
    assert found["steps"] == 2.5 and found["smoothness"]["max"] == pytest.approx(3, rel=1e-5)
    assert tau["rounds"]["whole"] == pytest.approx(
        hypot(state[0] - 1, state[1] - 1) / sqrt(2), rel=1e-5
    )
    assert tau["one"]["whole"] == pytest.approx(hypot(one[0] - 1, one[1] - 1) / sqrt(2), rel=1e-5)
    assert distance["trained"] == pytest.approx(
        hypot(one[0] - state[0], one[1] - state[1]), rel=1e-4
    )
    assert distance["farthest"] == pytest.approx(far, rel=1e-5)
    assert distance["paper_bound"] == pytest.approx(3 * far * 3 * 2.5 * 2, rel=1e-4)
    assert distance["corrected_bound"] == pytest.approx(2 * 0.1 * 3 * far * 2 * 2.5, rel=1e-4)
    # both go down in the first entry; in the second one goes up and one down
    assert found["conflict"] == {"first_round": 0.25, "one_round": 0.25, "coins": 0.25}


@pytest.mark.parametrize("seed", range(4))
def test_no_unequal_quadratic_breaks_the_corrected_bound(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    points, curvatures = 3 * torch.randn(4, 3, generator=draws), 5 * torch.rand(4, generator=draws)
    site = bowls(curvatures.tolist(), points.tolist(), sizes=[1, 2, 4, 3])
    found = diagnose(site, Budget(rounds=4))["distance"]
    assert 0.001 < found["trained"] <= found["corrected_bound"] < found["paper_bound"]


def test_clients_of_one_curvature_need_no_more_than_one_round() -> None:
    """The mean of affine paths is the path of the mean."""
    found = diagnose(bowls([2.0] * 3, [[5.0, 0.0], [-1.0, 2.0], [0.0, -7.0]]), Budget(rounds=4))
    assert found["distance"]["trained"] == pytest.approx(0, abs=1e-6)
    assert found["distance"]["corrected_bound"] > 1
    assert found["smoothness"]["max"] == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_no_quadratic_breaks_the_corrected_bound(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    points, curvatures = 3 * torch.randn(4, 3, generator=draws), 5 * torch.rand(4, generator=draws)
    found = diagnose(bowls(curvatures.tolist(), points.tolist(), epochs=3), Budget(rounds=3))[
        "distance"
    ]
    assert 0.001 < found["trained"] <= found["corrected_bound"] < found["paper_bound"]


def test_one_bowl_alone_goes_the_same_way() -> None:
    ways = both_ways(bowls([1.0], [[0.0]], epochs=2), ["c0"], 3)
    assert equal(ways["one"].states[-1], ways["rounds"].states[-1])
    assert ways["one"].states[-1]["w"].item() == pytest.approx(0.9**6)


def test_the_way_in_rounds_is_the_run(points: Site) -> None:
    plan = points_plan(cohort=24, rounds=3)
    ways = both_ways(replace(points, plan=plan), points.data.clients, 3)
    assert equal(ways["rounds"].states[-1], last(run(points, plan)))
    assert not equal(ways["one"].states[-1], ways["rounds"].states[-1])


def test_one_round_of_whole_batches_is_the_run_of_one_round(points: Site) -> None:
    """Batches of all that a client has are the same whatever their order."""
    schedule = {"batch_size": 1000, "lr": 0.05, "schedule": "cosine"}
    plan = points_plan(cohort=24, rounds=3, local=schedule)
    one = both_ways(replace(points, plan=plan), points.data.clients, 3)["one"].states[-1]
    epochs = points_plan(cohort=24, rounds=1, local={**schedule, "epochs": 3, "optimizer": "sgd"})
    wanted = last(run(points, epochs))
    for name, x in one.items():
        torch.testing.assert_close(x, wanted[name])


def test_signs() -> None:
    signs = Signs()
    for delta in ([1.0, -1.0, 0.0, 2.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, -1.0]):
        signs.count({"w": torch.tensor(delta)})
    assert signs.conflict() == pytest.approx((0 + 1 / 3 + 1 / 2) / 3)
    assert coins(3) == pytest.approx((6 * 1) / 8 / 3)


def test_tuners_are_merged_before_they_are_measured() -> None:
    plan = plan_of(method={"name": "lora", "rank": 2, "alpha": 6.0})
    model = plan.model([str(k) for k in range(10)])
    names, draws = plan.method.names(model), torch.Generator().manual_seed(0)
    params = {
        name: torch.randn(dict(model.named_parameters())[name].shape, generator=draws)
        for name in names
    }
    start, end = merge_into_copy(model, {}), merge_into_copy(model, params)
    layer = "vit.layers.2.attention.q_proj"
    factors = [params[f"{layer}.lora_{side}.default.weight"] for side in "AB"]
    torch.testing.assert_close(
        end[f"{layer}.weight"], start[f"{layer}.weight"] + 3 * factors[1] @ factors[0]
    )
    layers = measure_change(start, end).layers
    wanted = (
        3
        * (factors[1] @ factors[0]).norm()
        / torch.cat([start[f"{layer}.{x}"].flatten() for x in ("weight", "bias")]).norm()
    )
    assert layers[layer] == pytest.approx(wanted.item(), rel=1e-4)
    assert set(layers) == {"classifier"} | {
        name.partition(".lora_")[0] for name in names if "lora" in name
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local": {"optimizer": "adamw"}}, ["steps are those of AdamW"]),
        ({"local": {"optimizer": {**PLAIN, "momentum": 0.5}}}, ["SGD has momentum"]),
        (
            {"local": {"optimizer": PLAIN, "correction": "prox", "clip_norm": 1.0}},
            ["clipped", "corrected"],
        ),
        ({"local": {"optimizer": PLAIN}, "server": "adam", "uplink": "int8"}, ["server", "codecs"]),
        ({"local": {"optimizer": PLAIN}}, []),
    ],
)
def test_what_the_bound_is_not_for(changes: dict[str, object], words: list[str]) -> None:
    found = beyond(points_plan(**changes))
    assert len(found) == len(words) and all(
        word in one for word, one in zip(words, found, strict=True)
    )


@pytest.mark.parametrize(
    ("gap", "gain", "short"),
    [
        ((0.01, 0.0, 0.02), 0.5, "yes"),
        ((0.1, 0.05, 0.15), 0.5, "no"),
        ((0.02, 0.0, 0.04), 0.5, "unclear"),
        ((0.0, 0.0, 0.0), -0.1, "nothing learned"),
    ],
)
def test_the_answer(gap: tuple[float, float, float], gain: float, short: str) -> None:
    held = dict(zip(("gap", "gap_low", "gap_high"), gap, strict=True))
    found = {
        "rounds": 2,
        "held_out": {
            **held,
            "metric": "accuracy",
            "gain": gain,
            "one": 0.8,
            "rounds": [0.3, 0.81],
            "examples": 9,
        }
        | {"epochs_to_target": 2},
        "conflict": {"first_round": 0.1, "coins": 0.3},
        "update": {"rounds": {"whole": 0.2}},
        "distance": {"merged": {"whole": 0.1}, "beyond": []},
    }
    said = answer(found, 0.05)
    assert said["answer"] == short
    assert "50% of the way apart" in said["words"] and "10% of the entries" in said["words"]


def test_the_budget_follows_the_plan(points: Site) -> None:
    """24 clients, 4 in each of 30 rounds: each takes part in 5 on average."""
    site = replace(points, plan=points_plan(rounds=30))
    clients, rounds = work(site, Budget())
    assert (len(clients), rounds) == (4, 5)
    assert len(work(site, Budget(clients=6, rounds=3))[0]) == 6
    single = points_plan(rounds=1, local={"epochs": 5})
    assert (spread(single).rounds, spread(single).local.passes) == (5, 1)
    with pytest.raises(PlanError, match="2 or more rounds"):
        Budget(rounds=1)
    with pytest.raises(PlanError, match=r"Scaffold makes clients keep .* leave out SCAFFOLD"):
        work(
            replace(points, plan=points_plan(local={"correction": "scaffold"})),
            Budget(),
        )


def test_a_private_plan_can_be_diagnosed(points: Site) -> None:
    local = {
        "name": "dp_sgd",
        "steps": 2,
        "rate": 0.5,
        "batch_size": 8,
        "noise_multiplier": 0.5,
        "lr": 0.1,
    }
    plan = points_plan(local=local, weighting="uniform", delta=1e-3, accountant="rdp")
    found = diagnose(replace(points, plan=plan), Budget(rounds=3))
    assert found["steps"] == 2 and "noise is added" in found["distance"]["beyond"]


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    run_ = tmp_path / "run"
    assert fedpeft("run", tmp_path / "plan.toml", "--out", run_, "--quiet").exit_code == 0
    told = fedpeft("diagnose", run_, "--json")
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["run"]["rounds"] == 3 and 0 < found["run"]["update"]["whole"] < 10
    shown = fedpeft("diagnose", tmp_path / "plan.toml", "--set", "rounds=6", "--clients", 3)
    assert "3 rounds or one, 3 clients" in shown.stdout and "corrected bound" in shown.stdout
    assert fedpeft("diagnose", run_, "--set", "seed=2").exit_code == 2
    assert "is not a run's folder" in fedpeft("diagnose", tmp_path / "run" / "checkpoint").stderr
    assert "no checkpoint yet" in fedpeft("diagnose", tmp_path).stderr


@pytest.mark.slow
def test_the_plan_of_the_package() -> None:
    told = fedpeft(
        "diagnose", "--rounds", 2, "--clients", 2, "--set", "partition.clients=64", "--json"
    )
    assert told.exit_code == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["method"] == "lora" and found["held_out"]["examples"] == 359
    assert 0 < found["update"]["one"]["whole"] < 1 and 0 < found["conflict"]["first_round"] < 0.5
    assert found["smoothness"]["median"] > 0 and found["answer"] in ("yes", "no", "unclear")
