"""Federations of real processes on this machine, and what their runs must have ended in."""

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from running import PLAN

from benchmarks.federation import Federation, federation
from fedpeft.core.interfaces import Store
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Job, Reply
from fedpeft.engines.inprocess import InProcess
from fedpeft.loop import federate, start
from fedpeft.plan import Plan
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.folder import RunFolder, read_rounds
from fedpeft.site import open_site

NODES = PLAN.replace("clients = 4", "clients = 3").replace("cohort = 2", "cohort = 3")
SCAFFOLD = 'server = "scaffold"\n' + NODES.replace("lr = 0.1", 'lr = 0.1, correction = "scaffold"')


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
    """Whether a run ended in the bits, and told of the bytes, of a simulation with the same survivors."""
    lines = read_rounds(run)
    failed = {
        line["round"] - 1: {client: what["failed"] for client, what in line["clients"].items() if "failed" in what}
        for line in lines
    }
    site = open_site(plan)
    rounds = list(federate(plan, Survivors(InProcess(site, store), failed), start(plan, site.params())))
    saved = load_checkpoint(run.checkpoint, plan)
    assert saved is not None and len(lines) == len(rounds) == plan.rounds
    assert [(line["bytes_up"], line["bytes_down"]) for line in lines] == [(x.bytes_up, x.bytes_down) for _, x in rounds]
    return equal(saved.state.params, rounds[-1][0].params) and saved.state.accepted == rounds[-1][0].accepted


@contextmanager
def three(
    root: Path, text: str, tls: bool = False, links: Mapping[int, Sequence[str]] = MappingProxyType({})
) -> Iterator[Federation]:
    """A SuperLink and three nodes with their workers, some behind links with these flags."""
    with federation(root, tls) as here:
        plan = root / "plan.toml"
        plan.write_text(text)
        here.superlink()
        here.nodes(plan, 3, links=links)
        yield here


def submit(here: Federation) -> "subprocess.Popen[bytes]":
    flags = ("--engine", "flower", "--federation", "here", "--out", here.root / "run")
    return here.fedpeft("run", "run", here.root / "plan.toml", *flags)
