"""Worker processes as forks of one that has loaded the libraries."""

import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection

import pytest
from rounds import plan_of

from fedpeft.engines.fork_server import interrupts_blocked, take_environment, worker_context


def tell(connection: Connection, environment: Mapping[str, str]) -> None:
    take_environment(environment)
    loaded = "torch" in sys.modules
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    connection.send((loaded, blocked, os.environ.get("FEDPEFT_TOLD")))


def test_a_worker_has_the_libraries_and_the_environment_of_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server was begun before the variable was set, and is begun once."""
    context = worker_context(plan_of(engine="processes"), "cpu")
    for said in ("once", "twice"):
        monkeypatch.setenv("FEDPEFT_TOLD", said)
        ours, theirs = context.Pipe()
        with interrupts_blocked():
            worker = context.Process(target=tell, args=(theirs, dict(os.environ)), daemon=True)
            worker.start()
        theirs.close()
        assert ours.recv() == (True, True, said)
        worker.join(10)
        assert worker.exitcode == 0


@pytest.mark.parametrize(("system", "device"), [("darwin", "cpu"), ("linux", "cuda:0")])
def test_where_forks_are_unsafe_each_worker_loads_its_libraries(
    system: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(engine="processes")
    assert worker_context(plan, "cpu").get_start_method() == "forkserver"
    monkeypatch.setattr(sys, "platform", system)
    assert worker_context(plan, device).get_start_method() == "spawn"
