"""Merges of one round among which the clients choose."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import Recording, Tampering, last, on, points_plan, round_of, run

from fedpeft import PlanError
from fedpeft.aggregators.class_rows import ClassRows
from fedpeft.algorithms.vote import PHASE, Choice, Vote, interpolate
from fedpeft.compute.scores import evaluate
from fedpeft.core.conversation import Answer, Message
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Reply, State
from fedpeft.engines.processes import Processes
from fedpeft.oneshot.invitation import invite
from fedpeft.plan.tables import AdmissionRules
from fedpeft.rounds.admission import Admission
from fedpeft.rounds.loop import Ledger, federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.runs.execute import execute, open_engine
from fedpeft.runs.folder import create, read_rounds
from fedpeft.storage.client_memory import Nowhere
from fedpeft.storage.files import load_tensors
from fedpeft.wire.payloads import encode_answer

VOTE: dict[str, Any] = {"vote": [1.0, 0.25, 1.5], "cohort": 6, "rounds": 2}
SKEW: dict[str, Any] = {"partition": {"name": "dirichlet", "clients": 6, "alpha": 0.1}}


@pytest.fixture(scope="module")
def voting() -> Site:
    return open_site(points_plan(**VOTE, **SKEW))


def said(scores: list[float], weight: float) -> Message:
    told = {
        "scores": torch.tensor(scores, dtype=torch.float64),
        "weight": torch.tensor(weight, dtype=torch.float64),
    }
    return Message({PHASE: told})


def counted(*told: tuple[list[float], float], silent: int = 0) -> Choice:
    """The choice of a vote on one merge with the strengths 1 and 0.5."""
    vote = Vote((1.0, 0.5))
    messages = [said(*one) for one in told]
    names = [f"c{k}" for k in range(len(told) + silent)]
    ask = vote._ask(State(0, {}), [State(1, {})], dict.fromkeys(names))
    answers = [Answer(name, one) for name, one in zip(names, messages, strict=False)]
    return vote._count(["weights uniform"], iter(answers), ask)


def test_the_best_by_all_examples_is_taken_and_of_equals_the_first() -> None:
    choice = counted(([6, 5], 10), ([0, 2], 2), ([0, 0], 0))
    # 7 of 12 against 6.
    assert (choice.number, choice.strength, choice.told["examples"]) == (0, 0.5, 12)
    assert [one["score"] for one in choice.told["scores"]] == [0.5, 7 / 12]
    assert counted(([3, 3], 4)).strength == 1.0
    nobody = counted(silent=1)
    assert (nobody.number, nobody.strength, nobody.told["failed"]) == (0, 1.0, ["c0"])


@pytest.mark.parametrize(
    ("scores", "weight", "words"),
    [
        ([float("nan"), 1], 2, "not finite"),
        ([1, 1], -1, "fewer examples than none"),
        ([1, 1, 1], 3, "came as"),
        ([1, 2], 2, ""),
    ],
)
def test_what_is_no_vote_is_named_and_not_counted(
    scores: list[float], weight: float, words: str
) -> None:
    plan, vote, ledger = points_plan(vote=[1.0, 0.5]), Vote((1.0, 0.5)), Ledger(0)
    ask = vote._ask(State(0, {}), [State(1, {})], {"c0": None})
    payload = encode_answer(said(scores, weight), plan.lossless)
    message = Admission.of(plan, State(0, {}), ledger).decode(ask, "c0", payload)
    assert (message is None) == bool(words)
    assert words in ledger.failed.get("c0", "")


def test_candidates_lie_on_the_line_and_measured_numbers_stay() -> None:
    begin = {
        "w": torch.tensor([1.0]),
        "n.running_var": torch.tensor([1.0]),
        "count": torch.tensor(1),
    }
    end = {"w": torch.tensor([3.0]), "n.running_var": torch.tensor([0.1]), "count": torch.tensor(9)}
    found = interpolate(begin, end, 1.5)
    assert found["w"].item() == 4.0 and found["n.running_var"].item() == end["n.running_var"].item()
    assert found["count"].item() == 9 and equal(interpolate(begin, end, 1.0), end)


def test_which_merges_there_are() -> None:
    def merges(**changes: Any) -> list[str]:
        plan = points_plan(vote=[1.0], **changes)
        whole = round_of(plan, State(0, {}), ["a"], Ledger(0))
        return list(Vote((1.0,))._merges(whole))

    assert merges() == ["weights examples", "weights uniform"]
    rows = merges(weighting="uniform", head_rows="class_counts")
    assert rows == ["weights uniform, rows class_counts", "weights uniform"]


def test_who_votes_has_set_its_examples_apart(voting: Site) -> None:
    whole = open_site(points_plan(**SKEW))
    for client in whole.data.clients:
        every: Any = (whole.data, voting.data, voting.apart)
        own, train, apart = (x.parts.get(client) for x in every)
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
        [(end, _)] = run(voting, replace(plan, algorithms=(), weighting=weighting))
        for strength in VOTE["vote"]:
            ends.append(interpolate(begun.params, end.params, strength))
            found = [
                evaluate(voting.task, voting.model, ends[-1], apart.training(client))["accuracy"]
                for client in apart.clients
            ]
            scores.append(sum(one.total for one in found) / sum(one.weight for one in found))
    assert [one["score"] for one in ledger.vote["scores"]] == scores
    assert equal(state.params, ends[scores.index(max(scores))]) and len(set(scores)) > 1


def test_bytes_are_counted_and_every_engine_agrees(voting: Site) -> None:
    plan = replace(voting.plan, aggregator=ClassRows())
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
    assert ledger.vote is not None and ledger.vote["failed"] == [first]
    assert first in ledger.weights and not ledger.failed
    assert ledger.note == f"{first} counts, but did not answer all: away"


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
    plan = replace(voting.plan, admission=AdmissionRules(min_replies=6), rounds=1)
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
        ({"vote": []}, "must be positive, each once"),
        ({"vote": [1.0, 1.0]}, "must be positive, each once"),
        ({"vote": [-1.0]}, "must be positive, each once"),
        ({"vote": None, "vote_share": 0.2}, "nobody votes"),
        ({"vote_share": 1.0}, "between 0 and 1"),
        ({"personal": ["*"]}, "that all clients have alike"),
        ({"buffer": 2}, "asynchronous steps have no"),
        ({"aggregator": "flora"}, "hold only as they are"),
        (
            {
                "local": {"name": "dp_sgd", "noise_multiplier": 1},
                "weighting": "uniform",
                "delta": 0.1,
            },
            "tells the server",
        ),
        (
            {"exchange": {"name": "secure", "threshold": 4}, "weighting": "uniform"},
            "which sums hide",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**{**VOTE, **changes})


def test_a_file_from_each_client_is_no_vote(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="asks each client more than once"):
        invite(points_plan(vote=[1.0], rounds=1), tmp_path / "study")
