"""The CSV file of a command that runs cell after cell, and goes on where it was stopped."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_table(file: Path) -> list[dict[str, Any]]:
    """The rows that are there, with texts for values; of no file none."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as there:
        return list(csv.DictReader(there))


def write_table(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """All rows; after each cell, so that a stop loses that one alone."""
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.DictWriter(out, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
