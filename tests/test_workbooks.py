"""Tables in workbooks are those of their CSV files."""

import sys
from datetime import date
from pathlib import Path

import pytest

from fedpeft import DataError
from fedpeft.data.reading import read_splits

ROWS = [
    ("text", "label", "code", "seen"),
    ("good, or not", "yes", "01", date(2026, 1, 2)),
    ("NA", "no", "1", None),
    ("said\nin two lines", "yes", "2", date(2026, 1, 3)),
]


def save_book(file: Path) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in ROWS:
        book.active.append(row)
    book.create_sheet("notes").append(["nothing"])
    book.save(file)
    return file


def test_the_first_sheet_is_read_and_the_others_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits, _ = read_splits(str(save_book(tmp_path / "cases.xlsx")))
    rows = splits["train"].to_dict()
    assert rows["text"] == ["good, or not", "NA", "said\nin two lines"]
    assert rows["code"] == ["01", "1", "2"]
    assert rows["seen"] == ["2026-01-02", None, "2026-01-03"]
    assert "of its sheets the first is read, 'Sheet', and not 'notes'" in caplog.text


def test_what_is_no_workbook_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    (tmp_path / "x.xlsx").write_bytes(b"PK\x03\x04aa")
    with pytest.raises(DataError, match=r"x\.xlsx is no workbook that can be read"):
        read_splits(str(tmp_path / "x.xlsx"))


def test_without_the_library_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "x.xlsx").write_bytes(b"PK\x03\x04aa")
    with pytest.raises(DataError, match=r"openpyxl reads: pip install 'fedpeft\[excel\]'"):
        read_splits(str(tmp_path / "x.xlsx"))
