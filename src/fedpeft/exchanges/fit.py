"""One message to each client and one back: the round of federated averaging (arXiv:1602.05629, Algorithm 1)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fedpeft.core.interfaces import Engine
from fedpeft.core.types import Failure, Job, Reply, Update


@dataclass(frozen=True)
class Fit:
    def collect(
        self, engine: Engine, jobs: Sequence[Job], receive: Callable[[Reply | Failure], Update | None]
    ) -> Iterator[Update]:
        for reply in engine.run(jobs):
            update = receive(reply)
            if update is not None:
                yield update
