"""What grows with the number of clients, on a ViT-B/16 with LoRA r=8 and 100 classes: 371,812
numbers a client.

    python -m benchmarks.scale                  # some minutes, memory about five of them
    python -m benchmarks.scale --only server --out benchmarks/results

With --only and --out the other part of scale.json stays as it is.

memory  A round of 10,000 clients: resident are the base, and of the clients one. What they remember
        lies on the disk. They train in name only, as the memory of a step does not depend on the
        number of clients.
server  1,000 updates are read from files, checked and averaged: seconds over those of reading the
        bytes once, from the disk and from the page cache. Wanted: at most 1.5, and memory that does
        not depend on the number of updates.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu import Pictures
from benchmarks.machine import machine
from benchmarks.overhead import peak, resident
from benchmarks.work import CLASSES
from fedpeft import InProcess, Plan, federate, open_site, start
from fedpeft.algorithms.fedavg import average
from fedpeft.codecs.float16 import Float16
from fedpeft.core.conversation import converse
from fedpeft.core.interfaces import Data, LossFn
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import (
    Batch,
    Carry,
    Context,
    Examples,
    Job,
    Reply,
    State,
    Table,
    Tensors,
    Update,
)
from fedpeft.methods.lora import LoRA
from fedpeft.partitions.iid import IID
from fedpeft.plan.tables import Compute
from fedpeft.rounds.admission import Admission
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.post import Post
from fedpeft.stages.error_feedback import ErrorFeedback
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import ahead
from fedpeft.wire.payloads import pack


@dataclass(frozen=True)
class InName:
    """A local training that moves every number by a hundredth of itself, and calls that a step."""

    precision: str = "float32"
    passes: float = 1.0
    event: None = None
    correction: None = None

    def steps_for(self, size: int) -> int:
        return 1

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        return ()

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        return {}

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        return carry

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        return map_tensors(lambda x: x * 0.01, received), {}, {}


@dataclass(frozen=True)
class SamePicture:
    """One black picture for each of `clients` clients, which is held once: nobody trains on it, but
    a site tries its model on two examples when it opens."""

    clients: int

    def load(self) -> Examples:
        picture = torch.zeros(1, 3, 224, 224)
        label = torch.arange(max(self.clients, len(CLASSES))) % len(CLASSES)

        def first(n: int) -> Table:
            # An expanded tensor has all its rows in the same memory.
            return Table({"x": picture.expand(n, -1, -1, -1), "label": label[:n]})

        return Examples(first(len(label)), first(len(CLASSES)), CLASSES)


def plan_of(clients: int, cohort: int, **settings: Any) -> Plan:
    return Plan(
        task=Pictures(),
        data=SamePicture(clients),
        partition=IID(clients=clients),
        method=LoRA(rank=8),
        local=InName(),
        rounds=1,
        cohort=cohort,
        compute=Compute(pack=False, features=False),
        **settings,
    )


def memory(clients: int = 10_000, remembering: int = 64) -> dict[str, Any]:
    """In fresh processes, since a process's peak never falls again."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = pool.apply(_round, (clients, clients, False))
        few = pool.apply(_round, (clients, remembering, True))
    return {
        "what": "one round of 10,000 clients, LoRA r=8 on a ViT-B/16, trained in name only",
        "clients": clients,
        "base_mb": found["base_mb"],
        "an_update_mb": found["an_update_mb"],
        "peak_above_base_mb": found["rise_mb"],
        "all_updates_would_be_mb": round(found["an_update_mb"] * clients),
        "seconds": found["seconds"],
        "on_disk_a_client_mb": few["disk_mb"],
        "peak_above_base_remembering_mb": few["rise_mb"],
    }


def _round(clients: int, cohort: int, remember: bool) -> dict[str, Any]:
    """One round; what the resident bytes rise by beyond data and model, and what the clients leave
    on the disk."""
    settings = (
        {"stages": (ErrorFeedback(codec=Float16()),), "uplink": Float16()} if remember else {}
    )
    plan = plan_of(clients, cohort, **settings)
    site = open_site(plan)
    state, before = start(plan, site.params()), resident()
    with TemporaryDirectory() as folder:
        engine = InProcess(site, Folder(Path(folder))) if remember else InProcess(site)
        began = time.perf_counter()
        _, ledger = next(federate(plan, engine, state))
        seconds = time.perf_counter() - began
        assert len(ledger.up) == cohort, ledger.failed
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    small = sum(x.nbytes for x in state.params.values())
    return {
        "base_mb": round(sum(x.nbytes for x in site.model.state_dict().values()) / 1e6),
        "an_update_mb": round(small / 1e6, 2),
        "rise_mb": round(max(0, peak() - before) / 1e6, 1),
        "disk_mb": round(disk / cohort / 1e6, 2),
        "seconds": round(seconds, 1),
    }


