"""Where the cells of a study lie: run folders, and what is kept of finished ones in another
folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from fedpeft.errors import FedpeftError, RunError
from fedpeft.plan.calibration import without_noise
from fedpeft.plan.reading import read_plan
from fedpeft.runs.folder import RunFolder, create, read_json, read_rounds
from fedpeft.storage.files import write_atomically
from fedpeft.studies.study import Cell, Study

KEPT = ("plan.toml", "rounds.jsonl", "summary.json")
"""What is kept of a finished run: no weights; the summary names the partition by its
fingerprint."""


@dataclass(frozen=True)
class CellStore:
    """The folders that may hold a study's cells.

    Attributes:
      out: run folders, one a cell, and the tables.
      keep: <study>/<cell>/ with what is kept of finished cells of any study; None for nowhere.
    """

    study: Study
    out: Path
    keep: Path | None = None

    def finished(self) -> dict[str, Path]:
        """By the fingerprint of its cell's plan, the folder of every finished run here, whatever it
        is called.

        Raises:
          RunError: the summary of a run is damaged.
        """
        folders = sorted(self.out.glob("*/summary.json")) if self.out.is_dir() else []
        kept = sorted(self.keep.glob("*/*/summary.json")) if self.keep is not None else []
        found: dict[str, Path] = {}
        wanted = {cell.plan.fingerprint for cell in self.study.cells}
        for folder in (file.parent for file in (*folders, *kept)):
            names = [name for name in _fingerprints(folder) if name in wanted]
            if names and read_json(folder / "summary.json"):
                found.setdefault(names[0], folder)
        return found

    def begun(self, cells: Iterable[Cell]) -> bool:
        return any((self.out / cell.name / "plan.toml").exists() for cell in cells)

    def place(self, cell: Cell) -> RunFolder:
        """The run folder of a cell that is not finished, made where there is none.

        Raises:
          RunError: a run of another plan is there.
        """
        path = self.out / cell.name
        if not (path / "plan.toml").exists():
            return create(cell.plan, path)
        if cell.plan.fingerprint not in _fingerprints(path):
            raise RunError(
                f"{path} holds a run of another plan: the study was changed; move it away, or "
                "change --out"
            )
        return RunFolder(path)

    def store(self, cell: Cell, folder: Path) -> None:
        """Copy what is kept of a finished cell; the summary last, since it makes a folder count as
        finished."""
        if self.keep is None:
            return
        place = self.keep / self.study.name / cell.name
        if (place / "summary.json").exists() and cell.plan.fingerprint in _fingerprints(place):
            return
        place.mkdir(parents=True, exist_ok=True)
        for name in KEPT[:-1]:
            copyfile(folder / name, place / name)
        write_atomically(place / KEPT[-1], (folder / KEPT[-1]).read_bytes())


def _fingerprints(folder: Path) -> list[str]:
    """Of the plan in a folder, then of what it was before its noise was calibrated; none if it
    cannot be read today."""
    try:
        plan = read_plan(folder / "plan.toml")
    except FedpeftError:
        return []
    return [plan.fingerprint, without_noise(plan).fingerprint]


def rounds_done(folder: Path) -> int:
    """How many rounds a run tells of; 0 where that cannot be read."""
    try:
        return len(read_rounds(RunFolder(folder)))
    except FedpeftError:
        return 0
