"""The engine that a short trial says is fastest here, and why."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter

import torch

from fedpeft.core.interfaces import Data, Store
from fedpeft.core.seeds import fold, seed_torch
from fedpeft.core.types import ClientId, Failure, Job, Reply
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.processes import Processes, processors, starting_time
from fedpeft.engines.vectorized.engine import Cohort, unfit
from fedpeft.engines.vectorized.stacks import Stacks, Trainee
from fedpeft.errors import reason_of
from fedpeft.rounds.client import ClientRound, Worker
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site, threads
from fedpeft.storage.client_memory import Nowhere

FEW, MANY = 8, 100
"""Clients that take a step together in the trial: of many, as many as take a second one after
another."""
LONG = 0.2
"""Seconds of a step from which it is not tried with others: on a core what a stack saves is gone
far below."""
ENOUGH = 2.0
"""Seconds of trying the same after which it is not repeated."""
GAIN = 0.85
"""Of the time one after another, what a choice must stay below: a trial is short, and a tie goes to
the exact one."""


@dataclass(frozen=True)
class Choice:
    """The name of an engine, the reason in words, and of a stack its threads, where they are others
    than the plan's (0: the plan's)."""

    engine: str
    reason: str
    threads: int = 0


@dataclass(frozen=True)
class Trial:
    """Seconds of a client's step.

    Attributes:
      alone: of one client.
      together: of one client in a stack, with the plan's threads.
      wide: the same with as many threads as all worker processes would have.
      why: why there is no stack; both times are then that of one client.
    """

    alone: float
    together: float
    wide: float
    why: str = ""


@dataclass(eq=False)
class Auto:
    """Another engine, chosen when this one is made.

    Attributes:
      workers: as `Processes` takes them; none of the others has any.
    """

    site: Site
    store: Store = field(default_factory=Nowhere)
    workers: int = 0
    choice: Choice = field(init=False)
    engine: Cohort | InProcess | Processes = field(init=False)

    def __post_init__(self) -> None:
        self.choice = choose(self.site, self.workers)
        if self.choice.engine == "processes":
            self.engine = Processes(self.site, self.store, self.workers)
        elif self.choice.engine == "cohort":
            self.engine = Cohort(widen(self.site, self.choice.threads), self.store)
        else:
            self.engine = InProcess(self.site, self.store)

    @property
    def clients(self) -> Sequence[ClientId]:
        return self.engine.clients

    @property
    def alone(self) -> str:
        """Why a stack was given up, if one was chosen."""
        return self.engine.alone if isinstance(self.engine, Cohort) else ""

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        return self.engine.run(jobs)

    def close(self) -> None:
        self.engine.close()


def choose(site: Site, workers: int = 0) -> Choice:
    """The engine that a run of the site's plan is likely to be done with first."""
    why = unfit(site)
    if torch.device(site.device).type != "cpu":  # worker processes would share the one device
        return (
            Choice("inprocess", why)
            if why
            else Choice("cohort", "one client alone does not fill the device")
        )
    plan, clients = site.plan, site.data.clients
    hands = min(workers or max(1, processors() // plan.compute.threads), plan.cohort, len(clients))
    wide = min(hands * plan.compute.threads, max(processors(), plan.compute.threads))
    try:
        tried = trial(site, why, wide)
    # Parts that users write may raise anything; a run then says whose failure it is.
    except Exception as error:
        return Choice("inprocess", f"a step cannot be tried: {reason_of(error)}")
    each = sum(plan.local.steps_for(site.data.size(client)) for client in clients) / len(clients)
    run = tried.alone * each * min(plan.cohort, len(clients)) * plan.rounds
    stack = _stack(tried, wide)
    # Without worker processes, by whichever of the other two engines takes less.
    quickest_here = run * min(1.0, tried.together / tried.alone, tried.wide / tried.alone)
    starting = starting_time(plan, site.device)
    if hands > 1 and run / hands + starting < GAIN * quickest_here:
        words = f"{run:.0f} s of training for {hands} processes; {stack.reason}"
        return Choice("processes", words)
    if stack.engine == "cohort":
        return stack
    return Choice("inprocess", f"{run:.0f} s of training; {stack.reason}")


def _stack(tried: Trial, wide: int) -> Choice:
    """The stack with the plan's threads, or with `wide` of them where those are clearly faster; or
    why clients are not stacked."""
    if tried.why:
        return Choice("inprocess", tried.why)
    part = tried.together / tried.alone
    share = f"a step of clients together takes {part:.2f} of one after another"
    if tried.wide < GAIN * min(tried.together, tried.alone):
        more = f"{share}, and {tried.wide / tried.alone:.2f} with {wide} threads"
        return Choice("cohort", more, wide)
    return Choice("cohort" if tried.together < GAIN * tried.alone else "inprocess", share)


def widen(site: Site, wide: int) -> Site:
    """The site as it is, with so many threads for its clients; 0: those of its plan."""
    if not wide:
        return site
    compute = replace(site.plan.compute, threads=wide)
    return replace(site, plan=replace(site.plan, compute=compute))


class _Steps:
    """First steps of a site's clients, tried and forgotten."""

    def __init__(self, site: Site) -> None:
        self.site, self.worker, self.stacks = site, Worker(site, Nowhere()), Stacks(site)
        self.payload = encode_start(site.plan, site.plan.first_state(site.params()))

    def begun(self, client: ClientId) -> Trainee:
        """Raises RuntimeError where a client cannot begin."""
        seed = fold(self.site.plan.seed, "trial", client)
        opened = self.worker.open(Job("trial", 0, client, "fit", seed, None, self.payload))
        if isinstance(opened, Failure):
            raise RuntimeError(opened.reason)
        assert isinstance(opened, ClientRound)
        return self.stacks.begin(opened)

    def one(self, client: ClientId) -> None:
        trainee = self.begun(client)
        if self.stacks.fetch(trainee):
            self.site.plan.local.step(trainee.carry, trainee.batch, trainee.opened.objective)

    def together(self, clients: Sequence[ClientId]) -> None:
        """Raises RuntimeError where they cannot be stacked."""
        if self.stacks.turn([self.begun(client) for client in clients])[1]:
            raise RuntimeError(self.stacks.why)

    def share(self, clients: Sequence[ClientId], wide: int) -> float:
        """Seconds of one of the clients that step together, with so many threads."""
        with threads(wide):
            return seconds(lambda: self.together(clients)) / len(clients)


def trial(site: Site, why: str = "", wide: int = 1) -> Trial:
    """Try a client's step, alone, with others, and with others and `wide` threads; where `why` says
    so already, others are not tried."""
    clients, own = site.data.clients[: min(MANY, site.plan.cohort)], site.plan.compute.threads
    steps = _Steps(site)
    site.model.train()
    # The trial draws dropout; outside of it torch's own streams are as if there had been none.
    with threads(own), seed_torch(0):
        alone = seconds(lambda: steps.one(typical(site.data, clients)))
        if not why and alone > LONG:
            why = (
                f"a step of one client takes {alone:.1f} s, which is work enough for the processor"
            )
        if why:
            return Trial(alone, alone, alone, why)
        some = company(clients, alone)
        try:
            narrow = steps.share(some, own)
            return Trial(alone, narrow, steps.share(some, wide) if wide > own else narrow)
        except RuntimeError as error:
            return Trial(alone, alone, alone, str(error))


def typical(data: Data, clients: Sequence[ClientId]) -> ClientId:
    """The one of middle size."""
    return sorted(clients, key=data.size)[len(clients) // 2]


def company(clients: Sequence[ClientId], alone: float) -> Sequence[ClientId]:
    """The clients that are tried together: more of them the shorter a step is alone, as small steps
    gain by numbers."""
    return clients[: max(FEW, int(1 / alone))]


def seconds(work: Callable[[], object], clock: Callable[[], float] = perf_counter) -> float:
    """The median of three times after one that counts for nothing, as libraries load in it; of what
    takes long one."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < 4 and sum(times) < ENOUGH):
        began = clock()
        work()
        times.append(clock() - began)
    return median(times[1:])
