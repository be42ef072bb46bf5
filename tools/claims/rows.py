"""Rows of tables, from the results of studies in docs/results/STUDY.csv."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fedpeft.evaluation.statistics import estimate
from tools.results.rows import Result, newest_results, read_results

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"

Seeds = Mapping[int, float]
"""Accuracy in percent, or what else was measured, after the last round, by seed."""


@dataclass(frozen=True)
class Row:
    label: str
    values: Seeds
    megabytes: float
    parameters: int


def results_of(study: str, name: str) -> dict[int, Result]:
    """The results of the cells `name`-seedN by seed, in the order of the seeds."""
    found = {one.seed: one for one in _study(study) if one.name == name}
    return dict(sorted(found.items()))


@cache
def _study(name: str) -> tuple[Result, ...]:
    return tuple(newest_results(read_results(RESULTS / f"{name}.csv")))


def read_row(study: str, name: str, label: str = "", metric: str = "accuracy") -> Row:
    """The cells `name`-seedN of a study; accuracy in percent, anything else as it was measured.

    Raises:
      SystemExit: the study has no result of this name.
    """
    row = find_row(study, name, label, metric)
    if row is None:
        raise SystemExit(f"no row of {RESULTS / study}.csv is of a cell {name}-seed*")
    return row


def find_row(study: str, name: str, label: str = "", metric: str = "accuracy") -> Row | None:
    """The same; None where the study has no such result."""
    cells = results_of(study, name)
    if not cells:
        return None
    first = next(iter(cells.values()))
    return Row(
        label,
        {seed: _measured(one, metric) for seed, one in cells.items()},
        (first.number("bytes_up") + first.number("bytes_down")) / 2**20,
        int(first.number("trainable_params")),
    )


def _measured(one: Result, metric: str) -> float:
    if metric == "accuracy":
        return 100 * one.number("accuracy_last")
    return one.number(f"held_out_last.{metric}")


def spread(values: Seeds, digits: int = 1) -> str:
    """The mean over the seeds with its interval, as `fedpeft sweep` writes it."""
    shown = f"{{:.{digits}f}}".format
    return estimate(list(values.values())).text(shown, shown)


def difference(row: Row, other: Row) -> dict[int, float]:
    """Points of accuracy ahead of another row, in the seeds that both have."""
    return {
        seed: row.values[seed] - other.values[seed]
        for seed in sorted(row.values)
        if seed in other.values
    }


def signed(values: Seeds, digits: int = 1) -> str:
    return ("+" if estimate(list(values.values())).mean >= 0 else "") + spread(values, digits)


def lines(head: list[str], rows: list[list[str]]) -> str:
    table = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def against(rows: list[Row], reference: Row) -> str:
    """Accuracy, bytes, and the difference to a reference row."""
    return lines(
        ["", "seeds", "accuracy", f"against {reference.label}", "trained", "MiB in all"],
        [
            [
                row.label,
                str(len(row.values)),
                spread(row.values),
                "" if row is reference else signed(difference(row, reference)),
                f"{row.parameters:,}",
                f"{row.megabytes:,.2f}",
            ]
            for row in rows
        ],
    )
