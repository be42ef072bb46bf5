"""What the one who submitted a run is told while nothing comes of it."""

import logging
import re
import sys
from itertools import chain, repeat
from pathlib import Path
from typing import Any, cast

import pytest

from fedpeft.deploy import submit
from fedpeft.deploy.doctor import nodes
from fedpeft.deploy.server import say_to_followers, serve
from fedpeft.deploy.submit import end_file
from fedpeft.errors import FedpeftError, RunError, reason_of
from fedpeft.runs.folder import RunFolder, lock_run, write_json
from fedpeft.runs.summary import UNFINISHED


def test_a_run_that_stays_pending_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(tmp_path / "federation.json", {"federation": "here", "run": 7})
    states = chain(repeat("pending", 5), repeat("finished:failed"))
    monkeypatch.setattr(submit, "status", lambda folder: next(states))
    monkeypatch.setattr(submit, "ASK", 0.01)
    monkeypatch.setattr(submit, "POLL", 0.02)
    with caplog.at_level(logging.WARNING), pytest.raises(RunError, match="the server's part ended"):
        list(submit.follow(RunFolder(tmp_path), print))
    [said] = caplog.messages
    assert "flower-superexec" in said and "`flwr stop 7 here` takes the run back" in said


def test_who_follows_hears_what_the_servers_part_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, heard = RunFolder(tmp_path), list[str]()
    monkeypatch.setattr(submit, "POLL", 0.01)
    say_to_followers(folder, "waiting for hospital-b")

    def tell(line: str) -> None:
        heard.append(line)
        if len(heard) == 1:
            say_to_followers(folder, "hospital-b cannot serve: the plan here is not the run's")
        else:
            submit.end_file(folder).write_text("nobody came")

    write_json(tmp_path / "federation.json", {"federation": "here", "run": 7})
    with pytest.raises(RunError, match="nobody came"):
        list(submit.follow(folder, tell))
    pattern = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    assert [re.sub(pattern, "", line) for line in heard] == [
        "waiting for hospital-b",
        "hospital-b cannot serve: the plan here is not the run's",
    ]
    assert all(re.match(pattern, line) for line in heard)


def test_who_follows_waits_for_the_comparison_that_a_summary_gets_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, looks = RunFolder(tmp_path), list[float]()
    write_json(folder.summary, {"full_not_measured": UNFINISHED, "full_params": None})

    def wait(seconds: float) -> None:
        looks.append(seconds)
        assert len(looks) < 4, "it never ends"
        if len(looks) == 2:
            write_json(folder.summary, {"full_not_measured": None, "full_params": 10})

    monkeypatch.setattr(submit, "sleep", wait)
    assert list(submit.follow(folder, print)) == [] and len(looks) == 2
    # the server's part was killed while it measured that: the summary is there as it was left
    write_json(folder.summary, {"full_not_measured": UNFINISHED})
    submit.end_file(folder).write_text("no room for the whole model")
    assert list(submit.follow(folder, print)) == [] and len(looks) == 2


@pytest.mark.parametrize(
    ("names", "states", "seen"),
    [
        (["a"], ["offline", "registered"], "0 of 1 online; waiting for a"),
        (["a", "b", "c"], ["online", "offline"], "1 of 3 online; waiting for 2 of a, b, c"),
        (["a", "b"], ["online", "online"], "2 online"),
        (None, ["online"], "1 online"),
    ],
)
def test_the_doctor_counts_the_nodes_that_are_connected(
    names: list[str] | None,
    states: list[str],
    seen: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer is that of `flwr supernode list --format json`, Flower 1.41."""
    answer = {"success": True, "nodes": [{"node-id": "1", "status": state} for state in states]}
    monkeypatch.setattr(submit, "_flwr", lambda *words: answer)
    plan = tmp_path / "plan.toml"
    plan.write_text(f"nodes = {names}\n" if names else "")
    [finding] = nodes(plan, [], "here")
    assert finding.seen == seen and finding.good == ("waiting" not in seen)


def test_a_command_of_flower_s_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever follows a run asks again and again, and must see its end all the same."""
    flwr = tmp_path / "flwr"
    flwr.write_text("#!/bin/sh\nexec sleep 30\n")
    flwr.chmod(0o755)
    monkeypatch.setattr(submit, "LONGEST", 0.2)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RunError, match=r"`flwr supernode` gave no answer for 0\.2 s: see whether"):
        submit.count_online("here")
    write_json(tmp_path / "federation.json", {"federation": "here", "run": 7})
    assert submit.status(RunFolder(tmp_path)) == ""


def test_a_servers_part_that_cannot_begin_says_why(tmp_path: Path) -> None:
    """Who follows the run read "it was killed" there. What another process goes on with is left
    alone."""
    run, nobody = tmp_path / "run", cast(Any, None)
    run.mkdir()
    (run / "plan.toml").write_text("rounds = 0.5\n")
    with lock_run(RunFolder(run)), pytest.raises(FedpeftError):
        serve(nobody, {"run": str(run)})
    assert not end_file(RunFolder(run)).exists()
    with pytest.raises(FedpeftError) as raised:
        serve(nobody, {"run": str(run)})
    assert end_file(RunFolder(run)).read_text() == reason_of(raised.value)
    assert "rounds" in reason_of(raised.value)
