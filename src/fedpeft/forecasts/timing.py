"""How long a plan takes on this machine: a few seconds of its own work, extrapolated."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from fedpeft.core.types import Job
from fedpeft.engines.auto import Choice, choose, typical, widen
from fedpeft.engines.processes import begins_by_fork, processors, starting_time
from fedpeft.errors import FedpeftError, PlanError, say_count
from fedpeft.evaluation.own_held_out import measure_held_out
from fedpeft.plan.plan import Plan
from fedpeft.registry import find
from fedpeft.rounds.client import ClientRound, Worker
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site, open_site, threads
from fedpeft.storage.client_memory import Folder

SECONDS = 10.0
"""How long is measured, the opening of the site apart."""
HERE = ("inprocess", "cohort")
"""Engines whose rounds can be tried in this process."""


@dataclass(frozen=True)
class Pace:
    """Seconds on this machine, as it was while they were taken.

    Attributes:
      opening: until data and model are there.
      round: of all clients of a round and the server's step.
      evaluation: of one evaluation on the held-out examples.
      engine: with which.
      source: what was measured, in words.
      workers: until worker processes are there, which the first round waits for.
    """

    opening: float
    round: float
    evaluation: float
    engine: str
    source: str
    workers: float = 0.0

    def rounds(self, plan: Plan) -> float:
        """The time of all rounds with their evaluations, which a run's summary calls its time."""
        rounds = plan.rounds * self.round + _evaluations(plan) * self.evaluation
        return self.workers + rounds

    def total(self, plan: Plan) -> float:
        """The time of the whole run, which looks at held-out examples once more for its summary."""
        return self.opening + self.rounds(plan) + self.evaluation


FORKED = 1.5
"""Seconds of a worker that is a fork beside its opening of data and model, which goes on at once in
all workers; seen on two cores."""


def _evaluations(plan: Plan) -> int:
    rounds = range(1, plan.rounds + 1)
    return sum(k % plan.evaluate_every == 0 or k == plan.rounds for k in rounds)


def measure_pace(plan: Plan, seconds: float = SECONDS) -> Pace:
    """Open the plan's site and do its work for some seconds: whole rounds if they are short, and
    else steps of one client.

    Raises:
      DataError, PlanError: data or weights are not here, or a client fails.
    """
    opening, site = _timed(lambda: open_site(plan))
    choice, site = _engine(site)
    plan = site.plan
    with TemporaryDirectory() as folder:
        store = Folder(Path(folder) / "trial")
        state = start(plan, site.params())
        evaluation, _ = _timed(lambda: measure_held_out(site, state, store))
        if evaluation <= seconds / 4:  # the first time is also that of what is kept
            evaluation, _ = _timed(lambda: measure_held_out(site, state, store))
        client = _client_seconds(site, store, seconds / 2)
        cohort = min(plan.cohort, len(site.data.clients))
        if choice in HERE and client * cohort <= seconds:
            round_, number = _round_seconds(site, choice, Path(folder) / "rounds", seconds)
            return Pace(
                opening, round_, evaluation, choice, f"{say_count(number, 'rounds')} of the plan"
            )
    if choice != "processes":
        source = "steps of one client, times the clients of a round"
        return Pace(opening, client * cohort, evaluation, choice, source)
    hands = min(max(1, processors() // plan.compute.threads), cohort)
    source = f"steps of one client, on {hands} processes"
    round_ = client * cohort / hands
    least = starting_time(plan, site.device)
    workers = opening + FORKED if begins_by_fork(plan, site.device) else max(least, opening)
    return Pace(opening, round_, evaluation, choice, source, workers=workers)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = perf_counter()
    result = work()
    return perf_counter() - began, result


def _engine(site: Site) -> tuple[str, Site]:
    """The plan's engine, or the one that "auto" takes here; one after another for nodes. And the
    site with the threads that it trains with."""
    if site.plan.engine == "auto":
        choice: Choice = choose(site)
        return choice.engine, widen(site, choice.threads)
    return "inprocess" if site.plan.engine == "flower" else site.plan.engine, site


def _client_seconds(site: Site, store: Folder, seconds: float) -> float:
    """Of the client of middle size, by as many of its steps as there is time for.

    Raises:
      PlanError: it fails.
    """
    plan, worker = site.plan, Worker(site, store)
    client = typical(site.data, site.data.clients)
    payload = encode_start(plan, start(plan, site.params()))
    opened = worker.open(Job("trial", 0, client, "fit", plan.seed, None, payload))
    if not isinstance(opened, ClientRound):
        raise PlanError(f"client {client!r} cannot be tried: {getattr(opened, 'reason', opened)}")
    with threads(plan.compute.threads):
        times = list(_steps(site, opened, seconds))
    # libraries load in the first step; on a busy machine a step may wait, so the median counts
    each = median(times[1:] or times)
    mean = sum(plan.local.steps_for(site.data.size(c)) for c in site.data.clients)
    return each * mean / len(site.data.clients)


def _steps(site: Site, opened: ClientRound, seconds: float) -> Iterator[float]:
    local, began = site.plan.local, perf_counter()
    site.model.train()
    carry = local.begin(opened.start, opened.own, opened.context)
    last = began
    for batch in local.batches(site.data, opened.start, opened.context):
        carry = local.step(carry, site.on_device(batch), opened.objective)
        now = perf_counter()
        yield now - last
        last = now
        if now - began > seconds:
            return


def _round_seconds(site: Site, engine: str, folder: Path, seconds: float) -> tuple[float, int]:
    """Of a round, the median of those that there is time for after the first; and their number.

    Raises:
      PlanError: a client fails.
    """
    plan, times = replace(site.plan, engine=engine), list[float]()
    opened: Any = find("engine", engine)
    began = last = perf_counter()
    with closing(opened(site, store=Folder(folder))) as running:
        for _, ledger in federate(plan, running, start(plan, site.params())):
            now = perf_counter()
            if ledger.failed:
                raise PlanError(f"a client fails: {next(iter(ledger.failed.values()))}")
            times.append(now - last)
            last = now
            if now - began > seconds:
                break
    later = times[1:] or times
    return median(later), len(later)


def pace_if_any(plan: Plan, seconds: float = SECONDS) -> tuple[Pace | None, str]:
    """The pace, or why it cannot be measured here."""
    try:
        return measure_pace(plan, seconds), ""
    except (FedpeftError, OSError) as error:
        return None, " ".join(str(error).split())
