"""The cells of a study of heads without training, in one process: features are computed once, which
takes most of the time of a cell.

    python -m tools.sums_table studies/sums-digits.toml docs/results/sums-digits.csv

Each cell is `federate` on its plan as `fedpeft sweep` runs it; kept features agree with those that
are not to 1e-5. A file that is there keeps its rows, and only cells that it lacks are run.
"""

import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedpeft.engines.inprocess import InProcess
from fedpeft.evaluation.measure import measure
from fedpeft.plan.calibration import calibrate_noise
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Nowhere
from fedpeft.studies.study import Cell, read_study

COLUMNS = ("study", "head", "seed", "accuracy", "bytes_up_each", "bytes_down_each", "epsilon")
ENOUGH = 10
"""Rounds of a plan with which features are kept."""


def row_of(study: str, cell: Cell, site: Site) -> dict[str, str]:
    """What comes of a cell; `site` has its data and division."""
    plan = calibrate_noise(cell.plan, site.data.clients)
    here = replace(site, plan=plan)
    ends = list(federate(plan, InProcess(here, Nowhere()), start(plan, here.params())))
    state, ledger = ends[-1]
    if any(one.failed or one.note for _, one in ends):
        raise RuntimeError(f"{cell.name}: {ledger.failed} {ledger.note}")
    clients = len(site.data.clients)
    up, down = (sum(getattr(one, way) for _, one in ends) for way in ("bytes_up", "bytes_down"))
    spent = ledger.privacy["epsilon"] if ledger.privacy else None
    values = (
        f"{measure(here, state.flat)['accuracy']:.4f}",
        f"{up / clients:.0f}",
        f"{down / clients:.0f}",
        "" if spent is None else f"{spent:.3f}",
    )
    said = (study, cell.labels["head"], str(cell.seed), *values)
    return dict(zip(COLUMNS, said, strict=True))


def run_cells(path: Path, out: Path) -> Iterator[dict[str, str]]:
    """The rows that `out` has, and those of the cells that it lacks."""
    study, known = read_study(path), {}
    if out.exists():
        with out.open(newline="") as file:
            known = {(row["head"], row["seed"]): row for row in csv.DictReader(file)}
    sites: dict[tuple[int, Any], Site] = {}
    for cell in study.cells:
        name = cell.labels["head"], str(cell.seed)
        if name not in known:
            division = cell.seed, cell.plan.partition
            if division not in sites:
                sites.clear()  # one model and its features at a time
                seen = replace(cell.plan, rounds=ENOUGH, algorithms=(), weighting="examples")
                sites[division] = open_site(seen)
            known[name] = row_of(study.name, cell, sites[division])
        yield known[name]


def main(path: Path, out: Path) -> None:
    rows = []
    for row in run_cells(path, out):
        rows.append(row)
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
