"""A channel that fades and is noisy."""

from math import pi
from typing import Any

import pytest
import torch
from rounds import last, points_plan, run

from fedpeft import PlanError
from fedpeft.algorithms.fedavg import average
from fedpeft.core.conversation import Answer, Ask, Message, replay
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import equal, sub
from fedpeft.core.types import State, Update
from fedpeft.deploy.terms import check_node_plan
from fedpeft.exchanges.over_the_air import OverTheAir, stable, stable_of
from fedpeft.oneshot.one_file import NOT_IN_ONE_FILE
from fedpeft.plan.checks import refuse
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.site import Site
from fedpeft.wire.payloads import message_of


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("angle", "wait", "alpha", "number"),
    [
        (pi / 4, 1.0, 2.0, 1.414214),
        (pi / 4, 1.0, 1.5, 1.195144),
        (pi / 4, 1.0, 1.0, 1.0),
        (pi / 6, 2.0, 2.0, 1.414214),
        (pi / 6, 2.0, 1.5, 0.991958),
        (pi / 6, 2.0, 1.0, 0.577350),
        (0.0, 1.0, 1.5, 0.0),
    ],
)
def test_stable_numbers_by_hand(angle: float, wait: float, alpha: float, number: float) -> None:
    at, after = (torch.tensor(x, dtype=torch.double) for x in (angle, wait))
    assert float(stable_of(at, after, alpha)) == pytest.approx(number, abs=1e-6)


def test_stable_numbers_are_normal_at_2_and_have_heavy_tails_below() -> None:
    size = torch.Size([100_000])
    normal = stable(size, 2.0, draws())
    assert float(normal.var()) == pytest.approx(2, rel=0.02)
    heavy = stable(size, 1.5, draws())
    assert float(heavy.median()) == pytest.approx(0, abs=0.02)
    # of a normal of this scale no number in ten million is beyond 8
    assert not (normal.abs() > 8).any() and float((heavy.abs() > 8).double().mean()) > 0.01


def test_fading_has_the_mean_1_and_differs_by_client_and_round() -> None:
    part = OverTheAir()
    many = torch.tensor([part._strength(seed, "a") for seed in range(4000)])
    assert float(many.mean()) == pytest.approx(1, abs=0.03)
    assert float(many.var()) == pytest.approx(4 / pi - 1, rel=0.1)
    assert part._strength(1, "a") != part._strength(1, "b")
    assert part._strength(1, "a") == part._strength(1, "a")


def test_a_channel_without_fading_and_noise_is_the_mean_to_the_bit(points: Site) -> None:
    clear = {"name": "over_the_air", "fading": False}
    plain, air = points_plan(), points_plan(exchange=clear)
    for (one, mine), (other, theirs) in zip(run(points, air), run(points, plain), strict=True):
        assert equal(one.params, other.params)
        assert (mine.up, mine.down, mine.weights) == (theirs.up, theirs.down, theirs.weights)


def heard_through(part: OverTheAir, seed: int, **deltas: float) -> float:
    """Where the server's step goes from 0."""
    plan, state = points_plan(exchange=part, weighting="uniform"), State(0, {"w": torch.zeros(1)})
    answers = [
        Answer(name, message_of(Update(name, {"w": torch.tensor([x])})), Message({"params": {}}))
        for name, x in deltas.items()
    ]
    names = list(deltas)
    round = Round(0, plan, names, names, seed, report=Ledger(0).report)
    heard = [(Ask("fit", {}, lambda _: {}, updates=True), answers)]
    return float(replay(average(state, round), heard).params["w"])


def test_the_server_hears_the_faded_sum_and_noise_once() -> None:
    """With h of each client: (1·h_a + 3·h_b) / 2; of updates of 0 the noise alone is left, and is
    the same however many send."""
    faded = OverTheAir()
    a, b = (faded._strength(7, name) for name in "ab")
    assert heard_through(faded, 7, a=1.0, b=3.0) == pytest.approx((a + 3 * b) / 2, rel=1e-6)
    noisy = OverTheAir(fading=False, scale=0.5, alpha=1.5)
    alone = heard_through(noisy, 7, a=0.0)
    assert alone != 0 and heard_through(noisy, 7, a=0.0, b=0.0, c=0.0) == alone
    assert heard_through(noisy, 8, a=0.0) != alone
    both = OverTheAir(scale=0.5, alpha=1.5)
    want = (a + 3 * b) / 2 + alone
    assert heard_through(both, 7, a=1.0, b=3.0) == pytest.approx(want, rel=1e-5)


def test_a_run_is_repeated_to_the_bit(points: Site) -> None:
    plan = points_plan(exchange={"name": "over_the_air", "scale": 0.01, "alpha": 1.5})
    one, again = (last(run(points, plan)) for _ in range(2))
    assert equal(one, again)
    clear = last(run(points, points_plan()))
    assert any(x.any() for x in sub(one, clear).values())


def test_noise_that_no_float_holds_costs_the_round(points: Site) -> None:
    plan = points_plan(exchange={"name": "over_the_air", "scale": 1e40}, rounds=1)
    [(state, ledger)] = run(points, plan)
    assert "nothing changes" in ledger.note and equal(state.params, points.params())


def test_statistics_come_as_they_are() -> None:
    part = OverTheAir(scale=1.0)
    delta = {"bn.running_mean": torch.ones(2), "n": torch.tensor(3), "w": torch.ones(2)}
    plan = points_plan(exchange=part)
    round = Round(0, plan, ["a"], ["a"], 3)
    came = part._channel(round)(Answer("a", message_of(Update("a", delta)))).message
    got = came.tensors["delta"]
    assert torch.equal(got["bn.running_mean"], torch.ones(2)) and got["n"] == 3
    assert not torch.equal(got["w"], torch.ones(2)) and got["w"].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregator": "median"}, 'set aggregator = "mean"'),
        ({"algorithms": ["q_ffl"], "weighting": "uniform"}, 'set exchange = "plain"'),
        ({"algorithms": ["minimax"], "weighting": "uniform"}, 'set exchange = "plain"'),
        ({"algorithms": ["ifca"]}, 'set exchange = "plain"'),
        ({"local": {"correction": "scaffold"}}, "leave SCAFFOLD out"),
        (
            {"stages": [{"name": "client_dp", "noise_multiplier": 1.0}], "weighting": "uniform"}
            | {"delta": 1e-3},
            "fading can make them longer",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(exchange="over_the_air", **changes)


def test_nodes_and_files_have_a_channel_of_their_own() -> None:
    plan = points_plan(exchange="over_the_air", rounds=1)
    with pytest.raises(PlanError, match="and nodes are real: leave it out"):
        check_node_plan(plan)
    with pytest.raises(PlanError, match="who hands in a file is real: leave it out"):
        refuse(plan, NOT_IN_ONE_FILE)


@pytest.mark.parametrize(
    "settings", [{"scale": -1.0}, {"scale": float("nan")}, {"alpha": 1.0}, {"alpha": 2.1}]
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        OverTheAir(**settings)
