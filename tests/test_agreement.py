"""What a node has answered, it remembers: across restarts, failures and runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rounds import points_plan
from town import TOKEN

from fedpeft.core.seeds import fold
from fedpeft.core.types import Job, State
from fedpeft.deploy.answers import ANSWERS, REPLIES
from fedpeft.deploy.node import Node
from fedpeft.errors import PlanError, RunError
from fedpeft.plan.calibration import round_seed
from fedpeft.rounds.loop import start
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site, open_site
from fedpeft.wire.sockets import Envelope
from tools.curious_questions import pack_job

OTHER = TOKEN[::-1]
THREE: dict[str, Any] = {
    "partition": {"name": "dirichlet", "clients": 3, "alpha": 10.0},
    "cohort": 3,
    "rounds": 3,
}


def site_of(**changes: Any) -> Site:
    return open_site(points_plan(**{**THREE, **changes}))


def node_of(site: Site, folder: Path, **terms: Any) -> Node:
    return Node(site, "c000", folder, lambda words: None, **terms)


def job_of(site: Site, round: int = 0, moved: float = 0.0) -> Job:
    """What the plan's server asks in a round, from parameters that were moved by so much."""
    plan, begun = site.plan, start(site.plan, site.params())
    params = {name: x + moved for name, x in begun.params.items()}
    payload = encode_start(plan, State(round, params, begun.shared))
    seed = fold(round_seed(plan, round), "client", "c000")
    return Job(plan.run, round, "c000", "fit", seed, None, payload)


def said(node: Node, job: Job, token: str = TOKEN) -> Envelope:
    return node.answer(pack_job(job, token, node.terms))


def test_a_restart_forgets_no_answer(tmp_path: Path) -> None:
    site = site_of()
    first = said(node_of(site, tmp_path), job_of(site))
    assert first.head["kind"] == "reply"
    again = node_of(site, tmp_path)
    assert said(again, job_of(site)) == first
    assert "answered already" in said(again, job_of(site, moved=0.1)).head["reason"]
    assert "answered 1 run(s)" in said(again, job_of(site), OTHER).head["reason"]
    agreed = node_of(site, tmp_path, again=True)
    assert said(agreed, job_of(site, moved=0.1), OTHER).head["kind"] == "reply"
    assert said(agreed, job_of(site)) == first


def test_the_same_words_get_the_same_bytes_without_training_again(tmp_path: Path) -> None:
    site, other = site_of(), site_of(data={"name": "parts:Blobs", "examples": 120})
    first = said(node_of(site, tmp_path), job_of(site))
    same = replace(other, plan=site.plan)  # other examples under the same plan
    assert said(node_of(same, tmp_path), job_of(site)) == first
    [reply] = (tmp_path / site.plan.fingerprint / REPLIES).iterdir()
    assert reply.read_bytes() == first.body and reply.stat().st_mode & 0o077 == 0
    reply.unlink()
    reason = said(node_of(same, tmp_path), job_of(site)).head["reason"]
    assert "kept no longer and would be other bytes now" in reason
    assert said(node_of(site, tmp_path), job_of(site)) == first


def test_answers_of_one_round_are_kept(tmp_path: Path) -> None:
    site = site_of()
    node = node_of(site, tmp_path)
    first = [said(node, job_of(site, k)) for k in range(3)]
    [reply] = (tmp_path / site.plan.fingerprint / REPLIES).iterdir()
    assert reply.read_bytes() == first[2].body
    assert [said(node, job_of(site, k)) for k in range(3)] == first  # by training once more


def test_training_that_fails_counts_as_answered(tmp_path: Path) -> None:
    """That it fails tells something: a server could else look for the parameters where it does."""
    site = site_of(local={"batch_size": 16, "lr": 1e38, "epochs": 5})
    node = node_of(site, tmp_path)
    failed = said(node, job_of(site))
    assert "training diverged" in failed.head["reason"]
    assert said(node, job_of(site)) == failed
    assert "answered already" in said(node, job_of(site, moved=0.1)).head["reason"]
    assert (
        "answered already" in said(node_of(site, tmp_path), job_of(site, moved=0.1)).head["reason"]
    )


def test_a_message_that_is_refused_uses_nothing_up(tmp_path: Path) -> None:
    site = site_of()
    node, job = node_of(site, tmp_path), job_of(site)
    damaged = replace(job, payload=job.payload[:-1])
    assert "corrupt or truncated" in said(node, damaged).head["reason"]
    assert said(node, job).head["kind"] == "reply"


def test_a_sum_tells_no_loss_where_training_fails(tmp_path: Path) -> None:
    secure = {"exchange": {"name": "secure", "threshold": 2}, "weighting": "uniform"}
    for changes, told in (({}, True), (secure, False)):
        site = site_of(local={"batch_size": 16, "lr": 1e38, "epochs": 5}, **changes)
        reason = said(node_of(site, tmp_path / str(told)), job_of(site)).head["reason"]
        assert ("mean loss" in reason) is told and "training diverged" in reason


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"run": 1}', b'{"run":1,"round":"x","phase":1}'])
def test_a_damaged_list_of_answers_is_not_taken_for_an_empty_one(
    tmp_path: Path, line: bytes
) -> None:
    site = site_of()
    path = tmp_path / site.plan.fingerprint / ANSWERS
    path.parent.mkdir()
    path.write_bytes(line + b"\n")
    with pytest.raises(RunError, match="is damaged, and without it nobody can tell"):
        node_of(site, tmp_path)


def test_what_a_kill_cut_short_was_not_sent(tmp_path: Path) -> None:
    site = site_of()
    first = said(node_of(site, tmp_path), job_of(site))
    path = tmp_path / site.plan.fingerprint / ANSWERS
    *whole, _ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + b'{"run": "0123')
    for _ in range(2):  # what is added afterwards is a line of its own
        assert said(node_of(site, tmp_path), job_of(site)) == first


def test_a_plan_of_files_has_no_node(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="is of files that owners hand in"):
        node_of(site_of(exchange="masked_files", weighting="uniform", rounds=1), tmp_path)
