"""Asynchronous steps: the clock and small cases by hand, and what they share with rounds."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from rounds import last, points_plan
from rounds import run as rounds_of
from running import SMALL
from running import run as executed

from fedpeft.algorithms.fedbuff import Arrival, FedBuff, draw_speeds, timetable
from fedpeft.core.tensors import equal
from fedpeft.core.types import Division, Examples, State, Table
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import PlanError
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import Ledger, federate, start
from fedpeft.rounds.site import Site, site_of
from fedpeft.runs.execute import open_run_site
from fedpeft.runs.folder import create
from fedpeft.samplers.uniform import Uniform
from fedpeft.storage.files import load_tensors

PACE = {"a": 1.0, "b": 2.5}


def two_bowls(rounds: int = 3, **asynchronous: object) -> Site:
    """The client `a` looks for 0 and `b` for 4, both from 1, in steps of 0.1."""
    plan = read_plan(
        {
            "task": "parts:Bowls",
            "method": "full",
            "local": {"lr": 0.1, "optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": False}},
            "cohort": 2,
            "algorithms": [{"name": "fedbuff", "speeds": [1.0, 2.5], **asynchronous}],
            "rounds": rounds,
        }
    )
    table = Table({"point": torch.tensor([[0.0], [4.0]]), "curvature": torch.ones(2)})
    division = Division({"a": torch.tensor([0]), "b": torch.tensor([1])})
    return site_of(plan, Examples(table, table, ()), division)


def steps(site: Site, state: State | None = None) -> list[tuple[State, Ledger]]:
    return list(federate(site.plan, InProcess(site), state))


def clock(buffer: int) -> Iterator[list[Arrival]]:
    """Of two clients at a time, `a` and `b`."""
    return timetable(Uniform(), 2, buffer, 1, ["a", "b"], PACE)


def test_the_clock() -> None:
    """`a` answers at 1 and 2 and, since `b` answers at 2.5, `a` again at 3."""
    first = list(islice(clock(1), 5))
    assert first == [
        [Arrival(1.0, "a", 0)],
        [Arrival(2.0, "a", 1)],
        [Arrival(2.5, "b", 0)],
        [Arrival(3.0, "a", 2)],
        [Arrival(4.0, "a", 4)],
    ]


def test_a_buffer_of_two_waits_for_both() -> None:
    first = list(islice(clock(2), 2))
    assert first == [
        [Arrival(1.0, "a", 0), Arrival(2.5, "b", 0)],
        [Arrival(3.5, "a", 1), Arrival(5.0, "b", 1)],
    ]


def test_a_late_update_is_faded() -> None:
    """1 → 0.9 → 0.81, then what `b` made of 1, 0.1 · 3, by 1 / √3 as it is two steps late."""
    w = [state.params["w"].item() for state, _ in steps(two_bowls(buffer=1))]
    assert w == pytest.approx([0.9, 0.81, 0.81 + 0.3 / 3**0.5])
    w = [state.params["w"].item() for state, _ in steps(two_bowls(buffer=1, staleness=0))]
    assert w == pytest.approx([0.9, 0.81, 1.11])


def test_one_that_is_not_late_is_a_round() -> None:
    w = [state.params["w"].item() for state, _ in steps(two_bowls(buffer=2, rounds=2))]
    assert w == pytest.approx([1 + (-0.1 + 0.3) / 2, 1.1 + (-0.11 + 0.29) / 2])


def test_only_models_that_are_still_trained_are_kept() -> None:
    kept = [sorted(state.memory.get("fedbuff", ())) for state, _ in steps(two_bowls(buffer=1))]
    assert kept == [["0/w"], ["0/w"], []]


def test_with_a_buffer_of_all_it_is_rounds_to_the_bit(points: Site) -> None:
    """All begin together, and nobody begins again before the step."""
    plan = points_plan(cohort=24, rounds=3)
    site = replace(points, plan=replace(plan, algorithms=(FedBuff(24),)))
    assert equal(last(steps(site)), last(rounds_of(points, plan)))


def test_nobody_is_left_out_or_counted_twice(points: Site) -> None:
    plan = points_plan(cohort=6, buffer=3, rounds=40, pace_spread=1.0)
    clients = points.data.clients
    takes = draw_speeds(1.0, plan.seed, clients)
    came = list(islice(timetable(plan.sampler, 6, 3, plan.seed, clients, takes), 40))
    assert all(len({one.client for one in some}) == 3 for some in came)
    assert len({(one.client, one.version) for some in came for one in some}) == 120
    times = [one.time for some in came for one in some]
    assert times == sorted(times)
    often = Counter(one.client for some in came for one in some)
    assert max(often, key=often.__getitem__) in sorted(takes, key=takes.__getitem__)[:8]
    late = [step - one.version for step, some in enumerate(came) for one in some]
    assert min(late) == 0 and max(late) > 2


def test_a_resume_goes_on_in_the_same_bits(points: Site) -> None:
    site = replace(
        points, plan=points_plan(cohort=6, buffer=2, rounds=8, pace_spread=1.0, server="adam")
    )
    whole = steps(site)
    for done in (1, 4, 7):
        again = steps(site, whole[done - 1][0])
        assert len(again) == 8 - done
        assert equal(again[-1][0].params, whole[-1][0].params)
        assert again[-1][0].memory.keys() == whole[-1][0].memory.keys() >= {"server"}
        for owner, own in again[-1][0].memory.items():
            assert equal(own, whole[-1][0].memory[owner])
    assert whole[3][0].memory["fedbuff"]


def test_it_learns(points: Site) -> None:
    from fedpeft.evaluation.measure import measure

    site = replace(points, plan=points_plan(cohort=8, buffer=4, rounds=12, pace_spread=1.0))
    before = measure(site, start(site.plan, site.params()).params)["accuracy"]
    assert measure(site, last(steps(site)))["accuracy"] > max(0.8, before)


def test_a_run_is_asynchronous_where_its_plan_is(tmp_path: Path) -> None:
    own = {key: x for key, x in SMALL.items() if key != "server"}
    plan = read_plan(
        {**own, "local": {"batch_size": 8, "lr": 0.1}, "buffer": 2, "pace_spread": 1.0, "rounds": 6}
    )
    site = open_run_site(plan)
    whole, parts = (create(plan, tmp_path / name) for name in ("whole", "parts"))
    records = executed(whole, site)
    assert [len(record.clients) for record in records] == [2] * 6
    executed(parts, site, 3)
    executed(parts, site)
    assert equal(*(load_tensors(folder.checkpoint)[0] for folder in (whole, parts)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"buffer": 0}, "buffer must be at least 1"),
        ({"staleness": 1.0}, "staleness: only asynchronous"),
        ({"staleness": 1.0, "buffer": 2.5}, "buffer = 2.5"),
        ({"buffer": 2, "pace_spread": -1.0}, "pace_spread must not be negative"),
        ({"buffer": 2, "aggregator": "fedit"}, "FedIT makes factors"),
        ({"buffer": 1, "sampler": "sequential_chain", "cohort": 1}, "a chain waits"),
    ],
)
def test_plans_that_cannot_be(changes: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"local": {"correction": "scaffold"}}, "remember nothing"),
        (
            {
                "stages": [{"name": "local_dp", "noise_multiplier": 1.0}],
                "weighting": "uniform",
                "delta": 1e-3,
            },
            "noise",
        ),
    ],
)
def test_plans_that_need_rounds(changes: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(buffer=2, **changes)
