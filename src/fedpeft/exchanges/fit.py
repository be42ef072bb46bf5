"""One message to each client and one back: the round of federated averaging (arXiv:1602.05629,
Algorithm 1)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedpeft.core.interfaces import Engine, Reception, Store
from fedpeft.core.types import ClientId, Job, Update


@dataclass(frozen=True)
class Fit:
    @property
    def sums(self) -> bool:
        return False

    @property
    def signers(self) -> Mapping[ClientId, str]:
        return {}

    def reply(self, job: Job, packed: bytes, store: Store) -> bytes:
        return packed

    def answer(self, job: Job, store: Store) -> bytes:
        raise ValueError(f"asked for {job.phase!r}; in this exchange there is nothing but 'fit'")

    def collect(self, engine: Engine, jobs: Sequence[Job], receive: Reception) -> Iterator[Update]:
        for reply in engine.run(jobs):
            update = receive(reply)
            if update is not None:
                yield update
