"""Time-FFM on series of four kinds, each a client: heads of their own or one, words or none.

    python -m tools.series_domains FOLDER FILE

FOLDER has etth1.csv, etth2.csv, elecdemand.parquet and weather.parquet. The first 3,000 steps of
each are cut into windows. The language model has read stories, or has random weights, and stays
frozen. Each client's own held-out windows are measured. FILE gets the mean squared error by client,
kind of head, model and seed; it may be there with fewer rows, and only those that it lacks are run.
"""

import csv
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as parquet  # type: ignore[import-untyped]

from fedpeft.engines.inprocess import InProcess
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder
from tools.cell_tables import read_table, write_table

STEPS, ROUNDS, SEEDS = 3000, 12, (1, 42, 3407)
CLIENTS = ("demand", "etth1", "etth2", "weather")
COLUMNS = ("heads", "language model", "seed", "mean", *CLIENTS)


def read_domains(folder: Path) -> Iterator[tuple[str, str, Any]]:
    """(time, client, value) of the first steps of each series."""
    for name in ("etth1", "etth2"):
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        yield from ((row["date"], name, row["HUFL"]) for row in rows[:STEPS])
    demand = parquet.read_table(folder / "elecdemand.parquet").to_pylist()
    yield from ((row["time"].isoformat(), "demand", row["demand"]) for row in demand[:STEPS])
    weather = parquet.read_table(folder / "weather.parquet").to_pylist()
    airport = [row for row in weather if row["client"] == "JFK"]
    for row in airport[:STEPS]:
        yield row["time"].replace(tzinfo=None).isoformat(), "weather", row["temp"]


def settings_of(table: Path, heads: str, model: str, seed: int) -> dict[str, Any]:
    """The plan of one cell."""
    sizes = {"context": 96, "horizon": 24}
    words = {"model": "stories260k", "prototypes": 32, "random": model == "random"}
    return {
        "rounds": ROUNDS,
        "evaluate_every": ROUNDS,
        "cohort": len(CLIENTS),
        "seed": seed,
        "weighting": "uniform",
        "personal": ["head.*"] if heads == "own" else [],
        "task": {"name": "time-ffm", **sizes, **words},
        "data": {
            "name": "series",
            "path": str(table),
            "client": "client",
            "columns": ["value"],
            "stride": 8,
            **sizes,
        },
        "partition": {"name": "column", "column": "client"},
        "method": {"name": "named", "trains": ["patches.*", "prompt.*"]},
        "local": {"epochs": 2, "batch_size": 16, "lr": 0.003, "optimizer": "adamw"},
    }


def train_series(settings: Mapping[str, Any]) -> tuple[Site, Mapping[str, Any]]:
    """The site of one run in memory, and the errors on what its clients hold out.

    Raises:
      RuntimeError: nobody holds windows out, or an answer was not counted.
    """
    plan = read_plan(settings)
    site = open_site(plan)
    with TemporaryDirectory() as memory:
        store = Folder(Path(memory))
        ends = list(federate(plan, InProcess(site, store), start(plan, site.params())))
        found = own_held_out(site, ends[-1][0], store)
    if found is None or any(ledger.failed for _, ledger in ends):
        raise RuntimeError("no client holds windows out, or one failed")
    return site, found["metrics"]["loss"]


def run_cell(settings: Mapping[str, Any]) -> dict[str, float]:
    """The mean squared errors of one run, each on the scale of its own training part."""
    _, loss = train_series(settings)
    return {"mean": round(loss["mean"], 4), **{c: round(loss["each"][c], 4) for c in CLIENTS}}


def main() -> None:
    folder, file = map(Path, sys.argv[1:3])
    rows = read_table(file)
    known = {(row["heads"], row["language model"], row["seed"]) for row in rows}
    with TemporaryDirectory() as made:
        table = Path(made) / "domains.csv"
        with table.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([("time", "client", "value"), *read_domains(folder)])
        for seed, heads, model in product(SEEDS, ("own", "one"), ("stories", "random")):
            if (heads, model, str(seed)) in known:
                continue
            cell = run_cell(settings_of(table, heads, model, seed))
            rows.append({"heads": heads, "language model": model, "seed": seed, **cell})
            print(rows[-1], flush=True)
            write_table(file, COLUMNS, rows)


if __name__ == "__main__":
    main()
