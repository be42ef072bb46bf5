"""Clients drawn by what they take over simulated links, and no more often than their budget."""

from dataclasses import replace
from itertools import permutations
from math import exp, inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rounds import on, points_plan
from test_owner_terms import node_of, reason

from fedpeft.core.accounting import epsilon
from fedpeft.core.seeds import fold, generator
from fedpeft.core.tensors import equal
from fedpeft.core.types import Job, State, Tensors
from fedpeft.deploy.consent import consent_to
from fedpeft.engines.processes import Processes
from fedpeft.errors import PlanError
from fedpeft.plan.calibration import round_seed
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site
from fedpeft.samplers.bandit import Bandit, upper_bounds
from fedpeft.samplers.links import Links, rate
from fedpeft.samplers.matching import match
from fedpeft.samplers.uniform import Uniform

QUIET = Links(1e6, 0.0, 0.0, 0.0, 0.0, seed=3)
CLIENTS = ("a", "b", "c")
PRIVATE = {
    "stages": [{"name": "client_dp", "noise_multiplier": 1.0}],
    "weighting": "uniform",
    "delta": 1e-3,
    "accountant": "rdp",
}


def ledger_of(round: int, *cohort: str, failed: str = "") -> Ledger:
    """A round in which everyone is sent 1,000 bytes and sends as many."""
    came = [client for client in cohort if client != failed]
    ledger = Ledger(round, dict.fromkeys(cohort, 1000), dict.fromkeys(came, 1000))
    ledger.weights, ledger.cohort = dict.fromkeys(came, 1.0), cohort
    return ledger


def draw(part: Bandit, round: int, memory: Tensors, cohort: int = 1) -> list[str]:
    draws = generator(round, "choose")
    return part.choose(CLIENTS, cohort, draws, round, memory)


def test_upper_bounds_are_those_counted_by_hand() -> None:
    """After 10 rounds, 8 of them with the mean 0.5 and 2 with 0.4; the third was never tried."""
    bounds = upper_bounds(np.array([8.0, 2.0, 0.0]), np.array([4.0, 0.8, 0.0]), 10)
    assert bounds == pytest.approx([1.258714, 1.917427, inf], abs=1e-6)


def test_the_matchings_by_hand() -> None:
    """The sum takes 10 + 3; of the other two pairs the smaller score is 4, and not 3."""
    scores = np.array([[10.0, 4.0], [5.0, 3.0]])
    assert match(scores, "sum") == [(0, 0), (1, 1)]
    assert match(scores, "max_min") == [(0, 1), (1, 0)]
    assert match(np.zeros((0, 2)), "max_min") == match(np.zeros((2, 0)), "sum") == []
    untried = np.array([[100.0, inf], [90.0, 1.0]])
    assert match(untried, "sum") == match(untried, "max_min") == [(0, 1), (1, 0)]
    assert sorted(match(np.full((2, 2), inf), "max_min")) in ([(0, 0), (1, 1)], [(0, 1), (1, 0)])


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (2, 4), (1, 1)])
def test_matchings_are_the_best_of_all(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).integers(-4, 5, shape).astype(float)
    tall = scores if shape[0] >= shape[1] else scores.T
    every = [
        [tall[row, column] for column, row in enumerate(rows)]
        for rows in permutations(range(tall.shape[0]), tall.shape[1])
    ]
    found = {rule: [scores[pair] for pair in match(scores, rule)] for rule in ("max_min", "sum")}
    assert sum(found["sum"]) == max(map(sum, every))
    floor = max(map(min, every))
    assert min(found["max_min"]) == floor
    assert sum(found["max_min"]) == max(sum(one) for one in every if min(one) == floor)


def test_a_rate_is_shannons() -> None:
    assert rate(1e6, 0.0, 1.0) == 1e6 and rate(1e6, 10.0, 1.0) == pytest.approx(3.459432e6)
    assert rate(1e6, -200.0, 1.0) == pytest.approx(1e6 * 1e-20 / np.log(2)), "and never 0"


