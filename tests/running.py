"""Runs and the command line in this process, and small plans for them."""

from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from fedpeft.cli.app import app
from fedpeft.rounds.site import Site
from fedpeft.runs.execute import execute, open_engine
from fedpeft.runs.folder import RunFolder
from fedpeft.runs.record import RoundRecord

PLAN = """
name = "blobs"
task = "parts:Points"
data = "parts:Blobs"
method = "full"
rounds = 3
cohort = 2
partition = {name = "dirichlet", clients = 4, alpha = 1.0}
local = {batch_size = 8, lr = 0.1}
"""


def fedpeft(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


SMALL = {
    "name": "small",
    "task": "parts:Points",
    "data": "parts:Blobs",
    "method": "full",
    "rounds": 4,
    "cohort": 3,
    "partition": {"name": "dirichlet", "clients": 6, "alpha": 1.0},
    "local": {"batch_size": 8, "lr": 0.1, "correction": "scaffold"},
    "server": "scaffold",
}


def run(folder: RunFolder, site: Site, rounds: int | None = None) -> list[RoundRecord]:
    """Execute all rounds, or stop after some as a caller may."""
    records = []
    for record in execute(folder, site, open_engine(folder, site)):
        records.append(record)
        if len(records) == rounds:
            break
    return records
