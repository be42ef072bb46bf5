"""What an owner agreed to holds for being measured too, on nodes with data of their own."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rounds import points_plan
from test_owner_evaluation import POINTS
from town import TOKEN

from fedpeft.core.conversation import PARAMS, Message
from fedpeft.core.seeds import fold
from fedpeft.core.types import Job
from fedpeft.deploy.consent import consent_to
from fedpeft.deploy.node import Node
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import PlanError
from fedpeft.evaluators.owners import PHASE
from fedpeft.plan.calibration import round_seed
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.runs.execute import execute
from fedpeft.runs.folder import create
from fedpeft.wire.payloads import encode_message
from tools.curious_questions import pack_job

CLIENT = "c000"


@pytest.fixture(scope="module")
def site() -> Site:
    return open_site(points_plan(**{**POINTS, "rounds": 3, "evaluate_every": 2}))


def node_of(site: Site, folder: Path, **terms: Any) -> Node:
    return Node(site, CLIENT, folder, lambda words: None, **terms)


def asked(site: Site, round: int, moved: float = 0.0) -> Job:
    """The question of a server how a model does after a round."""
    plan, begun = site.plan, start(site.plan, site.params())
    params = {name: x + moved for name, x in begun.params.items()}
    payload = encode_message(Message({PARAMS: params}), plan.downlink)
    seed = fold(round_seed(plan, round), "client", CLIENT)
    return Job(plan.run, round, CLIENT, PHASE, seed, None, payload, 1)


def reason(node: Node, job: Job) -> str:
    said = node.answer(pack_job(job, TOKEN, node.terms))
    return str(said.head.get("reason", "")) if said.head["kind"] == "failed" else ""


def test_a_server_may_ask_in_the_rounds_of_the_plan_and_once_after_the_last(
    site: Site, tmp_path: Path
) -> None:
    """Rounds 1 and 2 (from 0) are evaluated, as the second of each two and as the last."""
    node = node_of(site, tmp_path)
    assert "the plan asks for it in round 1, 2, 3 alone" in reason(node, asked(site, 0))
    assert "the plan has 3 rounds" in reason(node, asked(site, 4))
    for round in (1, 2, 3):
        assert reason(node, asked(site, round)) == ""
        assert reason(node, asked(site, round)) == "", "in the same words again"
        assert "was answered already" in reason(node, asked(site, round, moved=0.5))


def test_a_plan_without_it_does_not_answer_it(site: Site, tmp_path: Path) -> None:
    plain = points_plan(**{**POINTS, "evaluate_at": ["server"], "rounds": 3})
    told = reason(node_of(replace(site, plan=plain), tmp_path), asked(replace(site, plan=plain), 1))
    assert "evaluate" in told and "no other is answered" in told


def test_an_owner_may_decline_and_trains_all_the_same(site: Site, tmp_path: Path) -> None:
    node = node_of(site, tmp_path, declines=frozenset({PHASE}))
    assert "the owner of this node declines" in reason(node, asked(site, 1))
    with pytest.raises(PlanError, match="'story' is no message of this plan"):
        node_of(site, tmp_path, declines=frozenset({"story"}))
    with pytest.raises(PlanError, match="is what a node is for"):
        node_of(site, tmp_path, declines=frozenset({"fit"}))


def test_the_screen_says_what_is_told_unless_it_is_declined(site: Site) -> None:
    clients = site.data.clients
    text = dict(consent_to(site, CLIENT, clients).lines)
    assert "evaluate" in text["messages"] and "how many held-out examples" in text["not hidden"]
    text = dict(consent_to(site, CLIENT, clients, declined=[PHASE]).lines)
    assert "evaluate" not in text["messages"] and "held-out" not in text["not hidden"]


@pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed")
def test_nodes_measure_as_one_process_does_and_one_declines(site: Site, tmp_path: Path) -> None:
    from town import engine, town

    grid, said = town(site, tmp_path), []  # type: ignore[var-annotated]
    made = engine(site, grid, said, 30)
    made.gather()
    got = list(federate(site.plan, made, start(site.plan, site.params()), classes=site.classes))
    want = list(federate(site.plan, InProcess(site), start(site.plan, site.params())))
    assert [ledger for _, ledger in got] == [ledger for _, ledger in want]
    declining = node_of(site, tmp_path / "again", declines=frozenset({PHASE}))
    grid = town(site, tmp_path / "more")
    grid.nodes[7] = lambda envelope: [declining.answer(envelope)]
    made = engine(replace(site, plan=replace(site.plan)), grid, said, 30)
    made.gather()
    folder = create(site.plan, tmp_path / "run")
    for record in execute(folder, site, made):
        assert not record.failed and not record.note
        if record.round == 1:
            continue
        owners = record.reports["owners"]
        assert list(owners["failed"]) == [CLIENT] and "declines" in owners["failed"][CLIENT]
        assert CLIENT not in owners["examples"] and len(owners["examples"]) == 3
