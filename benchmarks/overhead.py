"""What federation costs on top of the training itself.

    python -m benchmarks.overhead                     # all three, a few minutes on two cores
    python -m benchmarks.overhead --only few many
    python -m benchmarks.overhead --out benchmarks/results

few     ViT of 5.4 M parameters, LoRA r=8 + head, 32x32 pixels, 64 clients, 8 per round, 64 images
        each, batch 16: seconds per round over those of the bare PyTorch loop that does the same
        steps. Wanted: at most 1.10.
many    1,000 clients, 100 per round, 20 examples each, head only on 192 features: the same ratio.
        Wanted: at most 3.
memory  10,000 clients in one round, head only, in a process of its own: how far the peak rises
        above what is resident once data and model are loaded, over the sum of the clients' small
        tensors. Wanted: at most 1.10.
        1.10.

Both sides run in this process, in turn, and the median of the pairs' ratios is what counts.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.work import LinearHead, Noise, TinyViT, bare_round
from fedpeft import InProcess, Plan, federate, open_site, start
from fedpeft.local.descent import Descent
from fedpeft.methods.head import Head
from fedpeft.methods.lora import LoRA
from fedpeft.partitions.iid import IID
from fedpeft.plan.tables import Compute


def pairs(ours: Callable[[], None], bare: Callable[[], None], repeats: int) -> dict[str, float]:
    """Median seconds of both and the median ratio, measured in turn after one warm-up of each."""
    measured: list[tuple[float, float]] = []
    for k in range(repeats + 1):
        times = []
        for run in (ours, bare):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        if k:
            measured.append((times[0], times[1]))
    return {
        "seconds": round(statistics.median(a for a, _ in measured), 4),
        "bare_seconds": round(statistics.median(b for _, b in measured), 4),
        "ratio": round(statistics.median(a / b for a, b in measured), 3),
        "ratio_min": round(min(a / b for a, b in measured), 3),
        "ratio_max": round(max(a / b for a, b in measured), 3),
        "pairs": len(measured),
    }


def race(plan: Plan, forward: Any, repeats: int) -> dict[str, float]:
    """Rounds of `plan` against bare rounds over the same number of clients and steps."""
    site = open_site(plan)
    rounds = federate(plan, InProcess(site), start(plan, site.params()))
    bare_model = plan.model(site.classes)
    examples = plan.data.load().train.columns
    each = len(examples["label"]) // len(site.data.clients)
    own = [
        (examples["x"][k * each :][:each], examples["label"][k * each :][:each])
        for k in range(plan.cohort)
    ]
    local = plan.local
    assert isinstance(local, Descent)
    torch.set_num_threads(plan.compute.threads)

    def ours() -> None:
        _, ledger = next(rounds)
        assert len(ledger.up) == plan.cohort, ledger.failed

    return pairs(
        ours, lambda: bare_round(bare_model, forward, own, local.batch_size, local.lr), repeats
    )


def few(repeats: int, threads: int) -> dict[str, float]:
    plan = Plan(
        task=TinyViT(),
        data=Noise(64, 64, (3, 32, 32)),
        partition=IID(clients=64),
        method=LoRA(rank=8),
        local=Descent(lr=0.01, batch_size=16),
        rounds=repeats + 1,
        cohort=8,
        compute=Compute(threads=threads),
    )
    return race(plan, lambda model, x: model(pixel_values=x).logits, repeats)


def many(repeats: int, threads: int) -> dict[str, float]:
    repeats *= 10
    plan = Plan(
        task=LinearHead(),
        data=Noise(1000, 20, (192,)),
        partition=IID(clients=1000),
        method=Head(),
        local=Descent(lr=0.01, batch_size=20),
        rounds=repeats + 1,
        cohort=100,
        compute=Compute(threads=threads),
    )
    return race(plan, lambda model, x: model(x), repeats)


def memory(repeats: int, threads: int) -> dict[str, float]:
    """In a fresh process, since a process's peak never falls again."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory, (threads,))


def _memory(threads: int) -> dict[str, float]:
    clients = 10_000
    plan = Plan(
        task=LinearHead(),
        data=Noise(clients, 4, (192,)),
        partition=IID(clients=clients),
        method=Head(),
        local=Descent(lr=0.01, batch_size=4),
        rounds=2,
        cohort=clients,
        compute=Compute(threads=threads),
    )
    site = open_site(plan)
    small = sum(x.numel() * x.element_size() for x in site.params().values())
    before = resident()
    for _state, ledger in federate(plan, InProcess(site), start(plan, site.params())):
        assert len(ledger.up) == clients
    growth = max(0, peak() - before)
    return {
        "clients": clients,
        "growth_bytes": growth,
        "small_tensors_bytes": small * clients,
        "ratio": round(growth / (small * clients), 4),
    }


def resident() -> int:
    """Bytes in memory now; the peak so far where the system tells no more."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() if pages.exists() else peak()


def peak() -> int:
    """The most bytes so far; by the kernel's mark where there is one: a child inherits its parent's
    `ru_maxrss`."""
    status = Path("/proc/self/status")
    marks = (
        [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        if status.exists()
        else []
    )
    if marks:
        return int(marks[0].split()[1]) * 1024
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


BENCHMARKS = {"few": few, "many": many, "memory": memory}
WANTED = {"few": 1.10, "many": 3.0, "memory": 1.10}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="a folder for overhead.json")
    args = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(args.threads)}
    print(json.dumps(results["machine"], indent=2))
    for name in args.only:
        results[name] = BENCHMARKS[name](args.repeats, args.threads)
        verdict = "holds" if results[name]["ratio"] <= WANTED[name] else "does not hold"
        print(
            f"{name}: ratio {results[name]['ratio']} (wanted at most {WANTED[name]}: {verdict})  "
            f"{results[name]}"
        )
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "overhead.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
