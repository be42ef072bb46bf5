"""Clients of two kinds: digits as they are, and upside down. What several models make of them.

    python -m tools.rotated_digits FILE
    python -m tools.rotated_digits FILE --collapse
    python -m tools.rotated_digits rotated-digits.npz --owners

The first writes a table of comma-separated values: by algorithm and seed the accuracy on the
clients' own held-out examples, each with the model that it would take, and how many of the models
somebody chose at the end. The second asks how often all clients stay with one model: IFCA alone,
with one draw of the noise and with up to five, over ten seeds, with how many clients each model had
in the first round and in the last. The file may be there with fewer rows; only those that it lacks
are run. The third writes the digits with their owners, for plans/digits-clusters.toml: an owner is
called by its kind and number.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
IFCA: Mapping[str, dict[str, Any]] = {
    "ifca, one draw": {"algorithms": [{"name": "ifca", "draws": 1, "least": 0.0}]},
    "ifca": {"algorithms": ["ifca"]},
}
VARIANTS: Mapping[str, dict[str, Any]] = {
    "federated averaging": {},
    "alone": {"routing": [{"name": "personal", "patterns": ["*"]}]},
    **IFCA,
    "ifca, least 0.3": {"algorithms": [{"name": "ifca", "least": 0.3}]},
    "fedfmc, no pull": {"algorithms": [{**FORK, "pull": 0.0}]},
    "fedfmc, pull 1": {"algorithms": [FORK]},
    "fedfmc, pull 100": {"algorithms": [{**FORK, "pull": 100.0}]},
}
"""By name the plan's keys."""
COLUMNS = ("variant", "seed", "accuracy", "chosen", "draws", "bytes")
SIZES = ("first", "last")
"""Columns of the second table: the clients of each model in that round."""


def turn(seed: int) -> tuple[Examples, list[Tensor]]:
    """The digits, and by client which are its own: drawn at random, and of every second client
    upside down."""
    examples = Digits().load()
    image, label = (examples.train.columns[name].clone() for name in ("image", "label"))
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    chunks = list(order.chunk(CLIENTS))
    for places in chunks[1::2]:
        image[places] = image[places].flip(-1, -2)
    return replace(examples, train=Table({"image": image, "label": label})), chunks


def divide(seed: int) -> tuple[Examples, Division]:
    """The digits among the clients, of whom each holds out a fifth."""
    examples, chunks = turn(seed)
    parts, apart = {}, {}
    for k, places in enumerate(chunks):
        name, held = f"c{k:02}", len(places) // 5
        apart[name], parts[name] = places[:held].sort().values, places[held:].sort().values
    return examples, Division(parts, apart=apart)


def save_owners(file: Path) -> None:
    """Write the digits as arrays, with whose each is; the division is that of seed 1."""
    examples, chunks = turn(1)
    image, label = (examples.train.columns[name].numpy() for name in ("image", "label"))
    owner = np.empty(len(label), "U14")
    for k, places in enumerate(chunks):
        owner[places.numpy()] = f"{('upright', 'upside-down')[k % 2]}-{k // 2}"
    np.savez(file, x_train=image, y_train=label, owner_train=owner)


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
        "first": " + ".join(map(str, first.get("sizes", ()))),
        "last": " + ".join(map(str, last.get("sizes", ()))),
    }


def main() -> None:
    file, collapse = Path(sys.argv[1]), sys.argv[2:] == ["--collapse"]
    if sys.argv[2:] == ["--owners"]:
        save_owners(file)
        return
    # collapses are counted, which takes more seeds than a mean does
    variants, seeds = (IFCA, 10) if collapse else (VARIANTS, 3)
    columns = (*COLUMNS, *SIZES) if collapse else COLUMNS
    rows = read_table(file)
    known = {(row["variant"], row["seed"]) for row in rows}
    for seed in range(1, seeds + 1):
        left = [name for name in variants if (name, str(seed)) not in known]
        site = site_of(read_plan({**PLAN, "seed": seed}), *divide(seed)) if left else None
        for name in left:
            assert site is not None
            cell = {"variant": name, "seed": seed, **run_cell(site, seed, variants[name])}
            rows.append({column: cell[column] for column in columns})
            print(*rows[-1].values(), flush=True)
            write_table(file, columns, rows)


if __name__ == "__main__":
    main()
