"""Workbooks of spreadsheet programs (.xlsx), through openpyxl: a sheet becomes a CSV file, which is
then read as any other."""

import csv
from datetime import date, datetime, time
from logging import getLogger
from pathlib import Path
from tempfile import mkstemp
from typing import Any

from fedpeft.errors import DataError, explain_install

SHEETS = (".xlsx", ".xlsm")
"""Workbooks that are read."""
OTHERS = (".xls", ".ods")
"""Workbooks that are not."""


def write_sheet(file: Path, scratch: Path) -> Path:
    """The first sheet of a workbook as a CSV file in UTF-8; the log names the sheets left out.

    A formula is what it came to when the workbook was saved. Dates are written as ISO 8601 has
    them, and an empty row ends nothing.

    Raises:
      DataError: openpyxl is not installed, or the file is no workbook.
    """
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise DataError(
            f"{file} is a workbook, which openpyxl reads: {explain_install('excel')}; or save its "
            "sheet as CSV"
        ) from None
    try:
        book = load_workbook(file, read_only=True, data_only=True)
    except Exception as error:  # a broken archive raises what its parsers raise
        raise DataError(
            f"{file} is no workbook that can be read ({error}): save its sheet as CSV"
        ) from None
    try:
        if not book.worksheets:
            raise DataError(f"{file} has no sheet with rows: save a table in it, or as CSV")
        first, *others = book.worksheets
        if others:
            names = ", ".join(repr(sheet.title) for sheet in others)
            getLogger("fedpeft").warning(
                "%s: of its sheets the first is read, %r, and not %s", file, first.title, names
            )
        handle, copy = mkstemp(suffix=".csv", dir=scratch)
        with open(handle, "w", encoding="utf-8", newline="") as text:
            rows = ([_written(x) for x in row] for row in first.iter_rows(values_only=True))
            csv.writer(text).writerows(row for row in rows if any(row))
    finally:
        book.close()
    return Path(copy)


def _written(value: Any) -> str:
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()  # a workbook has no other kind of date
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return "" if value is None else str(value)
