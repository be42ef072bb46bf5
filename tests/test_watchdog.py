"""A worker process that shows no sign of life is named, and its client is not lost."""

import logging
import os
import signal
from pathlib import Path

import pytest
from crashes import children, descendants, processes
from rounds import points_plan

from fedpeft.core.tensors import equal
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.processes import Processes
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Folder


@pytest.mark.slow
def test_a_stopped_worker_is_named_and_its_client_goes_to_another(
    points: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = points_plan(rounds=2, cohort=2)
    begun, before = start(plan, points.params()), set(descendants(os.getpid()))
    engine = Processes(points, Folder(tmp_path), workers=1, quiet=1.5, lost=3.0)
    rounds = federate(plan, engine, begun)
    next(rounds)
    # Worker processes are forks of a child, which multiprocessing keeps beside others of its own.
    workers = set(descendants(os.getpid())) - before - set(children(os.getpid()))
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    with caplog.at_level(logging.WARNING, "fedpeft"):
        state, ledger = next(rounds)
    engine.close()
    for pid in workers & processes().keys():
        os.kill(pid, signal.SIGCONT)
    named = [record.getMessage() for record in caplog.records]
    assert any("has shown no sign of life" in words for words in named), named
    whole = [state for state, _ in federate(plan, InProcess(points), begun)]
    assert not ledger.failed and equal(state.params, whole[-1].params)
