"""Where worker processes come from.

Loading torch and transformers takes seconds of a processor. On Linux one process loads them, beside
the first process of the run, and worker processes are forks of it: they begin in a moment, also
where one has died and another takes its place. Elsewhere, and for a GPU, which a fork cannot use
once its parent has looked at it, each worker process loads its libraries itself.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import get_context, resource_tracker, set_forkserver_preload
from typing import TYPE_CHECKING

from fedpeft.plan.plan import Plan

if TYPE_CHECKING:  # Windows has no such context
    from multiprocessing.context import ForkServerContext, SpawnContext

OF_MODELS = ("transformers.modeling_utils", "transformers.image_processing_utils", "peft")
"""What takes long to import, for a plan whose task loads a model of transformers."""
CPU = "cpu"


def worker_context(plan: Plan, device: str) -> "ForkServerContext | SpawnContext":
    """How worker processes of a plan begin on this system and device."""
    if sys.platform != "linux" or device != CPU:
        return get_context("spawn")
    own = {type(part).__module__ for part in plan.parts}
    # A user's own modules are left to the workers: an import that fails there has its reason told.
    needed = sorted(name for name in own if name.startswith("fedpeft."))
    models = OF_MODELS if hasattr(plan.task, "model") else ()
    there = [name for name in models if find_spec(name.partition(".")[0])]
    set_forkserver_preload(["fedpeft.engines.processes", *needed, *there])
    return get_context("forkserver")


def load_libraries(plan: Plan, device: str) -> None:
    """Begin to load the libraries of the plan's worker processes; it does not wait."""
    if worker_context(plan, device).get_start_method() == "spawn":
        return
    from multiprocessing import forkserver

    with interrupts_blocked():
        forkserver.ensure_running()


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Ctrl-C in a terminal goes to every process; it is for the first one, which ends the others.
    What begins in here keeps the signal blocked, and so do its children."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # started with the first process, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take_environment(variables: Mapping[str, str]) -> None:
    """Give this process the environment of the one that it works for: a fork server keeps that of
    its own beginning."""
    if dict(os.environ) != variables:
        os.environ.clear()
        os.environ.update(variables)
