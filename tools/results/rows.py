"""The CSV file of a study's results: one row for each cell, which is one run."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.storage.files import write_atomically

NAMED = ("schema", "study", "cell", "seed", "settings")
"""The columns that say which run a row is of; the labels follow them, one column an axis."""
LABEL = "label."


@dataclass(frozen=True)
class Result:
    """What one run came to. The study, the labels, the seed and the schema name it.

    Attributes:
      schema: the version of the plan's keys that the run was made with.
      cell: the name of the run's folder: the labels and the seed.
      labels: by axis, the label of the cell's point; `row` for what stands beside the axes.
      settings: what the study set for this cell, beside what it sets for all.
      values: by column, what was measured, as text; an absent column was not measured.
    """

    schema: int
    study: str
    cell: str
    seed: int
    settings: str
    labels: Mapping[str, str]
    values: Mapping[str, str]

    @property
    def identity(self) -> tuple[str, tuple[tuple[str, str], ...], int, int]:
        return self.study, tuple(sorted(self.labels.items())), self.seed, self.schema

    @property
    def name(self) -> str:
        """The cell without its seed."""
        return self.cell.removesuffix(f"-seed{self.seed}")

    def number(self, column: str) -> float:
        """A measured number.

        Raises:
          SystemExit: it was not measured.
        """
        if column not in self.values:
            there = ", ".join(sorted(self.values))
            raise SystemExit(f"{self.study}, {self.cell}: no {column} was measured, only {there}")
        return float(self.values[column])

    def plain(self, column: str) -> Any:
        """A measured list or table; None where it was not measured."""
        return json.loads(self.values[column]) if column in self.values else None


def read_results(file: Path) -> list[Result]:
    """The rows of a file, in its order.

    Raises:
      SystemExit: the file cannot be read, or a row lacks a column that names its run.
    """
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            return [_result(row, file) for row in csv.DictReader(opened)]
    except OSError as error:
        raise SystemExit(f"{file} cannot be read: {error.strerror}") from None


def _result(row: Mapping[str, str], file: Path) -> Result:
    if missing := [column for column in NAMED if row.get(column) is None]:
        raise SystemExit(f"{file} has a row without {missing[0]}: each has {', '.join(NAMED)}")
    labels, values = dict[str, str](), dict[str, str]()
    for column, text in row.items():
        if column.startswith(LABEL) and text:
            labels[column.removeprefix(LABEL)] = text
        elif column not in NAMED and text:
            values[column] = text
    try:
        schema, seed = int(row["schema"]), int(row["seed"])
    except ValueError:
        numbers = f"schema {row['schema']!r}, seed {row['seed']!r}"
        raise SystemExit(f"{file} has a row with {numbers}: both are whole numbers") from None
    return Result(schema, row["study"], row["cell"], seed, row["settings"], labels, values)


def write_results(results: Iterable[Result], file: Path) -> None:
    """Write the rows, those of one cell's seeds together; a column in which all are empty is left
    out."""
    rows = sorted(results, key=lambda one: (one.name, one.seed, one.schema))
    labels = _union([one.labels for one in rows])
    columns = _union([one.values for one in rows])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*NAMED, *(LABEL + axis for axis in labels), *columns])
    for one in rows:
        writer.writerow(
            [
                *(one.schema, one.study, one.cell, one.seed, one.settings),
                *(one.labels.get(axis, "") for axis in labels),
                *(one.values.get(column, "") for column in columns),
            ]
        )
    write_atomically(file, text.getvalue().encode())


def _union(tables: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys of all tables, as near as can be to the order that each has them in.

    A key that no earlier table has comes after the key that it follows in its own table.
    """
    order: list[str] = []
    for table in tables:
        place = 0
        for key in table:
            if key in order:
                place = order.index(key) + 1
            else:
                order.insert(place, key)
                place += 1
    return order


def merge_results(old: Iterable[Result], new: Iterable[Result]) -> list[Result]:
    """Old rows and new ones; of two that are of the same run, the new one."""
    merged = {one.identity: one for one in old}
    merged |= {one.identity: one for one in new}
    return list(merged.values())


def newest_results(results: Iterable[Result]) -> list[Result]:
    """Of the results of one cell, that of the newest version of the plan's keys."""
    newest: dict[tuple[str, str], Result] = {}
    for one in sorted(results, key=lambda one: one.schema):
        newest[one.study, one.cell] = one
    return list(newest.values())
