"""What a node's owner sees without the server: rounds, bytes, ε and refusals, by hand."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rounds import points_plan
from running import fedpeft
from test_agreement import OTHER, job_of, node_of, said, site_of
from test_watch_pages import ask, text_of
from town import TOKEN

from fedpeft.core.accounting import epsilon
from fedpeft.core.numbering import number_ranges
from fedpeft.core.units import say_epsilon
from fedpeft.deploy.answers import ANSWERS
from fedpeft.deploy.consent import Consent
from fedpeft.deploy.refusals import LONGEST, REASONS, REFUSALS, Refusals
from fedpeft.deploy.status import FACTS, is_node, keep_facts, read_status
from fedpeft.errors import RunError
from fedpeft.watching.serving import serving
from fedpeft.watching.showing import pages_of_node
from fedpeft.wire.sockets import Envelope
from tools.curious_questions import pack_job

NOISE = {"stages": [{"name": "local_dp", "clip_norm": 1.0, "noise_multiplier": 2.0}]}
DELTA = {"privacy": {"delta": 1e-5, "accountant": "rdp"}, "weighting": "uniform"}


def test_rounds_bytes_and_refusals_are_those_that_were(tmp_path: Path) -> None:
    site = site_of()
    node = node_of(site, tmp_path)
    keep_facts(tmp_path, site.plan, "c000")
    Consent((("model", "tuned with 'full'"),)).keep(tmp_path / site.plan.fingerprint)
    sent = [len(said(node, job_of(site, k)).body) for k in (0, 2)]
    said(node, job_of(site))  # the same words: the same bytes, counted once
    for moved in (0.1, 0.2):
        assert said(node, job_of(site, moved=moved)).head["kind"] == "failed"
    said(node, job_of(site), OTHER)
    [status] = read_status(tmp_path)
    assert (status.fingerprint, status.problem) == (site.plan.fingerprint, "")
    assert status.facts["client"] == "c000" and status.facts["rounds"] == 3
    [run] = status.runs.values()
    assert list(status.runs) == [TOKEN] and run.rounds == {"fit": {1, 3}}
    assert (run.sent, run.unsized, status.trained, status.runs_agreed) == (sum(sent), 0, 2, 1)
    assert status.spent == "none is accounted: the plan adds no noise that hides anything"
    assert [one.count for one in status.refusals] == [2, 1]
    assert "answered already" in status.refusals[0].reason
    assert "its owner agreed to 1" in status.refusals[1].reason
    assert status.agreed == [("model", "tuned with 'full'")]
    node_of(site, tmp_path, again=True)
    assert read_status(tmp_path)[0].runs_agreed == 2


def test_epsilon_is_of_the_rounds_answered_and_not_of_all_planned(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    site = site_of(**NOISE, **DELTA)
    node = node_of(site, tmp_path)
    keep_facts(tmp_path, site.plan, "c000")
    assert read_status(tmp_path)[0].spent.startswith("0 at delta = 1e-05 for one client, after 0")
    for k in (0, 1):
        assert said(node, job_of(site, k)).head["kind"] == "reply"
    part = site.plan.private_part
    assert part is not None
    [status] = read_status(tmp_path)
    bound = say_epsilon(epsilon(part.event, 2, 1e-5, "rdp"))
    assert status.spent == (
        f"{bound} at delta = 1e-05 for one {part.event.unit}, after 2 rounds of training"
    )
    facts = tmp_path / site.plan.fingerprint / FACTS
    values = json.loads(facts.read_text())
    values["privacy"]["event"]["noise_multiplier"] = 0.0
    facts.write_text(json.dumps(values))
    assert read_status(tmp_path)[0].spent.startswith("not bounded: the plan's noise gives no")
    facts.write_text(json.dumps({**values, "privacy": {"event": {"unit": 1}}}))
    assert read_status(tmp_path)[0].spent.startswith("cannot be computed")
    facts.unlink()
    assert "not known" in read_status(tmp_path)[0].spent


def test_every_reason_for_no_answer_is_kept(tmp_path: Path) -> None:
    """Another plan, an envelope without sense, and training that fails."""
    site = site_of(local={"batch_size": 16, "lr": 1e38, "epochs": 5})
    node = node_of(site, tmp_path)
    other = pack_job(job_of(site), TOKEN, {**node.terms, "plan": "another"})
    node.answer(other)
    node.answer(Envelope({"kind": "\x1b[2Jodd", **node.terms}))
    said(node, job_of(site))
    reasons = [one.reason for one in Refusals(tmp_path / site.plan.fingerprint).read()[0]]
    assert "the plan here is not the run's" in reasons[0]
    assert "has no sense here" in reasons[1] and "\x1b" not in "".join(reasons)
    assert "training diverged" in reasons[2]


def test_a_server_cannot_fill_the_disk_with_reasons(tmp_path: Path) -> None:
    refusals = Refusals(tmp_path)
    for number in range(REASONS + 5):
        refusals.note(f"reason {number} " + "x" * 1000)
    refusals.note("reason 0 " + "x" * 1000)
    known, more = refusals.read()
    assert (len(known), more, known[0].count) == (REASONS, 5, 2)
    assert max(len(one.reason) for one in known) == LONGEST
    assert (tmp_path / REFUSALS).stat().st_mode & 0o077 == 0
    (tmp_path / REFUSALS).write_text("damaged")
    refusals.note("anew")
    assert [one.reason for one in refusals.read()[0]] == ["anew"]


def test_a_full_disk_keeps_no_node_from_answering(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    Refusals(tmp_path / "file").note("nowhere to write it")


def test_answers_of_an_earlier_version_and_damaged_ones_are_told(tmp_path: Path) -> None:
    place = tmp_path / "0123456789abcdef"
    place.mkdir()
    old = {"run": TOKEN, "round": 0, "phase": "fit", "digest": "d"}
    lines = [
        old,
        {**old, "reply": "r"},
        {**old, "round": 1, "reply": "r", "bytes": 70, "at": "now"},
    ]
    (place / ANSWERS).write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"run": "cut')
    [status] = read_status(tmp_path)
    [run] = status.runs.values()
    assert (run.sent, run.unsized, run.rounds, run.last) == (70, 1, {"fit": {1, 2}}, "now")
    assert (place / ANSWERS).read_text().endswith("cut")  # looking changes nothing
    shown = fedpeft("watch", tmp_path, "--once")
    assert "70 (70 B), each answer counted once, and 1 answers of an earlier" in " ".join(
        shown.stdout.split()
    )
    (place / ANSWERS).write_text('{"run": 1}\n')
    assert read_status(tmp_path)[0].problem == f"{ANSWERS} is damaged from line 1 on"


def test_the_owner_sees_it_in_the_terminal_and_as_a_page(tmp_path: Path) -> None:
    site, folder = site_of(), tmp_path / "nodes" / "c000"
    node = node_of(site, folder)
    keep_facts(folder, site.plan, "c000<b>")
    for k in range(3):
        said(node, job_of(site, k))
    said(node, replace(job_of(site), round=7))
    shown = fedpeft("watch", folder, "--once")
    words = " ".join(shown.stdout.split())
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert (
        f"run {TOKEN[:8]} fit: round 1-3" in words and "rounds trained 3; the plan has 3" in words
    )
    assert "not answered 1x, last 2" in words
    assert "asked for round 7, and the plan has 3 rounds" in words
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    with serving(pages_of_node(folder), 0, "127.0.0.1") as address:
        answer, page = ask(address)
        assert answer.status == 200 and ask(address, "/other")[0].status == 404
    seen = text_of(page)
    assert seen.startswith("c000<b> c000<b> What this node did") and "c000<b>" not in page
    assert f"Answered run message rounds bytes of the run {TOKEN[:8]} fit 1-3" in seen
    assert "Not answered times why first last 1 asked for round 7" in seen
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
    tracked = fedpeft("watch", folder, "--once", "--track", "tensorboard")
    assert tracked.exit_code == 2 and "the folder of a node" in tracked.stderr


def test_what_is_no_node_is_refused(tmp_path: Path) -> None:
    assert not is_node(tmp_path) and not is_node(tmp_path / "missing")
    with pytest.raises(RunError, match="is no node's folder"):
        read_status(tmp_path)
    site = site_of()
    keep_facts(tmp_path, site.plan, "c000")
    assert is_node(tmp_path) and read_status(tmp_path)[0].runs == {}
    assert (tmp_path / site.plan.fingerprint / FACTS).stat().st_mode & 0o077 == 0


def test_a_folder_of_nodes_names_them(tmp_path: Path) -> None:
    plan = site_of().plan
    for client in ("a", "b"):
        keep_facts(tmp_path / client, plan, client)
    (tmp_path / "notes").mkdir()
    told = fedpeft("watch", tmp_path, "--once")
    assert told.exit_code == 2
    assert f"`fedpeft watch {tmp_path / 'a'}` or `fedpeft watch {tmp_path / 'b'}`" in told.stderr
    assert "notes" not in told.stderr


def test_a_later_plan_comes_first(tmp_path: Path) -> None:
    for name, seed, at in (("one", 1, 100), ("two", 2, 200)):
        plan = points_plan(name=name, seed=seed)
        keep_facts(tmp_path, plan, "c000")
        os.utime(tmp_path / plan.fingerprint / FACTS, (at, at))
    assert [status.facts["plan"] for status in read_status(tmp_path)] == ["two", "one"]


def test_ranges_by_hand() -> None:
    assert number_ranges({3, 1, 2, 7, 9, 10}) == "1-3, 7, 9-10"
    assert number_ranges([5]) == "5" and number_ranges([]) == ""
