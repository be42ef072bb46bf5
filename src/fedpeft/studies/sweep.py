"""Running the cells of a study, each in a process of its own, so that the end of one is its own
failure."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from fedpeft.errors import FedpeftError, RunError
from fedpeft.runs.folder import read_json
from fedpeft.runs.record import changed_nothing
from fedpeft.studies.cell_store import CellStore
from fedpeft.studies.study import Cell

TICK = 0.2
"""Seconds between two looks at the processes."""
LOG = "log.txt"
"""What a cell's process said, in its run folder."""


@dataclass(frozen=True)
class CellOutcome:
    """How a cell ended.

    Attributes:
      folder: of the run; None where none could be made.
      error: one line; empty where the cell is finished.
      wall: seconds, those before the first round included.
      reused: finished before.
    """

    cell: Cell
    folder: Path | None
    summary: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    wall: float = 0.0
    reused: bool = False


@dataclass
class _Running:
    cell: Cell
    folder: Path
    process: "subprocess.Popen[bytes]"
    began: float


def find_reused(cell_store: CellStore, cells: Sequence[Cell]) -> list[CellOutcome]:
    """The cells that are finished already, here or among what is kept."""
    done = cell_store.finished()
    found = []
    for cell in cells:
        if folder := done.get(cell.plan.fingerprint):
            summary = read_json(folder / "summary.json") or {}
            error, wall = changed_nothing(summary), float(summary.get("seconds") or 0)
            found.append(CellOutcome(cell, folder, summary, error, wall, reused=True))
    return found


def run_study(
    cell_store: CellStore, cells: Sequence[Cell], jobs: int, options: Sequence[str] = ()
) -> Iterator[list[CellOutcome]]:
    """Run cells, `jobs` at a time; yields, several times a second, those that have ended since.

    Whoever leaves in the middle ends the processes; what they did is kept.

    Args:
      options: of `fedpeft run`, for every cell.
    """
    waiting = list(reversed(cells))
    running: list[_Running] = []
    try:
        while waiting or running:
            ended: list[CellOutcome] = []
            while waiting and len(running) < jobs:
                cell = waiting.pop()
                try:
                    running.append(_begin(cell_store, cell, options))
                except (FedpeftError, OSError) as error:
                    ended.append(CellOutcome(cell, None, error=" ".join(str(error).split())))
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                ended.append(_end(one))
            yield ended
            sleep(TICK)
    finally:
        for one in running:
            _stop(one.process)


def _begin(cell_store: CellStore, cell: Cell, options: Sequence[str]) -> _Running:
    folder = cell_store.place(cell).path
    with (folder / LOG).open("ab") as log:
        # the pipe to its standard input closes with this process, however it ends, and the cell
        # then ends too
        process = subprocess.Popen(
            [sys.executable, "-m", "fedpeft.cli.bound", "run", "--resume", str(folder), *options],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
        )
    return _Running(cell, folder, process, monotonic())


def _end(one: _Running) -> CellOutcome:
    _stop(one.process)
    wall, code = monotonic() - one.began, one.process.returncode
    try:
        summary = read_json(one.folder / "summary.json")
    except RunError as error:
        return CellOutcome(one.cell, one.folder, error=str(error), wall=wall)
    if code == 0 and summary is not None:
        return CellOutcome(one.cell, one.folder, summary, wall=wall)
    reason = (
        f"its process was ended by signal {-code}" if code < 0 else _last_line(one.folder / LOG)
    )
    return CellOutcome(one.cell, one.folder, error=reason, wall=wall)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
    if process.stdin is not None:
        process.stdin.close()
    process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].removeprefix("error: ") if lines else "it ended without a word"
