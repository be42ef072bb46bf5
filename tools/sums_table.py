"""The cells of a study of heads without training, in one process: features are computed once, which
takes most of the time of a cell.

    python -m tools.sums_table studies/sums-digits.toml docs/results/sums-digits.csv

Each cell is `federate` on its plan as `fedpeft sweep` runs it; kept features agree with those that
are not to 1e-5. A file that is there keeps its rows, and only cells that it lacks are run.
"""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpeft.engines.inprocess import InProcess
from fedpeft.evaluation.measure import held_out
from fedpeft.plan.calibration import calibrate_noise
from fedpeft.plan.plan import SCHEMA
from fedpeft.registry import describe
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder
from fedpeft.studies.study import Cell, read_study
from tools.results.rows import Result, read_results, write_results

ENOUGH = 10
"""Rounds of a plan with which features are kept."""


def run_cell(study: str, cell: Cell, site: Site) -> Result:
    """What comes of a cell; `site` has its data and division.

    Raises:
      RuntimeError: an answer was not counted.
    """
    plan, clients = calibrate_noise(cell.plan, site.data.clients), len(site.data.clients)
    here = replace(site, plan=plan)
    with TemporaryDirectory() as folder:
        store = Folder(Path(folder))
        ends = list(federate(plan, InProcess(here, store), start(plan, here.params())))
        state, ledger = ends[-1]
        accuracy = held_out(here, state, store)["accuracy"]
    if any(one.failed or one.note for _, one in ends):
        raise RuntimeError(f"{cell.name}: {ledger.failed} {ledger.note}")
    up, down = (sum(getattr(one, way) for _, one in ends) for way in ("bytes_up", "bytes_down"))
    values = {
        "method": describe("method", plan.method)["name"],
        "rounds": str(plan.rounds),
        "clients": str(clients),
        "cohort": str(cell.plan.cohort),
        "accuracy_last": str(accuracy),
        "bytes_up": str(up),
        "bytes_down": str(down),
    }
    if ledger.privacy:
        values["privacy.epsilon"] = str(ledger.privacy["epsilon"])
    settings = "; ".join(cell.settings)
    return Result(SCHEMA, study, cell.name, cell.seed, settings, cell.labels, values)


def main(path: Path, out: Path) -> None:
    study = read_study(path)
    known = {one.identity: one for one in read_results(out)} if out.exists() else {}
    sites: dict[tuple[int, Any], Site] = {}
    for cell in study.cells:
        labels = tuple(sorted(cell.labels.items()))
        if (study.name, labels, cell.seed, SCHEMA) in known:
            continue
        division = cell.seed, cell.plan.partition
        if division not in sites:
            sites.clear()  # one model and its features at a time
            seen = replace(cell.plan, rounds=ENOUGH, algorithms=(), routing=())
            sites[division] = open_site(replace(seen, weighting="examples"))
        row = run_cell(study.name, cell, sites[division])
        known[row.identity] = row
        write_results(known.values(), out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
