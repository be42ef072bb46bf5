"""Clients with three modalities, of which they send some: the upper half of a digit, the lower
half, and numbers that tell nothing. What choosing costs and saves.

    python -m tools.modalities FILE

It writes a table of comma-separated values. By variant and seed it has the accuracy of the last
round, the bytes up of all rounds, those until the accuracy was first within a point of what
federated averaging ends with, and how often each modality was sent. The file may be there with
fewer rows; only those that it lacks are run.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.core.types import Examples, Table
from fedpeft.data.digits import Digits
from fedpeft.data.divide import divide
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.evaluation.measure import measure
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, site_of
from fedpeft.storage.client_memory import Folder
from tools.cell_tables import read_table, write_table

WIDTHS = {"upper": 32, "lower": 32, "noise": 64}
"""How many numbers each modality has; the one that tells nothing has the largest encoder."""
SEEDS = (1, 42, 3407)
WITHIN = 0.01


class Encoders(nn.Module):
    """A layer of its own width for each modality, and a head on all of them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = WIDTHS.values()
        self.encoders = nn.ModuleList(nn.Linear(width, width) for width in widths)
        self.head = nn.Linear(sum(widths), classes)

    def forward(self, x: Tensor) -> Tensor:
        """From (n, numbers) to (n, classes)."""
        parts = torch.split(x, list(WIDTHS.values()), 1)
        seen = [encoder(part).relu() for encoder, part in zip(self.encoders, parts, strict=True)]
        logits: Tensor = self.head(torch.cat(seen, 1))
        return logits


PLAN: Mapping[str, Any] = {
    "task": {"name": "module", "module": Encoders},
    "method": "scratch",
    "engine": "cohort",
    "cohort": 10,
    "rounds": 40,
    "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.5},
    "compute": {"features": False},
    "local": {
        "epochs": 1,
        "batch_size": 16,
        "lr": 0.3,
        "optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": False},
    },
}
GROUPS = {name: [f"encoders.{k}.*"] for k, name in enumerate(WIDTHS)}
INPUTS = {"upper": ["x[0:32]"], "lower": ["x[32:64]"], "noise": ["x[64:128]"]}


def choosing(keep: int, by_size: float = 0.0, **more: Any) -> dict[str, Any]:
    """A plan in which clients choose."""
    part = {"name": "fedmfs", "groups": GROUPS, "keep": keep, "by_size": by_size, **more}
    return {"algorithms": [part]}


def drawing(count: int) -> dict[str, Any]:
    """A plan in which a client's modalities are drawn."""
    part = {"name": "drawn", "pattern": "encoders.{}.*", "groups": 3, "by": "client"}
    return {"routing": [{**part, "counts": [count]}]}


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "all but noise": {"routing": [{"name": "subset", "trains": ["!encoders.2.*"]}]},
    "2 drawn": drawing(2),
    "2 by inputs": choosing(2, inputs=INPUTS),
    "2 by inputs and size": choosing(2, 0.5, inputs=INPUTS),
    "2 by tensors": choosing(2),
    "1 drawn": drawing(1),
    "1 by inputs": choosing(1, inputs=INPUTS),
    "1 by inputs, recency 1": choosing(1, inputs=INPUTS, recency=1.0),
    "1 by inputs, size and recency, alike": choosing(1, 0.5, inputs=INPUTS, recency=0.5),
    "2 by inputs, recency 1": choosing(2, inputs=INPUTS, recency=1.0),
    "1 by tensors": choosing(1),
    "1 by tensors, set apart": choosing(1, sets_apart=0.2),
}
COLUMNS = ("variant", "seed", "accuracy", "bytes", "bytes_until", *WIDTHS)


def with_noise(examples: Examples, seed: int) -> Examples:
    """Digits as rows of numbers: the upper half, the lower half, and normal noise."""
    draws = torch.Generator().manual_seed(seed)

    def rows(table: Table) -> Table:
        pixels = table.columns["image"].flatten(1).float() / 255
        noise = torch.randn(len(pixels), WIDTHS["noise"], generator=draws)
        return Table({"x": torch.cat([pixels, noise], 1), "label": table.columns["label"]})

    return replace(examples, train=rows(examples.train), test=rows(examples.test))


def open_cell(seed: int, changes: Mapping[str, Any]) -> Site:
    """The site of one run."""
    plan = read_plan({**PLAN, **changes, "seed": seed})
    examples = with_noise(Digits().load(), seed)
    return site_of(plan, examples, divide(plan.partition, examples, seed))


def run_cell(site: Site) -> Iterator[tuple[float, int, Mapping[str, int]]]:
    """Of each round the accuracy after it, its bytes up, and how many sent each modality.

    Raises:
      RuntimeError: an answer was not counted.
    """
    plan = site.plan
    with TemporaryDirectory() as memory:  # with recency clients note when they sent what
        engine = Cohort(site, Folder(Path(memory)))
        for state, ledger in federate(plan, engine, start(plan, site.params())):
            if ledger.failed or ledger.note:
                raise RuntimeError(f"{plan.seed}: {ledger.failed} {ledger.note}")
            sent = ledger.reports.get("fedmfs", {}).get("sent", {})
            yield measure(site, state.flat)["accuracy"], ledger.bytes_up, sent


def describe_cell(
    rounds: Sequence[tuple[float, int, Mapping[str, int]]], goal: float
) -> dict[str, Any]:
    """The numbers of one run; without `bytes_until` where the goal was not reached."""
    accuracies, sizes, sent = zip(*rounds, strict=True)
    reached = next((k for k, accuracy in enumerate(accuracies) if accuracy >= goal), None)
    return {
        "accuracy": accuracies[-1],
        "bytes": sum(sizes),
        "bytes_until": "" if reached is None else sum(sizes[: reached + 1]),
        **{name: sum(one.get(name, 0) for one in sent) for name in WIDTHS},
    }


def main() -> None:
    file = Path(sys.argv[1])
    rows = read_table(file)
    known = {(row["variant"], int(row["seed"])): float(row["accuracy"]) for row in rows}
    for seed in SEEDS:
        for name, changes in VARIANTS.items():
            if (name, seed) in known:
                continue
            rounds = list(run_cell(open_cell(seed, changes)))
            known[name, seed] = rounds[-1][0]  # the first variant is the one that sets the goal
            told = describe_cell(rounds, known["all", seed] - WITHIN)
            rows.append({"variant": name, "seed": seed, **told})
            print(*rows[-1].values(), flush=True)
            write_table(file, COLUMNS, rows)


if __name__ == "__main__":
    main()
