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


ALLOWING = (
    "app",
    "audit",
    "contribute",
    "diagnose",
    "doctor",
    "evaluate",
    "export",
    "invite",
    "join",
    "merge",
    "node",
    "plan",
    "roster",
    "sample",
    "withdraw",
)
"""The commands that read a plan which somebody else may have written."""


def fedpeft(*arguments: str | int | Path) -> Result:
    """A command, which may run the modules that the tests' plans name where it asks for that."""
    given = [str(argument) for argument in arguments]
    allowed = ["--allow-code=parts", "--allow-code=torch.nn"]
    return strict(*given, *(allowed if given and given[0] in ALLOWING else []))


def strict(*arguments: str | int | Path) -> Result:
    """A command as it is, which may run what it is told to and no more."""
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
}


def run(folder: RunFolder, site: Site, rounds: int | None = None) -> list[RoundRecord]:
    """Execute all rounds, or stop after some as a caller may."""
    records = []
    for record in execute(folder, site, open_engine(folder, site)):
        records.append(record)
        if len(records) == rounds:
            break
    return records
