"""PatchTST on the months of Victoria's demand: a head of each month's own or one, weights that have
seen other series or none, and all windows of a month or few.

    python -m tools.pretrained_series FOLDER FILE

FOLDER has etth1.csv, on whose seven columns PatchTST is trained first, and elecdemand.parquet. With
few windows a month keeps the last three and a half days before its held-out part, about six windows
in the place of 130; that part stays as it is. Each month is measured on its own held-out windows,
standardised by what it trains on, so that errors of all and of few windows do not compare. FILE
gets the mean squared error over months by windows, start, heads and seed, and that of the last
value that goes on; it may be there with fewer rows, and only those that it lacks are run.
"""

import csv
import subprocess
import sys
from collections.abc import Mapping
from itertools import groupby, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as parquet  # type: ignore[import-untyped]

from fedpeft.rounds.site import Site
from tools.cell_tables import read_table, write_table
from tools.series_domains import train_series

SEEDS, ROUNDS, FIRST, STRIDE = (1, 42, 3407), 12, 10, 8
HELD_OUT, FEW = 0.2, 0.64
"""The share of a month that is held out, and the share that this is of a month with few windows."""
SIZES = {"context": 96, "horizon": 24}
LOCAL = {"batch_size": 16, "lr": 0.001, "optimizer": "adamw"}
PARTS = (("all", "few"), ("random", "pre-trained"), ("one", "own"))
COLUMNS = ("windows", "start", "heads", "seed", "mean", "worst", "last value")


def write_months(source: Path, file: Path, few: bool) -> float:
    """Write a table of time, month and demand; gives the share of each that is held out."""
    table = parquet.read_table(source).to_pylist()
    rows = [(row["time"].isoformat(), f"{row['time']:%m}", row["demand"]) for row in table]
    months = [list(month) for _, month in groupby(rows, key=lambda row: row[1])]
    held = [len(month) - round((1 - HELD_OUT) * len(month)) for month in months]
    kept = [month[-round(count / FEW) :] for month, count in zip(months, held, strict=True)]
    with file.open("w", encoding="utf-8", newline="") as out:
        chosen = kept if few else months
        csv.writer(out).writerows([("time", "month", "demand"), *(x for m in chosen for x in m)])
    return FEW if few else HELD_OUT


def pretrain(source: Path, seed: int, folder: Path) -> Path:
    """The folder of a PatchTST that seven clients trained on ETTh1."""
    keys = {
        "method": "full",
        "weighting": "uniform",
        "cohort": 7,
        "task": '{ name = "forecast", model = "patchtst", context = 96, horizon = 24 }',
        "data": f'{{ name = "series", path = "{source}", context = 96, horizon = 24, '
        f"stride = {STRIDE} }}",
        "partition": '{ name = "column", column = "client" }',
        "local": '{ epochs = 1, batch_size = 16, lr = 0.001, optimizer = "adamw" }',
        "evaluate_every": FIRST,
    }
    run, out = folder / f"run-{seed}", folder / f"patchtst-{seed}"
    plan = [f"--set={key}={value}" for key, value in keys.items()]
    _call("run", *plan, f"--seed={seed}", f"--rounds={FIRST}", f"--out={run}", "--quiet")
    _call("export", str(run), str(out))
    return out


def _call(*arguments: str) -> None:
    command = [sys.executable, "-m", "fedpeft", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def settings_of(table: Path, share: float, model: str, heads: str, seed: int) -> dict[str, Any]:
    """The plan of one cell. All take equally many steps."""
    return {
        "method": "full",
        "seed": seed,
        "rounds": ROUNDS,
        "evaluate_every": ROUNDS,
        "cohort": 12,
        "weighting": "uniform",
        "personal": ["head.*"] if heads == "own" else [],
        "task": {"name": "forecast", "model": model, **SIZES},
        "data": {
            "name": "series",
            "path": str(table),
            "client": "month",
            "columns": ["demand"],
            "test_fraction": share,
            "stride": STRIDE,
            **SIZES,
        },
        "partition": {"name": "column", "column": "client"},
        "local": {"steps": 8, **LOCAL},
    }


def run_cell(settings: Mapping[str, Any]) -> dict[str, float]:
    """The mean squared errors of one run."""
    site, loss = train_series(settings)
    numbers = {
        "mean": loss["mean"],
        "worst": max(loss["each"].values()),
        "last value": last_value(site),
    }
    return {name: round(x, 4) for name, x in numbers.items()}


def last_value(site: Site) -> float:
    """The error where the last value goes on, as a mean over clients."""
    each = []
    for client in site.data.clients:
        total, count = 0.0, 0.0
        for batch in site.data.held_out(client):
            errors = (batch["future"] - batch["past"][:, -1:]).square().mean(1) * batch["mask"]
            total, count = total + float(errors.sum()), count + float(batch["mask"].sum())
        each.append(total / count)
    return sum(each) / len(each)


def main() -> None:
    folder, file = map(Path, sys.argv[1:3])
    rows = read_table(file)
    known = {(row["windows"], row["start"], row["heads"], row["seed"]) for row in rows}
    with TemporaryDirectory() as place:
        made = Path(place)
        tables = {few: made / f"{few}.csv" for few in PARTS[0]}
        source = folder / "elecdemand.parquet"
        shares = {w: write_months(source, table, w == "few") for w, table in tables.items()}
        for seed in SEEDS:
            left = [part for part in product(*PARTS) if (*part, str(seed)) not in known]
            trained = pretrain((folder / "etth1.csv").resolve(), seed, made) if left else made
            for windows, begin, heads in left:
                model = "patchtst" if begin == "random" else str(trained)
                plan = settings_of(tables[windows], shares[windows], model, heads, seed)
                about = {"windows": windows, "start": begin, "heads": heads, "seed": seed}
                rows.append({**about, **run_cell(plan)})
                print(rows[-1], flush=True)
                write_table(file, COLUMNS, rows)


if __name__ == "__main__":
    main()
