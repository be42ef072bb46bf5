"""What a local step is made of, by PyTorch's profiler: the race's W1 and W2, batch 16, on one
thread.

    python -m benchmarks.steps
    python -m benchmarks.steps --only W1 --out benchmarks/results

Milliseconds of processor time of a step, without the profiler and then by kind of operation with
it, whose own time makes all of them a little longer. Products with frozen weights are named only
where they are laid out for the kernels; as plain products they are together with LoRA's.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import machine
from benchmarks.racing.works import VARIANTS, WORKS
from fedpeft import Plan, open_site
from fedpeft.compute.objective import Objective
from fedpeft.core.types import Context
from fedpeft.plan.tables import Compute

KINDS = {
    "laid-out products": ("mkldnn::",),
    "plain products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
    "GELU": ("aten::gelu",),
}
"""By kind, how the names of its operations begin."""
WAYS = ("plain", "packed", "bf16")


def step(plan: Plan, steps: int) -> dict[str, float]:
    site = open_site(plan)
    params, client = site.params(), site.data.clients[0]
    objective = Objective(site.model, plan.task, plan.local.precision)
    context = Context("profile", 0, 1, client, site.data.size(client), steps, 1, None)
    carry = plan.local.begin(params, {}, context)
    batch = next(iter(plan.local.batches(site.data, params, context)))
    site.model.train()

    def timed() -> float:
        began = time.process_time()
        plan.local.step(carry, batch, objective)
        return time.process_time() - began

    for _ in range(2):
        timed()
    whole = statistics.median(timed() for _ in range(steps))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            timed()
    spent = Counter[str]()
    for event in seen.key_averages():
        kind = next(
            (kind for kind, begins in KINDS.items() if event.key.startswith(begins)), "the rest"
        )
        spent[kind] += event.self_cpu_time_total / 1000 / steps
    return {
        "the step": round(whole * 1000, 1),
        **{kind: round(spent[kind], 1) for kind in (*KINDS, "the rest")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=("W1", "W2"), default=["W1", "W2"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, help="a folder for steps.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(1)}
    for name in chosen.only:
        for way in WAYS:
            results[f"{name} {way}"] = step(
                replace(
                    WORKS[name].plan(1), compute=Compute(**{"pack": False, **VARIANTS[way][0]})
                ),
                chosen.steps,
            )
            print(f"{name} {way}: {json.dumps(results[f'{name} {way}'])}", flush=True)
    if chosen.out:
        (chosen.out / "steps.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
