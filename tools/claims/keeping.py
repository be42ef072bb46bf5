"""Kept cells of studies, and tables of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.studies.table import interval

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
CELLS = RESULTS / "cells"

Seeds = Mapping[int, float]
"""Accuracy in percent, or what else was measured, after the last round, by seed."""


@dataclass(frozen=True)
class Row:
    label: str
    values: Seeds
    megabytes: float
    parameters: int


def kept(study: str, name: str, label: str = "", metric: str = "accuracy") -> Row:
    """The cells `name`-seedN of a study; accuracy in percent, anything else as it was measured."""
    row = found(study, name, label, metric)
    if row is None:
        raise SystemExit(f"no cells {name}-seed* under {CELLS / study}")
    return row


def found(study: str, name: str, label: str = "", metric: str = "accuracy") -> Row | None:
    """The same; None where no such cell was kept."""
    folders = (CELLS / study).glob(f"{name}-seed*")
    cells = {
        int(one.name.rpartition("-seed")[2]): json.loads((one / "summary.json").read_text())
        for one in folders
    }
    if not cells:
        return None
    first = cells[min(cells)]
    return Row(
        label,
        {seed: _measured(one, metric) for seed, one in sorted(cells.items())},
        (first["bytes_up"] + first["bytes_down"]) / 2**20,
        first["trainable_params"],
    )


def _measured(summary: Mapping[str, Any], metric: str) -> float:
    return float(
        100 * summary["accuracy_last"] if metric == "accuracy" else summary["held_out_last"][metric]
    )


def spread(values: Seeds, digits: int = 1) -> str:
    both = interval(list(values.values()))
    return f"{both['mean']:.{digits}f}" + (
        "" if both["half"] is None else f" ± {both['half']:.{digits}f}"
    )


def difference(row: Row, other: Row) -> dict[int, float]:
    """Points of accuracy ahead of another row, in the seeds that both have."""
    return {
        seed: row.values[seed] - other.values[seed]
        for seed in sorted(row.values)
        if seed in other.values
    }


def signed(values: Seeds, digits: int = 1) -> str:
    return ("+" if interval(list(values.values()))["mean"] >= 0 else "") + spread(values, digits)


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
