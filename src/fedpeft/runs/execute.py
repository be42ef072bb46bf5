"""A run: the body of the `for` over `federate`, and what must be in place before it."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from shutil import rmtree
from time import perf_counter
from typing import Any, Protocol

import torch

from fedpeft.core.interfaces import Engine
from fedpeft.core.tensors import layout
from fedpeft.core.types import State
from fedpeft.errors import PlanError, RunError
from fedpeft.evaluation.own_held_out import measure_held_out
from fedpeft.evaluation.probe import check_gradients
from fedpeft.plan.plan import Plan
from fedpeft.plan.values import shares_optimizer_state
from fedpeft.registry import find
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Onlooker, Site, open_site
from fedpeft.runs.beginning import started_from
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.division import division_at
from fedpeft.runs.environment import compare_environments, environment
from fedpeft.runs.folder import (
    RunFolder,
    append_round,
    keep_rounds,
    read_json,
    read_rounds,
    write_json,
)
from fedpeft.runs.noise import check_secrets, open_secrets, write_noise
from fedpeft.runs.record import RoundRecord, record_of
from fedpeft.runs.selection import Best
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import write_atomically


class OpenEngine(Engine, Protocol):
    """An engine that holds processes or connections until it is closed."""

    def close(self) -> None: ...


def open_run_site(plan: Plan, device: str = "cpu", look: Onlooker | None = None) -> Site:
    """The data and the model of a run, on `device`; `look` is shown the examples.

    Raises:
      PlanError: there is no such device, or the examples' own gradients do not make up the whole
        one.
      DataError, PlanError: see `open_site`.
    """
    check_device(device)
    # What takes the engine long, it may begin now, while the data are read.
    prepare: Callable[[Plan, str], None] = getattr(
        find("engine", plan.engine), "prepare", lambda plan, device: None
    )
    prepare(plan, device)
    site = open_site(plan, device, look)
    event = site.plan.local.event
    # A tensor that gets no gradient of single examples raises no error: the run would learn
    # nothing.
    if event is not None and event.accounted:
        check_gradients(site)
    return site


def check_device(device: str) -> None:
    """Raises PlanError where there is no such device."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise PlanError(
            f"the device {device!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from None


def check_workers(plan: Plan, workers: int) -> None:
    """Make sure that a number of workers, 0 for the engine's own, means something to the plan's
    engine.

    Raises:
      PlanError: it does not.
      RunError: the engine lacks something here.
    """
    if workers < 0:
        raise PlanError(f"there cannot be {workers} worker processes")
    engine = find("engine", plan.engine)
    if workers and all(f.name != "workers" for f in fields(engine)):
        raise PlanError(
            f"the engine {plan.engine!r} has no workers: leave them out, or take the engine "
            '"processes"'
        )
    check: Callable[[int], None] = getattr(engine, "check", lambda workers: None)
    check(workers)


def open_engine(folder: RunFolder, site: Site, workers: int = 0) -> OpenEngine:
    """The plan's engine, with the run's folder for what clients remember.

    Raises:
      PlanError: `workers` for an engine that has none, or an engine or keys of clients that are
        elsewhere.
    """
    if site.plan.engine == "flower":
        raise PlanError(
            'the engine "flower" needs nodes: `fedpeft run --engine flower --federation NAME`'
        )
    for check in site.plan.hooks("check_run"):
        check()
    if site.plan.exchange.signers:
        raise PlanError(
            "exchange.keys are of nodes that sign, and a simulation has none: --set "
            "exchange.keys=[]"
        )
    check_workers(site.plan, workers)
    settings: dict[str, Any] = {"workers": workers} if workers else {}
    engine: OpenEngine = find("engine", site.plan.engine)(
        site, store=Folder(folder.clients.resolve()), **settings
    )
    return engine


def execute(folder: RunFolder, site: Site, engine: Engine) -> Iterator[RoundRecord]:
    """Run the rounds that the folder does not have yet; each is on the disk before it is yielded.

    Raises:
      RunError: the folder does not fit the plan or the data.
    """
    plan, here, store = site.plan, environment(site.plan, site.device), Folder(folder.clients)
    clock, begun = perf_counter(), resume_state(folder, site)
    # After `resume_state`, which takes away the line of a round that no checkpoint has.
    best = Best.of(plan, read_rounds(folder))
    _keep_best(folder, best, begun.round)
    if best.exhausted:
        return
    own, _ = secrets = open_secrets(folder, plan)
    commitments = [secret.commitment for secret in secrets if secret]
    for state, ledger in federate(plan, engine, begun, own, site.classes):
        due = plan.measured_here and plan.is_evaluated(state.round)
        measured = measure_held_out(site, state, store) if due else None
        now = perf_counter()
        record = record_of(ledger, measured, now - clock)
        clock = now
        # The line comes before the checkpoint: a kill between them leaves one line too many, which
        # the resume takes away, where the other order would lose one.
        append_round(folder, record.values())
        save_checkpoint(folder.checkpoint, plan, state, here, ledger.privacy, commitments)
        best = best.after(record.values())
        _keep_best(folder, best, state.round)
        yield record
        if best.exhausted:
            return


def _keep_best(folder: RunFolder, best: Best, done: int) -> None:
    """Keep the checkpoint of a round that is the best, whole or not at all; after a kill it is kept
    by the resume."""
    if best.metric and best.round == done and folder.checkpoint.exists():
        write_atomically(folder.best, folder.checkpoint.read_bytes())


def resume_state(folder: RunFolder, site: Site) -> State:
    """The state from which a run goes on, and its folder without traces of what came after.

    Raises:
      RunError: the folder does not fit the plan or the data.
    """
    _same_partition(folder, site)
    fresh = started_from(folder, site.plan, start(site.plan, site.params()))
    saved = load_checkpoint(folder.checkpoint, site.plan)
    if shares_optimizer_state(site.plan):  # what leaks lies in the process that is gone
        saved = None
        write_atomically(folder.rounds, b"")
        rmtree(folder.clients, ignore_errors=True)  # a stored reply would be sent without training
    # Without rounds all is asked again, in the same words: what came of the answers must not be in
    # the question.
    state = saved.state if saved and site.plan.rounds else fresh
    if sorted(layout(state.params)) != sorted(layout(fresh.params)):
        raise RunError(
            f"{folder.checkpoint} holds other tensors than the plan's model has with these "
            "libraries"
        )
    check_secrets(folder, saved)
    write_noise(folder, site.plan)
    keep_rounds(folder, state.round)
    return state


def find_changes(folder: RunFolder, site: Site) -> list[str]:
    """What differs between where the run was and here, and may change its last bits."""
    saved = load_checkpoint(folder.checkpoint, site.plan)
    return (
        compare_environments(saved.environment, environment(site.plan, site.device))
        if saved
        else []
    )


def _same_partition(folder: RunFolder, site: Site) -> None:
    report = division_at(site)
    saved = read_json(folder.partition)
    if saved is None:
        write_json(folder.partition, report, indent=None)
    elif saved.get("fingerprint") != report["fingerprint"]:
        raise RunError(
            f"the data or its division among the clients changed since {folder.path} was begun: "
            f"its partition was {saved.get('fingerprint')}, now it is {report['fingerprint']}"
        )
    # Runs of earlier versions have no checksum of their examples, and go on without one.
    elif saved.get("contents", report.get("contents")) != report.get("contents"):
        raise RunError(
            f"the examples changed since {folder.path} was begun, though not who holds which: "
            f"their checksum was {saved['contents']}, now it is {report['contents']}. "
            "Put the old data back, or begin a new run"
        )