def test_links_fade_anew_and_as_rayleigh_does() -> None:
    """Of the seconds of 1,000 bits at 0 dB follows |h|², which is exponential with the mean 1."""
    took = np.array([QUIET.seconds(f"c{k}", 0, 0, 100, 25) for k in range(1000)])
    gains = 2 ** (1000 / took / 1e6) - 1
    assert gains.mean() == pytest.approx(1.0, abs=0.1)
    assert (gains > 1).mean() == pytest.approx(exp(-1), abs=0.05)
    first = QUIET.seconds("c0", 0, 0, 100, 25)
    others = [QUIET.seconds("c0", 1, 0, 100, 25), QUIET.seconds("c0", 0, 1, 100, 25)]
    assert first == took[0] and first not in others
    assert replace(QUIET, pace=2.0).seconds("c0", 0, 0, 100, 25) == pytest.approx(2 + first)
    assert QUIET.seconds("c0", 0, 0, 1000, 250) == pytest.approx(10 * first)


def test_who_was_never_drawn_comes_first_and_then_the_better_arm() -> None:
    """A full reward for all that answered: in round 3 b, which failed, has the lowest bound."""
    part, memory = Bandit(reference=1e9), dict[str, torch.Tensor]()
    for round in range(3):
        drawn = draw(part, round, memory)
        assert f"arms/{drawn[0]}" not in memory
        memory = dict(part.learn(memory, ledger_of(round, *drawn, failed="b")))
    assert {name: float(memory[f"arms/{name}"][0, 1]) for name in CLIENTS} == {
        "a": 1.0,
        "b": 0.0,
        "c": 1.0,
    }
    assert sorted(draw(part, 3, memory, cohort=2)) == ["a", "c"]
    assert sorted(draw(part, 3, memory, cohort=9)) == ["a", "b", "c"]


def test_queues_are_those_of_the_recursion() -> None:
    """Q ← max(Q + ρ − 1[drawn], 0), counted in each round for each client."""
    part, memory = Bandit(fair_share=0.4), dict[str, torch.Tensor]()
    queues = dict.fromkeys(CLIENTS, 0.0)
    for round, drawn in enumerate(["a", "a", "b", "a", "b", "a", "a", "a"]):
        for name in CLIENTS:
            assert part._queue(memory, name, round) == pytest.approx(queues[name])
            queues[name] = max(queues[name] + 0.4 - (name == drawn), 0.0)
        memory = dict(part.learn(memory, ledger_of(round, drawn)))
    assert queues == pytest.approx({"a": 0.0, "b": 1.2, "c": 3.2})


def test_a_queue_brings_back_who_is_slow() -> None:
    """With ρ = 0.4, and links of which one is far slower, it is drawn for that share of rounds."""
    visits = {}
    for share in (0.0, 0.4):
        part = Bandit(reward_weight=0.1, fair_share=share, pace_spread=3.0, seed=1)
        memory, times = dict[str, torch.Tensor](), dict.fromkeys(CLIENTS, 0)
        for round in range(100):
            (drawn,) = draw(part, round, memory)
            times[drawn] += 1
            memory = dict(part.learn(memory, ledger_of(round, drawn)))
        visits[share] = min(times.values())
    assert visits[0.0] < 20 and visits[0.4] >= 30, "a third is all there is for three clients"


def test_what_is_learnt_does_not_depend_on_the_order_of_arrival() -> None:
    part = Bandit(channels=3)
    one, other = ledger_of(0, *CLIENTS), ledger_of(0, *reversed(CLIENTS))
    assert equal(part.learn({}, one), part.learn({}, other))
    assert one.reports == other.reports
    told = one.reports["bandit"]
    assert sorted(told["channels"].values()) == [0, 1, 2] and told["retired"] == 0
    assert told["round_seconds"] == told["run_seconds"] == max(told["seconds"].values())


def test_what_others_were_asked_takes_no_time() -> None:
    """Evaluations ask everybody; a client that was drawn and left out was sent nothing."""
    part, ledger = Bandit(), ledger_of(0, "a")
    ledger.down["b"], ledger.cohort = 1000, ("a", "c")
    memory = part.learn({}, ledger)
    assert list(ledger.reports["bandit"]["seconds"]) == ["a"]
    assert memory["arms/c"].tolist() == [[1.0, 0.0]] and "arms/b" not in memory


def test_uniform_draws_as_the_usual_sampler() -> None:
    part, names = Bandit(policy="uniform"), [f"c{k}" for k in range(9)]
    for round in range(5):
        drawn = part.choose(names, 3, generator(round, "x"), round, {})
        assert drawn == Uniform().choose(names, 3, generator(round, "x"), round)
    ledger = ledger_of(0, *CLIENTS)
    Bandit(policy="uniform", channels=4).learn({}, ledger)
    assert len(set(ledger.reports["bandit"]["channels"].values())) == 3


