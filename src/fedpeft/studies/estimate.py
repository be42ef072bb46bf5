"""What a study is going to cost in time, before it is run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpeft.errors import RunError
from fedpeft.plan.phases import least_rounds
from fedpeft.plan.plan import Plan
from fedpeft.runs.folder import read_json
from fedpeft.studies.cell_store import CellStore
from fedpeft.studies.study import Cell
from fedpeft.studies.sweep import CellOutcome, run_study


@dataclass(frozen=True)
class StudyEstimate:
    """Hours of the cells that are left.

    Attributes:
      source: what was measured, in words.
    """

    cells: int
    finished: int
    hours: float
    source: str


def seconds_of(cell: Cell, done: Sequence[CellOutcome]) -> float | None:
    """The mean seconds of the finished cells that have the most labels in common with this one;
    None without any."""
    alike = [
        (sum(one.cell.labels.get(k) == v for k, v in cell.labels.items()), one.wall) for one in done
    ]
    most = max((count for count, _ in alike), default=0)
    nearest = [wall for count, wall in alike if count == most]
    return sum(nearest) / len(nearest) if nearest else None


def estimate_study(
    cell_store: CellStore,
    cells: Sequence[Cell],
    done: Sequence[CellOutcome],
    jobs: int,
    options: Sequence[str],
) -> StudyEstimate:
    """From the cells that are finished; without any, from one round of the one with the fewest
    client epochs.

    Raises:
      RunError: that round fails.
    """
    finished = {one.cell.name for one in done}
    left = [cell for cell in cells if cell.name not in finished]
    if done:
        total = sum(seconds_of(cell, done) or 0 for cell in left)
        source = f"from the seconds of {len(done)} finished cells"
    elif left:
        first = min(left, key=lambda cell: _passes(cell.plan, {}))
        start, one_round, held = _one_round(first, cell_store, options)
        per_pass = one_round / _passes(replace(first.plan, rounds=1), held)
        total = sum(start + per_pass * _passes(cell.plan, held) for cell in left)
        source = f"from one round of {first.name}; methods differ by a few times"
    else:
        total, source = 0.0, "all are finished"
    return StudyEstimate(len(cells), len(done), total / jobs / 3600, source)


def _passes(plan: Plan, held: Mapping[str, Any]) -> float:
    """Passes over the training data of all clients that a run makes, the subset of `data.subset` as
    a share."""
    clients = getattr(plan.partition, "clients", 0) or held.get("clients", plan.cohort)
    subset, examples = getattr(plan.data, "subset", 0), held.get("examples", 0)
    share = min(1.0, subset / examples) if subset and examples else 1.0
    return float(plan.rounds * plan.local.passes * min(plan.cohort, clients) / clients * share)


def _one_round(
    cell: Cell, cell_store: CellStore, options: Sequence[str]
) -> tuple[float, float, Mapping[str, Any]]:
    """Seconds before and after a round, those of the round, and the report of the partition."""
    rounds = least_rounds(cell.plan)  # one, but where phases or a part's course need more
    short = replace(cell, plan=replace(cell.plan, rounds=rounds))
    with TemporaryDirectory() as folder:
        ended = [
            one
            for batch in run_study(replace(cell_store, out=Path(folder)), [short], 1, options)
            for one in batch
        ]
        if ended[0].error:
            raise RunError(f"nothing can be estimated: {cell.name} fails: {ended[0].error}")
        seconds = float(ended[0].summary["seconds"])
        held = read_json(Path(folder) / cell.name / "partition.json") or {}
    return max(0.0, ended[0].wall - seconds), seconds / rounds, held
