"""The work of the race as plans, and how a plan becomes a course that every racer can read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.racing.course import ORDERS, ROWS, START
from benchmarks.racing.running import ONE_THREAD
from benchmarks.work import CLASSES, LinearHead, Noise, TinyViT, Tokens
from fedpeft import Plan, open_site
from fedpeft.core.interfaces import Task
from fedpeft.core.seeds import fold, generator
from fedpeft.data.client_data import Partitioned
from fedpeft.local.descent import Descent
from fedpeft.methods.head import Head
from fedpeft.methods.lora import LoRA
from fedpeft.partitions.iid import IID
from fedpeft.plan.calibration import round_seed, select_cohort
from fedpeft.plan.tables import Compute

LR = 0.01


@dataclass(frozen=True)
class Work:
    """A row of the race.

    Attributes:
      model: its name in `racing.models`.
      each: examples of a client.
      at_once: rounds between two changes of the racer; short rounds are run some at a time.
      ways: of `VARIANTS`, those that take part.
      out: who does not take part, and why.
    """

    told: str
    model: str
    task: Task
    shape: tuple[int, ...]
    clients: int = 64
    cohort: int = 8
    each: int = 64
    batch: int = 16
    tokens: int = 0
    at_once: int = 1
    ways: tuple[str, ...] = (
        "plain",
        "packed",
        "bf16",
        "processes",
        "processes-bf16",
        "cohort",
        "auto",
    )
    out: Mapping[str, str] = field(default_factory=dict)

    def plan(self, rounds: int) -> Plan:
        return Plan(
            task=self.task,
            data=Noise(self.clients, self.each, self.shape, self.tokens),
            partition=IID(clients=self.clients),
            method=Head() if self.model == "head" else LoRA(rank=8),
            local=Descent(lr=LR, batch_size=self.batch),
            cohort=self.cohort,
            rounds=rounds,
            compute=Compute(pack=False),
        )


WORKS: Mapping[str, Work] = {
    "W1": Work(
        "ViT of 5.4 M parameters, LoRA r=8 + head; 8 of 64 clients, 64 pictures of 32x32 each, "
        "batch 16",
        "vit",
        TinyViT(),
        (3, 32, 32),
    ),
    "W2": Work(
        "BERT of MiniLM's size, LoRA r=8 + head; 8 of 64 clients, 64 texts of 64 tokens each, "
        "batch 16",
        "bert",
        Tokens(),
        (64,),
        tokens=30000,
    ),
    "W3": Work(
        "a new head on 192 features that everybody is given; 100 of 1,000 clients, 20 examples "
        "each, batch 20",
        "head",
        LinearHead(),
        (192,),
        clients=1000,
        cohort=100,
        each=20,
        batch=20,
        at_once=10,
        ways=("plain", "cohort", "auto"),
        out={"trainer": "each `train()` collects garbage, half a second a client here"},
    ),
}
SMALL = Work(
    "for tests", "head", LinearHead(), (192,), 10, 3, 10, 4, ways=("plain", "cohort", "auto")
)


def lay_out(work: Work, rounds: int, folder: Path) -> None:
    """Write the course of a work: what `fedpeft` would train with, to the row."""
    plan = work.plan(rounds)
    site = open_site(plan)
    assert isinstance(site.data, Partitioned)
    save_file({name: x.contiguous() for name, x in site.model.state_dict().items()}, folder / START)
    examples = plan.data.load().train.columns
    save_file({"x": examples["x"], "label": examples["label"]}, folder / ROWS)
    settings = {
        "model": work.model,
        "classes": len(CLASSES),
        "lora": lora(plan),
        "trained": list(plan.method.names(site.model)),
        "batch": work.batch,
        "lr": LR,
        "clients": work.clients,
        "rounds": [orders(plan, site.data.parts, k) for k in range(rounds)],
    }
    (folder / ORDERS).write_text(json.dumps(settings))


def lora(plan: Plan) -> dict[str, Any] | None:
    if not isinstance(plan.method, LoRA):
        return None
    config = plan.method.config(plan.task.build(CLASSES))
    return {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
    }


def orders(plan: Plan, parts: Mapping[str, torch.Tensor], round_: int) -> dict[str, list[int]]:
    """Who trains in a round, and on which rows one after another."""

    def order(client: str) -> list[int]:
        seed = fold(round_seed(plan, round_), "client", client)
        draws, mine = generator(seed, "batches"), parts[client]
        rows: list[int] = mine[torch.randperm(len(mine), generator=draws)].tolist()
        return rows

    return {client: order(client) for client in select_cohort(plan, list(parts), round_)}


VARIANTS: Mapping[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "inprocess"),
    "packed": ({"pack": True}, "inprocess"),
    "bf16": ({"pack": True, "base_dtype": "bfloat16"}, "inprocess"),
    "processes": ({"pack": True}, "processes"),
    "processes-bf16": ({"pack": True, "base_dtype": "bfloat16"}, "processes"),
    "cohort": ({"pack": True}, "cohort"),
    "auto": ({"pack": True}, "auto"),
}
"""Settings and engine of each way to do it with fedpeft."""


def ours(work: Work, rounds: int, variant: str, processors: int) -> tuple[Plan, str]:
    """The plan of a variant and its engine. All have all processors, but for "auto", whose stack
    has one thread."""
    settings, engine = VARIANTS[variant]
    plan = work.plan(rounds)
    threads = 1 if variant in ONE_THREAD else processors
    return replace(plan, compute=replace(plan.compute, threads=threads, **settings)), engine
