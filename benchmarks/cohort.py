"""The cohort engine against one client after another: client steps per second.

    python -m benchmarks.cohort                          # all, some ten minutes on two cores
    python -m benchmarks.cohort --only vit-4 heads
    python -m benchmarks.cohort --out benchmarks/results

vit-N   ViT of 5.4 M parameters, LoRA r=8 + head, 32x32 pixels, 8 clients a round, 4 steps of N
        images each.
heads   1,000 clients, 100 a round, one step of 20 examples each, head only on 192 features.

Both engines run the same rounds in this process, in turn, on one thread; the median of the pairs'
ratios counts. A round is all of it: the bytes, the mean, the server's step. On a machine that does
other work beside, the ratio of the processor time tells more.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.work import LinearHead, Noise, TinyViT
from fedpeft import InProcess, Plan, federate, open_site, start
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.local.descent import Descent
from fedpeft.methods.head import Head
from fedpeft.methods.lora import LoRA
from fedpeft.partitions.iid import IID

STEPS = 4


def vit(batch: int) -> Plan:
    return Plan(
        task=TinyViT(),
        data=Noise(16, STEPS * batch, (3, 32, 32)),
        partition=IID(clients=16),
        method=LoRA(rank=8),
        local=Descent(lr=0.01, batch_size=batch),
        cohort=8,
    )


def heads() -> Plan:
    return Plan(
        task=LinearHead(),
        data=Noise(1000, 20, (192,)),
        partition=IID(clients=1000),
        method=Head(),
        local=Descent(lr=0.01, batch_size=20),
        cohort=100,
    )


PLANS: dict[str, Callable[[], Plan]] = {
    f"vit-{n}": lambda n=n: vit(n) for n in (1, 2, 4, 8, 16)
} | {"heads": heads}


def race(plan: Plan, repeats: int, device: str) -> dict[str, float]:
    """Client steps per second of both, and how many times as fast the cohort is."""
    plan = replace(plan, rounds=repeats + 1, compute=replace(plan.compute, threads=1))
    site = open_site(plan, device)
    rounds = [
        federate(plan, engine, start(plan, site.params()))
        for engine in (Cohort(site), InProcess(site))
    ]
    wall, work = [], []
    for _ in range(repeats + 1):
        times = []
        for one in rounds:
            began = time.perf_counter(), time.process_time()
            _, ledger = next(one)
            times.append((time.perf_counter() - began[0], time.process_time() - began[1]))
            assert len(ledger.up) == plan.cohort, ledger.failed
        wall.append([seconds for seconds, _ in times])
        work.append([seconds for _, seconds in times])
    client = site.data.clients[0]
    steps = plan.cohort * plan.local.steps_for(site.data.size(client))
    ratios = [alone / together for together, alone in wall[1:]]
    return {
        "cohort_steps_per_second": round(
            steps / statistics.median(pair[0] for pair in wall[1:]), 2
        ),
        "inprocess_steps_per_second": round(
            steps / statistics.median(pair[1] for pair in wall[1:]), 2
        ),
        "speedup": round(statistics.median(ratios), 3),
        "speedup_min": round(min(ratios), 3),
        "speedup_max": round(max(ratios), 3),
        "speedup_of_processor_time": round(
            statistics.median(alone / together for together, alone in work[1:]), 3
        ),
        "pairs": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a folder for cohort.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": {**machine(1), "device": args.device}}
    for name in args.only:
        results[name] = race(
            PLANS[name](), args.repeats * (10 if name == "heads" else 1), args.device
        )
        print(f"{name}: {results[name]['speedup']} times as fast  {results[name]}", flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "cohort.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
