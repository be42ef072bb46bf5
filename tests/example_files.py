"""Files of every format and pictures, written for the tests of the sources of examples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

ROWS = [{"text": f"text {k}", "label": "cat" if k % 3 else "dog", "site": k % 2} for k in range(12)]


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def write_arrow(file: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(file, table.schema) as sink:
        sink.write_table(table)


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("\n".join(map(json.dumps, rows)))


def write_json(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text(json.dumps(rows))


def write_csv(file: Path, rows: list[dict[str, Any]], between: str = ",") -> None:
    lines = [between.join(rows[0]), *(between.join(map(str, row.values())) for row in rows)]
    file.write_text("\n".join(lines) + "\n")


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "parquet": write_parquet,
    "arrow": write_arrow,
    "jsonl": write_lines,
    "json": write_json,
    "csv": write_csv,
    "tsv": lambda file, rows: write_csv(file, rows, "\t"),
}


def save_picture(
    file: Path, colour: tuple[int, ...] = (200, 10, 30), size: tuple[int, int] = (6, 4)
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)
