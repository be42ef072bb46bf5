"""A rank that shrinks over the rounds (SA-FedLoRA)."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from rounds import Recording, on, run
from test_ranks import PLAN

from fedpeft import PlanError, open_site, read_plan
from fedpeft.core.low_rank import cut, is_factor, pairs
from fedpeft.core.tensors import equal
from fedpeft.plan.reading import plan_at
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site
from fedpeft.routing.annealed import Annealed
from fedpeft.terms.prox import Prox

OWN = {key: x for key, x in PLAN.items() if key != "ranks"} | {"aggregator": "flexlora"}
COURSE = {"name": "annealed", "start": 8, "to": 2, "warm": 1, "until": 4}


@pytest.fixture(scope="module")
def site() -> Site:
    return open_site(read_plan({**OWN, "rounds": 5}))


def test_the_ranks_of_ten_rounds() -> None:
    """r₀ = 16 and r_T = 4 with two rounds before and two after: 4 + 12·(5/6)³ = 10.9 in round 3,
    then 7.6, 5.5, 4.4 and 4.06, each rounded up."""
    course = Annealed(start=16, to=4, warm=2, until=8)
    assert [course.rank(k) for k in range(10)] == [16, 16, 16, 11, 8, 6, 5, 5, 4, 4]
    assert course.ranks == (16, 11, 8, 6, 5, 4)


@pytest.mark.parametrize("round", [0, 1, 5, 9])
def test_a_course_without_a_length(round: int) -> None:
    assert Annealed(start=8, to=8, warm=0, until=9).rank(round) == 8
    assert Annealed(start=8, to=2, warm=5, until=5).rank(round) == (8 if round < 5 else 2)
    assert Annealed(start=8, to=2, warm=0, until=0).rank(round) == 2


def test_whole_ranks_are_not_rounded_up() -> None:
    """A third of 1000 rounds: 1 + 27·(2/3)³ is 9, which floats make 9.000000000000002."""
    assert Annealed(start=28, to=1, warm=0, until=999).rank(333) == 9


@pytest.mark.parametrize(
    "course",
    [{**COURSE, "warm": 3, "until": 3}, {**COURSE, "to": 8, "until": 3}],
    ids=["never", "to the same"],
)
def test_without_annealing_it_is_flexlora_to_the_bit(course: dict[str, Any], site: Site) -> None:
    plain = read_plan({**OWN, "rounds": 3})
    same = read_plan({**OWN, "rounds": 3, "routing": [course]})
    assert equal(run(site, plain)[-1][0].flat, run(site, same)[-1][0].flat)


def test_all_clients_receive_and_send_the_rank_of_the_round(site: Site) -> None:
    """1 + 3 rounds of fall: ranks 8, 8, 2 + 6·8/27 = 3.8, 2 + 6/27 = 2.2, 2."""
    plan = read_plan({**OWN, "rounds": 5, "routing": [COURSE]})
    engine = Recording(on(site, plan))
    rounds = list(federate(plan, engine, start(plan, site.params())))
    assert not any(ledger.failed or ledger.note for _, ledger in rounds)
    came: dict[int, set[int]] = {}
    for job in engine.jobs:
        factors = {n: x for n, x in plan.downlink.decode(job.payload).items() if is_factor(n)}
        came.setdefault(job.round, set()).update(min(x.shape) for x in factors.values())
    assert came == {0: {8}, 1: {8}, 2: {4}, 3: {3}, 4: {2}}
    for key in ("down", "up"):
        most = [max(getattr(ledger, key).values()) for _, ledger in rounds]
        assert most == sorted(most, reverse=True) and most[-1] < most[1]


def test_a_lower_rank_is_the_nearest_one(site: Site) -> None:
    """What a client receives of a state is the best of its rank: the singular values' first."""
    plan = read_plan({**OWN, "rounds": 2})
    params = run(site, plan)[-1][0].params
    [(a, b)] = pairs(params).values()
    u, s, vt = torch.linalg.svd(params[b].double() @ params[a].double())
    for rank in (1, 3, 8):
        less = cut(params, rank)
        nearest = u[:, :rank] @ torch.diag(s[:rank]) @ vt[:rank]
        torch.testing.assert_close(less[b].double() @ less[a].double(), nearest, atol=1e-6, rtol=0)


def test_of_clients_ranks_and_the_rounds_the_lower_one_holds() -> None:
    dealt = {"name": "ranks", "ranks": [3, 8]}
    plan = read_plan({**OWN, "rounds": 5, "routing": [dealt, COURSE]})
    ranks = [[plan.view(name, k, ["a", "b"]).rank for name in "ab"] for k in range(5)]
    assert ranks == [[3, 8], [3, 8], [3, 4], [3, 3], [2, 2]]


def test_both_stages_are_one_plan(site: Site) -> None:
    """SA-FedLoRA's first stage is a phase that holds clients near what they received."""
    near = {"until": 2, "set": ["local.correction={name='prox', mu=0.5}"]}
    plan = read_plan({**OWN, "rounds": 5, "routing": [COURSE], "phase": [near]})
    local: list[Any] = [plan_at(plan, k).local for k in range(5)]
    assert [one.correction.mu if isinstance(one.correction, Prox) else 0 for one in local] == [
        *(0.5, 0.5, 0, 0, 0)
    ]
    rounds = run(site, plan)
    assert not any(ledger.failed or ledger.note for _, ledger in rounds)
    free = run(site, replace(plan, phase=()))
    assert not equal(rounds[0][0].params, free[0][0].params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregator": "fedit"}, 'with annealed set aggregator = "flexlora"'),
        ({"aggregator": "flora"}, 'with annealed set aggregator = "flexlora"'),
        ({"aggregator": "hetlora"}, "FlexLoRA|flexlora"),
        ({"aggregator": "mean"}, "leaves the rows of low-rank factors in no order"),
        ({"local": {"restart_schedule": False}}, "nothing can be remembered"),
        (
            {"uplink": {"name": "topk", "density": 0.1}, "stages": ["error_feedback"]},
            "nothing can be remembered of the last: leave out ErrorFeedback",
        ),
        ({"method": {**PLAN["method"], "rank": 4}}, "must be at most method.rank = 4"),
        (
            {"rounds": 3},
            "Annealed with until = 4 needs 4 rounds at least, and the plan has 3: lower until, or",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        read_plan({**OWN, "rounds": 5, "routing": [COURSE], **changes})


@pytest.mark.parametrize(
    ("course", "words"),
    [
        ({"to": 9}, "start no less than to"),
        ({"to": 0}, "must be at least 1"),
        ({"warm": -1}, "warm must be at least 0"),
        ({"until": 0}, "until no less"),
    ],
)
def test_a_course_that_is_none(course: dict[str, int], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        read_plan({**OWN, "rounds": 5, "routing": [{**COURSE, **course}]})
