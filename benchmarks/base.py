"""What preparing the frozen part gives: packed weights to LoRA r=8 on query and value, kept
features to a new head.

    python -m benchmarks.base                          # all, some minutes
    python -m benchmarks.base --only vision --batch 8 --repeats 9
    python -m benchmarks.base --out benchmarks/results

vision  ViT of 5.4 M parameters, 32x32 pixels, patch 4
text    a BERT of MiniLM's size (hidden 384, 6 layers), 64 tokens
head    the ViT again, head only: rounds of 10 of 100 clients with 20 pictures each
accuracy  whole runs of the plans that are given, or of the package's own digits, with a frozen
        base in float32 and in bfloat16: the held-out accuracy at the end, in percent, for each seed

Every time of the first two is a client's step, forward, backward and SGD, in one process. The ways
are measured one after another in each repeat, each ratio is to the plain step of the same repeat,
and what counts is the median. `error` is the largest difference of a gradient's entries from the
plain one's, over the largest entry. Of `head` it is a round's time with features over that with the
whole model, weights packed in both; `prepare` is what making them took.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.overhead import pairs
from benchmarks.work import CLASSES, Noise, TinyViT, Tokens
from fedpeft import InProcess, Plan, federate, open_site, start
from fedpeft.compute.frozen_linear import BASE_DTYPES, prepare_frozen
from fedpeft.compute.objective import Objective
from fedpeft.compute.trainable import read
from fedpeft.core.interfaces import Method, Task
from fedpeft.core.seeds import seed_torch
from fedpeft.core.types import Batch, State, Tensors
from fedpeft.evaluation.measure import measure
from fedpeft.local.descent import Descent
from fedpeft.methods.head import Head
from fedpeft.methods.lora import LoRA
from fedpeft.optimizers.sgd import SGD
from fedpeft.partitions.iid import IID
from fedpeft.plan.reading import read_plan
from fedpeft.plan.tables import Compute
from fedpeft.rounds.loop import Ledger

WAYS = {
    "plain": ("float32", False),
    "packed float32": ("float32", True),
    "packed bfloat16": ("bfloat16", True),
}
MODELS: dict[str, Task] = {"vision": TinyViT(), "text": Tokens()}
PARTS = (*MODELS, "head", "accuracy")


def inputs(name: str, size: int) -> Batch:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(size, 3, 32, 32, generator=draws)
    if name == "text":
        x = torch.randint(1, 30000, (size, 64), generator=draws)
    return {"x": x, "label": torch.arange(size) % len(CLASSES), "mask": torch.ones(size)}


def stepping(task: Task, way: str, batch: Batch) -> tuple[Callable[[], object], Tensors]:
    """A step to be timed, and the gradient that it takes."""
    method: Method = LoRA(rank=8)
    with seed_torch(1):
        model = method.inject(task.build(CLASSES).requires_grad_(False)).train()
    names = method.names(model)
    prepare_frozen(model, names, *WAYS[way])
    objective, optimizer, params, lr = (
        Objective(model, task),
        SGD(),
        read(model, names),
        torch.tensor(0.01),
    )
    memory = optimizer.init(params)

    def step() -> object:
        gradient, _, _ = objective.gradient(params, batch)
        return optimizer.step(params, memory, gradient, lr)

    return step, objective.gradient(params, batch)[0]


def race(name: str, size: int, repeats: int) -> dict[str, Any]:
    batch = inputs(name, size)
    made = {way: stepping(MODELS[name], way, batch) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, (step, _) in made.items():
            began = time.perf_counter()
            step()
            times[way].append(time.perf_counter() - began)
    plain = times["plain"]
    return {
        way: _against(plain, times[way]) | {"error": _error(made["plain"][1], made[way][1])}
        for way in WAYS
    }


def _against(plain: list[float], own: list[float]) -> dict[str, float]:
    ratios = sorted(a / b for a, b in zip(own, plain, strict=True))
    quarter = len(ratios) // 4
    return {
        "seconds": round(statistics.median(own), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quarter": round(ratios[quarter], 3),
        "ratio_three_quarters": round(ratios[-1 - quarter], 3),
    }


def _error(plain: Tensors, own: Tensors) -> float:
    def largest(xs: list[Tensor]) -> float:
        return max(float(x.abs().max()) for x in xs)

    return float(
        f"{largest([own[n] - plain[n] for n in plain]) / largest(list(plain.values())):.2g}"
    )


def head(repeats: int, threads: int) -> dict[str, Any]:
    """In a cache of its own, so that features are made."""
    plan = Plan(
        task=TinyViT(),
        data=Noise(100, 20, (3, 32, 32)),
        partition=IID(clients=100),
        method=Head(),
        local=Descent(lr=0.01, batch_size=20),
        rounds=max(20, repeats + 1),
        cohort=10,
        compute=Compute(threads=threads),
    )
    with TemporaryDirectory() as folder:
        os.environ["FEDPEFT_CACHE"] = folder
        began = time.perf_counter()
        kept = open_site(plan)
        prepare = time.perf_counter() - began
        whole = open_site(replace(plan, compute=replace(plan.compute, features=False)))
        ways = [
            federate(site.plan, InProcess(site), start(plan, site.params()))
            for site in (kept, whole)
        ]
        assert kept.kept.cut is not None, kept.kept.note
        timed = pairs(lambda: done(ways[0]), lambda: done(ways[1]), repeats)
    return {**timed, "prepare": round(prepare, 2)}


def accuracy(plans: Sequence[Path], seeds: Sequence[int]) -> dict[str, Any]:
    own = files("fedpeft") / "assets" / "plans" / "digits.toml"
    found: dict[str, Any] = {}
    texts: list[Path | str] = [*plans] or [own.read_text(encoding="utf-8")]
    for text in texts:
        for seed in seeds:
            for dtype in BASE_DTYPES:
                plan = read_plan(
                    text, [f"seed={seed}", f'base_dtype="{dtype}"', "engine=inprocess"]
                )
                site = open_site(plan)
                *_, (state, _) = federate(plan, InProcess(site), start(plan, site.params()))
                reached = 100 * measure(site, state.params)["accuracy"]
                found.setdefault(plan.name, {}).setdefault(dtype, []).append(round(reached, 2))
    return found


def done(rounds: Iterator[tuple[State, Ledger]]) -> None:
    _, ledger = next(rounds)
    assert not ledger.failed, ledger.failed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--plans", type=Path, nargs="+", default=[], metavar="PLAN.toml", help="for `accuracy`"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 42, 3407], help="for `accuracy`"
    )
    parser.add_argument("--out", type=Path, help="a folder for base.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {"machine": machine(args.threads)}
    print(json.dumps(results["machine"], indent=2))
    if "head" in args.only:
        results["head"] = head(args.repeats, args.threads)
        print(f"head: {results['head']}")
    if "accuracy" in args.only:
        results["accuracy"] = accuracy(args.plans, args.seeds)
        print(f"accuracy: {results['accuracy']}")
    for name in args.only:
        for size in args.batch if name in MODELS else ():
            results[f"{name}, batch {size}"] = race(name, size, args.repeats)
            for way, figures in results[f"{name}, batch {size}"].items():
                print(f"{name}, batch {size}, {way}: {figures}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "base.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
