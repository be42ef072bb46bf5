"""Merges of one round among which the clients choose."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import Recording, Tampering, last, on, points_plan, run

from fedpeft import PlanError
from fedpeft.algorithms.vote import PHASE, between, counted, merges
from fedpeft.codecs.dense import Dense
from fedpeft.core.objective import evaluate
from fedpeft.core.payloads import pack
from fedpeft.core.stores import Nowhere, load_tensors
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Reply, State, Update
from fedpeft.engines.processes import Processes
from fedpeft.oneshot.invitation import invite
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.runs.execute import execute, open_engine
from fedpeft.runs.folder import create, read_rounds

VOTE: dict[str, Any] = {"vote": [1.0, 0.25, 1.5], "cohort": 6, "rounds": 2}
SKEW: dict[str, Any] = {"partition": {"name": "dirichlet", "clients": 6, "alpha": 0.1}}


@pytest.fixture(scope="module")
def voting() -> Site:
    return open_site(points_plan(**VOTE, **SKEW))


def replies(*told: tuple[list[float], float]) -> Any:
    for number, (scores, weight) in enumerate(told):
        delta = {
            "scores": torch.tensor(scores, dtype=torch.float64),
            "weight": torch.tensor(weight, dtype=torch.float64),
        }
        yield Reply(f"c{number}", pack(Update(f"c{number}", delta), Dense()))


def test_the_best_by_all_examples_is_taken_and_of_equals_the_first() -> None:
    plan = points_plan(vote=[1.0, 0.5], weighting="uniform")
    choice = counted(plan, replies(([6, 5], 10), ([0, 2], 2), ([0, 0], 0)))
    assert (choice.number, choice.strength, choice.told["examples"]) == (
        0,
        0.5,
        12,
    )  # 7 of 12 against 6
    assert [one["score"] for one in choice.told["scores"]] == [0.5, 7 / 12]
    assert counted(plan, replies(([3, 3], 4))).strength == 1.0
    nobody = counted(plan, iter([Failure("c0", "away")]))
    assert (nobody.number, nobody.strength, nobody.told["failed"]) == (0, 1.0, {"c0": "away"})


def test_what_is_no_vote_is_named_and_not_counted() -> None:
    plan = points_plan(vote=[1.0, 0.5], weighting="uniform")
    bad: list[tuple[list[float], float]] = [
        ([float("nan"), 1], 2),
        ([1, 1], -1),
        ([1, 1, 1], 3),
        ([1, 2], 2),
    ]
    choice = counted(plan, replies(*bad))
    assert sorted(choice.told["failed"]) == ["c0", "c1", "c2"] and choice.told["examples"] == 2


def test_candidates_lie_on_the_line_and_measured_numbers_stay() -> None:
    begin = {
        "w": torch.tensor([1.0]),
        "n.running_var": torch.tensor([1.0]),
        "count": torch.tensor(1),
    }
    end = {"w": torch.tensor([3.0]), "n.running_var": torch.tensor([0.1]), "count": torch.tensor(9)}
    found = between(begin, end, 1.5)
    assert found["w"].item() == 4.0 and found["n.running_var"].item() == end["n.running_var"].item()
    assert found["count"].item() == 9 and equal(between(begin, end, 1.0), end)


def test_which_merges_there_are() -> None:
    assert list(merges(points_plan(vote=[1.0]))) == ["weights examples", "weights uniform"]
    rows = merges(points_plan(vote=[1.0], weighting="uniform", head_rows="class_counts"))
    assert list(rows) == ["weights uniform, rows class_counts", "weights uniform"]


def test_who_votes_has_set_its_examples_apart(voting: Site) -> None:
    whole = open_site(points_plan(**SKEW))
    for client in whole.data.clients:
        own, train, apart = (x.parts.get(client) for x in (whole.data, voting.data, voting.apart))
        assert voting.data.size(client) == len(own) - int(0.2 * len(own))
        assert torch.equal(own, train if apart is None else torch.cat([train, apart]).sort().values)


def test_the_round_ends_with_what_scores_best(voting: Site) -> None:
    """Against the scores of the candidates made by hand, from the same plan without a vote."""
    plan = replace(voting.plan, rounds=1)
    [(state, ledger)] = run(voting, plan)
    assert ledger.vote is not None and not ledger.note
    begun, apart, scores, ends = start(plan, voting.params()), voting.apart, [], []
    assert apart is not None
    for weighting in ("examples", "uniform"):
        [(end, _)] = run(voting, replace(plan, vote=None, weighting=weighting))
        for strength in plan.vote or ():
            ends.append(between(begun.params, end.params, strength))
            found = [
                evaluate(voting.task, voting.model, ends[-1], apart.held_out(client))["accuracy"]
                for client in apart.clients
            ]
            scores.append(sum(one.total for one in found) / sum(one.weight for one in found))
    assert [one["score"] for one in ledger.vote["scores"]] == scores
    assert equal(state.params, ends[scores.index(max(scores))]) and len(set(scores)) > 1


def test_bytes_are_counted_and_every_engine_agrees(voting: Site) -> None:
    plan = replace(voting.plan, head_rows="class_counts")
    engine = Recording(on(voting, plan))
    here = list(federate(plan, engine, start(plan, voting.params())))
    asked = [job for job in engine.jobs if job.phase == PHASE]
    assert len(asked) == 2 * 6 and sum(len(job.payload) for job in engine.jobs) == sum(
        b.bytes_down for _, b in here
    )
    sent = [len(reply.payload) for reply in engine.replies if isinstance(reply, Reply)]
    assert sum(sent) == sum(ledger.bytes_up for _, ledger in here)
    processes = Processes(replace(voting, plan=plan), Nowhere(), 1)
    try:
        there = list(federate(plan, processes, start(plan, voting.params())))
    finally:
        processes.close()
    assert equal(last(here), last(there)) and [b for _, b in here] == [b for _, b in there]


def test_a_voter_that_fails_loses_its_vote_alone(voting: Site) -> None:
    plan, first = replace(voting.plan, rounds=1), voting.data.clients[0]
    seen: list[str] = []

    def second(reply: Any) -> Any:
        seen.append(reply.client)
        return reply if len(seen) == 1 else Failure(reply.client, "away")

    [(_, ledger)] = federate(
        plan, Tampering(on(voting, plan), {first: second}), start(plan, voting.params())
    )
    assert (
        ledger.vote is not None
        and ledger.vote["failed"] == {first: "away"}
        and first in ledger.weights
    )
    assert not ledger.failed


def test_a_resume_is_not_noticed_and_the_rounds_tell_of_the_vote(
    voting: Site, tmp_path: Path
) -> None:
    ends: list[Any] = []
    for stops in ([2], [1, 1]):
        folder = create(voting.plan, tmp_path / str(len(stops)))
        for rounds in stops:
            for _ in zip(
                range(rounds), execute(folder, voting, open_engine(folder, voting)), strict=False
            ):
                pass
        ends.append(load_tensors(folder.checkpoint)[0])
        assert all(len(line["vote"]["scores"]) == 6 for line in read_rounds(folder))
    assert equal(*ends)


def test_with_too_few_replies_there_is_nothing_to_choose(voting: Site) -> None:
    plan = replace(voting.plan, min_replies=6, rounds=1)
    harm = {voting.data.clients[0]: lambda reply: Failure(reply.client, "away")}
    begun = start(plan, voting.params())
    [(state, ledger)] = federate(plan, Tampering(on(voting, plan), harm), begun)
    assert (
        isinstance(state, State)
        and equal(state.params, begun.params)
        and ledger.vote is None
        and ledger.note
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vote": []}, "positive strengths, each once"),
        ({"vote": [1.0, 1.0]}, "positive strengths, each once"),
        ({"vote": [-1.0]}, "positive strengths, each once"),
        ({"vote": None, "vote_share": 0.2}, "nobody votes"),
        ({"vote_share": 1.0}, "between 0 and 1"),
        ({"personal": ["*"]}, "that all clients have alike"),
        ({"buffer": 2}, "have no rounds"),
        ({"aggregator": "flora"}, "hold only as they are"),
        (
            {
                "local": {"name": "dp_sgd", "noise_multiplier": 1},
                "weighting": "uniform",
                "delta": 0.1,
            },
            "how well",
        ),
        ({"exchange": {"name": "secure", "threshold": 4}, "weighting": "uniform"}, "how well"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**{**VOTE, **changes})


def test_a_file_from_each_client_is_no_vote(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="second message"):
        invite(points_plan(vote=[1.0], rounds=1), tmp_path / "study")
