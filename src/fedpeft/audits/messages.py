"""What a server sees of one client: the model it sent, and the update that came back, each time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fedpeft.audits.updates import read_update
from fedpeft.compute.objective import Objective
from fedpeft.core.facts import Fact
from fedpeft.core.tensors import drop_prefixes
from fedpeft.core.types import ClientId, Failure, Job, Reply, Tensors
from fedpeft.data.client_data import Partitioned
from fedpeft.errors import DataError, RunError
from fedpeft.plan.calibration import without_target
from fedpeft.plan.checks import refuse
from fedpeft.rounds.client import Worker
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Folder


@dataclass(frozen=True)
class Message:
    """One participation.

    Attributes:
      received: what of the server's tensors was trained, without what an algorithm shares beside
        the method's.
      delta: what came back, in the same way.
      objective: the loss, with what was sent and not trained.
    """

    round: int
    received: Tensors
    delta: Tensors
    objective: Objective

    @property
    def sent(self) -> dict[str, torch.Tensor]:
        """The client's model."""
        return {name: x + self.delta[name] for name, x in self.received.items()}


@dataclass(frozen=True)
class Overheard:
    """An engine in this process that keeps what goes to one client and comes from it."""

    worker: Worker
    target: ClientId
    tick: Callable[[], None]
    heard: list[Message] = field(default_factory=list)

    @property
    def site(self) -> Site:
        return self.worker.site

    @property
    def store(self) -> object:
        return self.worker.store

    @property
    def clients(self) -> Sequence[ClientId]:
        return self.worker.site.data.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for job in jobs:
            reply = self.worker(job)
            self.tick()
            if job.client == self.target and job.phase == "fit":
                self.heard.append(self._message(job, reply))
            yield reply

    def _message(self, job: Job, reply: Reply | Failure) -> Message:
        if isinstance(reply, Failure):
            raise RunError(
                f"{job.client!r} failed in round {job.round + 1} and sent nothing: {reply.reason}"
            )
        found, delta = read_update(self.worker, job, reply)
        shares = self.worker.site.plan.local_shares
        own, moved = (drop_prefixes(shares, side) for side in (found.start, delta))
        return Message(job.round, own, moved, found.objective)


NOT_HEARD: Mapping[Fact, str] = {
    Fact.PERSONAL: "the server does not know personal tensors: leave them out",
    Fact.SUM_ONLY: 'exchange = "secure": single messages cannot be read, which is what secure sums '
    "are for. To measure what they would tell, attack a run of the same plan with "
    'exchange = "plain"',
    Fact.ASYNCHRONOUS: "messages are heard in rounds: leave out fedbuff",
}
"""What a server that listens to one client cannot hear."""


def overheard(
    site: Site, target: ClientId, most: int = 0, tick: Callable[[], None] = lambda: None
) -> list[Message]:
    """The first `most` messages of a client in a federation from its first round, 0 for all.

    Where noise is added it is another draw than a run's own, whose secrets are not touched.

    Raises:
      RunError: the client never takes part, or fails.
      PlanError: personal tensors, beside which what is trained is not the server's to see; secure
        sums, of which it sees no part; or asynchronous steps.
    """
    refuse(site.plan, NOT_HEARD)
    site = replace(site, plan=without_target(site.plan))  # what is spent here is nobody's budget
    with TemporaryDirectory() as memory:
        engine = Overheard(Worker(site, Folder(Path(memory))), target, tick)
        for _ in federate(site.plan, engine, start(site.plan, site.params())):
            if most and len(engine.heard) == most:
                break
    if not engine.heard:
        raise RunError(f"{target!r} takes part in no round of this plan: choose another client")
    return engine.heard


def alone(site: Site, client: ClientId, place: int) -> Site:
    """The same federation, but its only client has one example: the one of `client` at `place`,
    from 0.

    Raises:
      DataError: the data are not in memory here.
    """
    data = partitioned(site)
    return replace(site, data=replace(data, parts={client: data.parts[client][place : place + 1]}))


def partitioned(site: Site) -> Partitioned:
    """The data of a simulation.

    Raises:
      DataError: these are others.
    """
    if not isinstance(site.data, Partitioned):
        raise DataError(
            "an attack is measured in a simulation, where the examples of all clients are at hand"
        )
    return site.data
