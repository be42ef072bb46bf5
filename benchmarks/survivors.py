"""A simulation in which the clients fail that failed elsewhere: what a disturbed run must have
ended in."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from fedpeft.core.interfaces import Store
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Job, Reply
from fedpeft.engines.inprocess import InProcess
from fedpeft.plan.plan import Plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import open_site
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.folder import RunFolder, read_rounds


@dataclass(frozen=True)
class Survivors:
    """Clients in this process, of whom some fail in some rounds as they did elsewhere."""

    engine: InProcess
    failed: Mapping[int, Mapping[str, str]]

    @property
    def clients(self) -> list[str]:
        return list(self.engine.clients)

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for job in jobs:
            why = self.failed.get(job.round, {}).get(job.client)
            yield Failure(job.client, why) if why else next(iter(self.engine.run([job])))


def simulated(plan: Plan, run: RunFolder, store: Store) -> bool:
    """Whether a run ended in the bits, and told of the bytes, of a simulation with the same
    survivors."""
    lines = read_rounds(run)
    failed = {
        line["round"] - 1: {
            client: what["failed"] for client, what in line["clients"].items() if "failed" in what
        }
        for line in lines
    }
    site = open_site(plan)
    rounds = list(
        federate(plan, Survivors(InProcess(site, store), failed), start(plan, site.params()))
    )
    saved = load_checkpoint(run.checkpoint, plan)
    assert saved is not None and len(lines) == len(rounds) == plan.rounds
    assert [(line["bytes_up"], line["bytes_down"]) for line in lines] == [
        (x.bytes_up, x.bytes_down) for _, x in rounds
    ]
    return (
        equal(saved.state.flat, rounds[-1][0].flat)
        and saved.state.accepted == rounds[-1][0].accepted
    )
