"""Clients of two kinds: digits as they are, and upside down. What several models make of them.

    python -m tools.rotated_digits FILE

It writes a table of comma-separated values: by algorithm and seed the accuracy on the clients' own
held-out examples, each with the model that it would take, and how many of the models somebody
chose at the end. The file may be there with fewer rows; only those that it lacks are run.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fedpeft.core.types import Division, Examples, Table
from fedpeft.data.digits import Digits
from fedpeft.engines.inprocess import InProcess
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, site_of
from fedpeft.storage.client_memory import Folder
from tools.cell_tables import read_table, write_table

CLIENTS = 20
PLAN: Mapping[str, Any] = {
    "method": "head",
    "engine": "inprocess",
    "cohort": CLIENTS,
    "rounds": 20,
    "local": {
        "epochs": 1,
        "batch_size": 16,
        "lr": 0.1,
        "optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": False},
    },
}
FORK = {"name": "fedfmc", "fork": 5}
VARIANTS: Mapping[str, tuple[dict[str, Any], int]] = {
    # collapses are counted, which takes more seeds than a mean does
    "federated averaging": ({}, 3),
    "alone": ({"routing": [{"name": "personal", "patterns": ["*"]}]}, 3),
    "ifca, one draw": ({"algorithms": [{"name": "ifca", "draws": 1, "least": 0.0}]}, 10),
    "ifca": ({"algorithms": ["ifca"]}, 10),
    "ifca, least 0.3": ({"algorithms": [{"name": "ifca", "least": 0.3}]}, 10),
    "fedfmc, no pull": ({"algorithms": [{**FORK, "pull": 0.0}]}, 3),
    "fedfmc, pull 1": ({"algorithms": [FORK]}, 3),
    "fedfmc, pull 100": ({"algorithms": [{**FORK, "pull": 100.0}]}, 3),
}
"""By name the plan's keys, and the number of seeds, which are 1, 2, ..."""
COLUMNS = ("variant", "seed", "accuracy", "chosen", "draws", "bytes")


def divide(seed: int) -> tuple[Examples, Division]:
    """The digits among the clients at random, of which every second has its own upside down and
    each holds out a fifth."""
    examples = Digits().load()
    image, label = (examples.train.columns[name].clone() for name in ("image", "label"))
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    parts, apart = {}, {}
    for k, places in enumerate(order.chunk(CLIENTS)):
        if k % 2:
            image[places] = image[places].flip(-1, -2)
        name, held = f"c{k:02}", len(places) // 5
        apart[name], parts[name] = places[:held].sort().values, places[held:].sort().values
    table = Table({"image": image, "label": label})
    return replace(examples, train=table), Division(parts, apart=apart)


def run_cell(site: Site, seed: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one run.

    Raises:
      RuntimeError: an answer was not counted.
    """
    plan = read_plan({**PLAN, **changes, "seed": seed})
    here = replace(site, plan=plan)
    with TemporaryDirectory() as folder:
        store = Folder(Path(folder))
        ends = list(federate(plan, InProcess(here, store), start(plan, here.params())))
        state, ledger = ends[-1]
        found = own_held_out(here, state, store)
    if found is None or any(one.failed or one.note for _, one in ends):
        raise RuntimeError(f"seed {seed}: {ledger.failed} {ledger.note}")
    first, last = ends[0][1].reports.get("ifca", {}), ledger.reports.get("ifca", {})
    return {
        "accuracy": found["metrics"]["accuracy"]["weighted"],
        "chosen": len(last["sizes"]) - last["empty"] if last else 1,
        "draws": first.get("draws", 0),
        "bytes": sum(one.bytes_up + one.bytes_down for _, one in ends),
    }


def main() -> None:
    file = Path(sys.argv[1])
    rows = read_table(file)
    known = {(row["variant"], row["seed"]) for row in rows}
    for seed in range(1, 11):
        wanted = [name for name, (_, seeds) in VARIANTS.items() if seed <= seeds]
        left = [name for name in wanted if (name, str(seed)) not in known]
        site = site_of(read_plan({**PLAN, "seed": seed}), *divide(seed)) if left else None
        for name in left:
            assert site is not None
            row = {"variant": name, "seed": seed, **run_cell(site, seed, VARIANTS[name][0])}
            print(*row.values(), flush=True)
            rows.append(row)
            write_table(file, COLUMNS, rows)


if __name__ == "__main__":
    main()