def server(updates: int = 1000, repeats: int = 3) -> dict[str, Any]:
    """In a fresh process too."""
    with get_context("spawn").Pool(1) as pool:
        found = pool.apply(_server, (updates, repeats))
    return {
        "what": f"{updates} updates of LoRA r=8 on a ViT-B/16 from the disk to their mean",
        **found,
    }


def _server(updates: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    plan = plan_of(updates, updates)
    state = start(plan, open_site(plan).params())
    with TemporaryDirectory() as folder:
        files = list(written(plan, state, updates, Path(folder)))
        averaged(plan, state, files[: max(1, updates // 10)])
        few = peak()
        cached = [against_reading(plan, state, files) for _ in range(repeats)]
        disk = [against_reading(plan, state, files, forget=True) for _ in range(repeats)]
        size = sum(file.stat().st_size for file in files)
    return {
        "mb": round(size / 1e6),
        **{f"from_cache_{key}": value for key, value in medians(cached).items()},
        **{f"from_disk_{key}": value for key, value in medians(disk).items()},
        "peak_above_that_of_a_tenth_mb": round((peak() - few) / 1e6, 1),
    }


def against_reading(
    plan: Plan, state: State, files: list[Path], forget: bool = False
) -> tuple[float, float]:
    """Seconds of reading the files, and of averaging them; each after the page cache has forgotten
    them, if asked."""
    if forget:
        forgotten(files)
    began = time.perf_counter()
    for file in files:
        file.read_bytes()
    reading = time.perf_counter() - began
    if forget:
        forgotten(files)
    began = time.perf_counter()
    averaged(plan, state, files)
    return reading, time.perf_counter() - began


def forgotten(files: Iterable[Path]) -> None:
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def medians(pairs: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "reading_seconds": round(statistics.median(a for a, _ in pairs), 3),
        "seconds": round(statistics.median(b for _, b in pairs), 3),
        "of_reading": round(statistics.median(b / a for a, b in pairs), 2),
    }


def written(plan: Plan, state: State, updates: int, folder: Path) -> Iterator[Path]:
    """Updates as clients send them, each with numbers of its own."""
    draws = torch.Generator().manual_seed(0)
    for k in range(updates):
        delta = map_tensors(lambda x: torch.randn(x.shape, generator=draws) * 0.01, state.params)
        file = folder / str(k)
        file.write_bytes(pack(Update(str(k), delta, 1.0 + k), plan.uplink))
        yield file


@dataclass(frozen=True)
class Waiting:
    """An engine whose replies lie in files already."""

    files: list[Path]

    @property
    def clients(self) -> list[str]:
        return [file.name for file in self.files]

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply]:
        for job, file in zip(jobs, ahead(self.files), strict=True):
            yield Reply(job.client, file.read_bytes())


def averaged(plan: Plan, state: State, files: list[Path]) -> None:
    """The server's side of a round."""
    ledger = Ledger(0)
    files = sorted(files, key=lambda file: file.name)
    clients = [file.name for file in files]
    admission = Admission.of(plan, state, ledger)
    round = Round(0, plan, clients, clients, 0, report=ledger.report)
    post = Post(plan, Waiting(files), admission, ledger, "scale")
    converse(average(state, round), post)
    assert len(ledger.weights) == len(files), ledger.failed


PARTS = {"memory": memory, "server": server}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="a folder for scale.json")
    chosen = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(1)}
    for name in chosen.only:
        results[name] = PARTS[name]()
        print(json.dumps(results[name], indent=2), flush=True)
    if chosen.out:
        keep(results, chosen.out / "scale.json")


def keep(results: dict[str, Any], file: Path) -> None:
    """Write them over those that the file has of the same parts, and leave its others."""
    file.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
