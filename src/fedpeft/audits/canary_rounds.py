"""A federation of canaries, round by round, as an auditor sees it.

That is what the accountant's adversary sees: the state under `client_dp`, the client's update under
`dp_sgd` (the step of the state, as there is no other client), every update under `local_dp`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor

from fedpeft.audits.canaries import Canaries
from fedpeft.audits.updates import read_update
from fedpeft.core.secrets import SIZE, Secret
from fedpeft.core.types import ClientId, Failure, Job, Reply
from fedpeft.errors import RunError
from fedpeft.rounds.client import Worker
from fedpeft.rounds.loop import federate, start
from fedpeft.storage.client_memory import Nowhere


@dataclass(frozen=True)
class Aviary:
    """An engine in this process whose clients are canaries.

    Attributes:
      heard: by canary and round what its update goes along its own direction.
    """

    worker: Worker
    canaries: Canaries
    tick: Callable[[], None]
    heard: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def clients(self) -> Sequence[ClientId]:
        return self.worker.site.data.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for job in jobs:
            self.tick()
            if job.client in self.canaries.absent:
                yield Failure(job.client, "the coin of this canary left it out")
                continue
            reply = self.worker(job)
            if isinstance(reply, Failure):
                raise RunError(f"a canary could not be trained: {reply.reason}")
            if self.canaries.local:
                self._hear(job, reply)
            yield reply

    def _hear(self, job: Job, reply: Reply) -> None:
        _, delta = read_update(self.worker, job, reply)
        number = self.canaries.numbers[job.client]
        self.heard[number, job.round] = float(self.canaries.along(delta, number))


def observe_rounds(canaries: Canaries, seed: int, tick: Callable[[], None]) -> Iterator[Tensor]:
    """By round what is seen along each canary's direction, (m,), in units of what one unit changes
    at most.

    Raises:
      RunError: a canary's update is refused, or it fails.
    """
    site, plan = canaries.site, canaries.site.plan
    secret = Secret(blake2b(f"audit {seed}".encode(), digest_size=SIZE).digest())
    engine = Aviary(Worker(site, Nowhere(secret.at("clients"))), canaries, tick)
    first = start(plan, site.params())
    before = canaries.along(first.params)
    for state, ledger in federate(plan, engine, first, secret.at("server")):
        if refused := ledger.failed.keys() - canaries.absent:
            name = min(refused)
            raise RunError(f"the canary {name!r} was refused: {ledger.failed[name]}")
        after = canaries.along(state.params)
        if canaries.local:
            sent = [engine.heard.pop((k, ledger.round)) for k in range(len(before))]
            # from -1, where the coin left it out, to 1
            yield (torch.tensor(sent, dtype=torch.float64) / canaries.unit + 1) / 2
        else:
            yield (after - before) * canaries.divisor / canaries.unit
        before = after