def run(site: Site, state: State | None = None, **changes: Any) -> list[tuple[State, Ledger]]:
    engine = on(site, points_plan(**changes))
    return list(federate(engine.site.plan, engine, state or start(engine.site.plan)))


def test_clients_retire_and_a_resume_goes_on_alike(points: Site) -> None:
    """Of 24 clients 10 a round, each twice: four rounds of 10, then 8, and then nobody is left."""
    changes: dict[str, Any] = {
        "cohort": 10,
        "rounds": 7,
        "sampler": {"name": "bandit", "visits": 2},
    }
    rounds = run(points, **changes)
    drawn = [ledger.cohort for _, ledger in rounds]
    assert sum(map(len, drawn)) == 48 and drawn[-1] == ()
    assert max(sum(drawn, ()).count(name) for name in points.data.clients) == 2
    state, ledger = rounds[-1]
    assert "draws nobody" in ledger.note and equal(state.params, rounds[-2][0].params)
    assert ledger.reports["bandit"]["retired"] == 24
    resumed = run(points, rounds[2][0], **changes)
    assert [ledger.cohort for _, ledger in resumed] == drawn[3:]
    assert [ledger.reports for _, ledger in resumed] == [one.reports for _, one in rounds[3:]]
    assert equal(resumed[-1][0].flat, state.flat)


def test_privacy_is_accounted_for_as_many_releases_as_visits(points: Site) -> None:
    """One round is one plain Gaussian, the second another one, and no further one comes: with
    nobody left, nothing is released, and no noise either."""
    changes: dict[str, Any] = {
        "rounds": 3,
        "cohort": 24,
        "sampler": {"name": "bandit", "visits": 2},
        **PRIVATE,
    }
    rounds = run(points, **changes)
    spent = [ledger.privacy["epsilon"] for _, ledger in rounds if ledger.privacy]
    event = points_plan(**changes).private_part.event
    once, twice = (epsilon(event, times, 1e-3, "rdp") for times in (1, 2))
    assert spent == [once, twice, twice]
    assert [len(ledger.cohort) for _, ledger in rounds] == [24, 24, 0]
    first, second, third = (state.params for state, _ in rounds)
    assert equal(second, third) and not equal(first, second)


@pytest.mark.slow
def test_workers_of_their_own_draw_the_same(points: Site) -> None:
    changes: dict[str, Any] = {"rounds": 3, "sampler": {"name": "bandit", "channels": 4}}
    want = run(points, **changes)
    plan = points_plan(**changes, engine="processes")
    engine = Processes(replace(points, plan=plan), workers=2)
    try:
        got = list(federate(plan, engine, start(plan)))
    finally:
        engine.close()
    assert [one.reports for _, one in got] == [one.reports for _, one in want]
    assert equal(got[-1][0].flat, want[-1][0].flat)


@pytest.mark.parametrize(
    ("settings", "beside", "words"),
    [
        ({"visits": 0}, {}, "visits must be at least 1"),
        ({"fair_share": 1.5}, {}, "fair_share is a share"),
        ({"reference": 0.0}, {}, "reference must be above 0"),
        ({"pace": -1.0}, {}, "pace must be 0 to 1e"),
        ({"snr": inf}, {}, "snr is in decibels"),
        ({"channels": 3}, {}, "sampler.channels = 3 and cohort = 4"),
        ({}, {"algorithms": [{"name": "fedbuff"}]}, "learns from whole rounds"),
    ],
)
def test_plans_that_cannot_be(settings: dict[str, Any], beside: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(sampler={"name": "bandit", **settings}, **beside)


def test_a_node_takes_part_no_more_often_than_a_sampler_that_learns_may_draw(
    points: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server alone can tell whom it draws: 4 rounds of 6 among 24 are once each at most."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "plugin"))
    sampler = "fedpeft_drift:LeastAsked"
    site = replace(points, plan=points_plan(sampler=sampler, cohort=6))
    plan, node = site.plan, node_of(site, tmp_path)
    assert dict(consent_to(site, "c000", site.data.clients).lines)["rounds"].startswith(
        "at most 1 of 4"
    )
    payload = encode_start(plan, start(plan, site.params()))

    def job(round: int) -> Job:
        seed = fold(round_seed(plan, round), "client", "c000")
        return Job(plan.run, round, "c000", "fit", seed, None, payload, 0)

    assert reason(node, job(2)) == "" == reason(node, job(2)), "in the same words again"
    assert "taken part in 1 round, of which the plan allows 1" in reason(node, job(3))
