"""Clients one after another in this process: the reference every other engine is tested against."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fedpeft.core.interfaces import Store
from fedpeft.core.types import ClientId, Failure, Job, Reply
from fedpeft.plan.plan import Plan
from fedpeft.rounds.client import Worker
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Nowhere


@dataclass(frozen=True)
class InProcess:
    """Lazy: a client trains when its reply is asked for.

    Attributes:
      site: a plan will do; its data and model are then loaded here.
      store: where clients' memory lives; needed by error feedback and SCAFFOLD.
    """

    site: Site
    store: Store = field(default_factory=Nowhere)
    worker: Worker = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "worker", Worker(self.site, self.store))

    @classmethod
    def of(cls, plan: Plan, store: Store | None = None) -> "InProcess":
        """Load what the plan names, then as above."""
        return cls(open_site(plan), store or Nowhere())

    @property
    def clients(self) -> Sequence[ClientId]:
        return self.site.data.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        yield from map(self.worker, jobs)

    def close(self) -> None:
        """Nothing is held beyond this object."""
