"""The server's side of one round of 1,000 to a million clients: seconds, memory and bytes.

    python -m benchmarks.million                          # some minutes
    python -m benchmarks.million --out benchmarks/results
    python -m benchmarks.million --most 100000            # no more clients than that

A hundred updates are recorded as clients send them. Each client then answers with one of them, so
that the server's work is whole: it draws up the questions, counts bytes, checks, decodes and
averages every answer. Nobody trains, and nothing crosses a network. Every row is a process of its
own. From a cohort's row to the next one can see whether seconds and memory grow with the clients
alone; where they do, a number that was not measured is the last one times the clients.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import Pictures
from benchmarks.machine import machine
from benchmarks.overhead import peak, resident
from benchmarks.scale import SamePicture
from fedpeft import Plan, open_site, read_plan, start
from fedpeft.algorithms.fedavg import average
from fedpeft.core.conversation import converse
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import Job, Reply, State, Update
from fedpeft.methods.lora import LoRA
from fedpeft.partitions.iid import IID
from fedpeft.plan.tables import Compute
from fedpeft.rounds.admission import Admission
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.post import Post
from fedpeft.wire.payloads import pack

RECORDED = 100
"""Different updates, of which each client sends one."""
BIAS, LORA = "bias on the package's ViT", "LoRA r=8 on a ViT-B/16"
ROWS = {BIAS: (1_000, 10_000, 100_000, 1_000_000), LORA: (1_000, 10_000)}
PROJECTED = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="a folder for million.json")
    parser.add_argument("--most", type=int, default=PROJECTED, help="clients of the largest row")
    chosen = parser.parse_args()
    rows = []
    for what, counts in ROWS.items():
        for clients in (n for n in counts if n <= chosen.most):
            rows.append(measure(what, clients))
            print(json.dumps(rows[-1]), flush=True)
    found = {"machine": machine(1), "rows": rows, "projected": [*project(rows)]}
    print(json.dumps(found["projected"], indent=2))
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "million.json").write_text(json.dumps(found, indent=2) + "\n")


def measure(what: str, clients: int) -> dict[str, Any]:
    """One row, in a fresh process, since a process's peak never falls again."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_here, (what, clients))


def measure_here(what: str, clients: int) -> dict[str, Any]:
    """The seconds of one round, and what the process's memory rises by in it.

    Returns:
      `what` and `clients`; `seconds` of the round; `us_a_client`; `mb_up` and `mb_down`;
      `memory_mb`, by which the process's peak rises in the round, and `memory_bytes_a_client`.
    """
    torch.set_num_threads(1)
    plan, state = open_work(what)
    payloads = record(plan, state)
    names = [f"c{k:07d}" for k in range(clients)]
    before = resident()
    began = time.perf_counter()
    ledger = take_round(replace(plan, cohort=clients), state, Recorded(names, payloads))
    seconds = time.perf_counter() - began
    rise = max(0, peak() - before)
    return {
        "what": what,
        "clients": clients,
        "seconds": round(seconds, 2),
        "us_a_client": round(seconds / clients * 1e6, 1),
        "mb_up": round(ledger.bytes_up / 1e6, 1),
        "mb_down": round(ledger.bytes_down / 1e6, 1),
        "memory_mb": round(rise / 1e6, 1),
        "memory_bytes_a_client": round(rise / clients),
    }


def project(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A round of a million clients: the last row of each work, times the clients that it lacks."""
    for row in {one["what"]: one for one in rows}.values():
        factor = PROJECTED / row["clients"]
        yield {
            "what": row["what"],
            "measured_clients": row["clients"],
            "seconds": round(row["seconds"] * factor),
            "gb_up": round(row["mb_up"] * factor / 1e3, 1),
            "gb_down": round(row["mb_down"] * factor / 1e3, 1),
            "memory_gb": round(row["memory_mb"] * factor / 1e3, 2),
        }


def open_work(what: str) -> tuple[Plan, State]:
    """The plan, and the state that its round begins with."""
    if what == BIAS:
        plan = read_plan({"method": "bias", "rounds": 1})
    else:
        plan = Plan(
            task=Pictures(),
            data=SamePicture(2),
            partition=IID(clients=2),
            method=LoRA(rank=8),
            rounds=1,
            cohort=2,
            compute=Compute(pack=False, features=False),
        )
    return plan, start(plan, open_site(plan).params())


def record(plan: Plan, state: State) -> list[bytes]:
    """Updates as clients send them, each with numbers of its own."""
    draws = torch.Generator().manual_seed(0)
    made = []
    for k in range(RECORDED):
        delta = map_tensors(lambda x: torch.randn(x.shape, generator=draws) * 0.01, state.params)
        made.append(pack(Update(str(k), delta, 1.0 + k), plan.uplink))
    return made


@dataclass(frozen=True)
class Recorded:
    """An engine whose clients answer with what was recorded, each with one of the payloads."""

    clients: list[str]
    payloads: list[bytes]

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply]:
        for k, job in enumerate(jobs):
            yield Reply(job.client, self.payloads[k % len(self.payloads)])


def take_round(plan: Plan, state: State, engine: Recorded) -> Ledger:
    """The server's side of a round of all clients; its ledger.

    Raises:
      RuntimeError: an update was not counted.
    """
    ledger = Ledger(0)
    admission = Admission.of(plan, state, ledger)
    round = Round(0, plan, engine.clients, engine.clients, 0, report=ledger.report)
    converse(average(state, round), Post(plan, engine, admission, ledger, "million"))
    if len(ledger.weights) != len(engine.clients):
        raise RuntimeError(f"only {len(ledger.weights)} of {len(engine.clients)} count")
    return ledger


if __name__ == "__main__":
    main()
