"""What the one who submitted a run is told while nothing comes of it."""

import logging
from itertools import chain, repeat
from pathlib import Path

import pytest

from fedpeft.deploy import submit
from fedpeft.errors import RunError
from fedpeft.runs.folder import RunFolder, write_json


def test_a_run_that_stays_pending_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(tmp_path / "federation.json", {"federation": "here", "run": 7})
    states = chain(repeat("pending", 5), repeat("finished:failed"))
    monkeypatch.setattr(submit, "status", lambda folder: next(states))
    monkeypatch.setattr(submit, "ASK", 0.01)
    monkeypatch.setattr(submit, "POLL", 0.02)
    with caplog.at_level(logging.WARNING), pytest.raises(RunError, match="the server's part ended"):
        list(submit.follow(RunFolder(tmp_path)))
    [said] = caplog.messages
    assert "flower-superexec" in said and "`flwr stop 7 here` takes the run back" in said
