"""The table of plans and what their runs took: which rows a file keeps."""

import csv
from pathlib import Path

import pytest

from benchmarks import planned
from benchmarks.planned import FIELDS, WORKS, Work, table

FIRST, SECOND, *_, LAST = WORKS


def rows_of(file: Path) -> dict[str, str]:
    """By plan the load of its row, in order."""
    with file.open(newline="") as opened:
        return {row["plan"]: row["load"] for row in csv.DictReader(opened)}


def test_a_file_keeps_the_rows_of_other_plans_and_of_those_that_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = 1.0

    def compare(work: Work) -> dict[str, object]:
        if work == SECOND and load == 2:
            raise RuntimeError("it fails")
        return {**dict.fromkeys(FIELDS, 0), "plan": work.name, "load": load}

    monkeypatch.setattr(planned, "compare", compare)
    file = tmp_path / "planned.csv"
    table([LAST, SECOND], file)
    assert rows_of(file) == {SECOND.name: "1.0", LAST.name: "1.0"}
    load = 2.0
    table([FIRST, SECOND], file)
    wanted = {FIRST.name: "2.0", SECOND.name: "1.0", LAST.name: "1.0"}
    assert rows_of(file) == wanted and list(rows_of(file)) == list(wanted)
    assert capsys.readouterr().err == f"{SECOND.name}: it fails\n"
    assert [one.name for one in tmp_path.iterdir()] == ["planned.csv"]


def test_without_a_file_the_table_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planned, "compare", lambda work: {"plan": work.name, "load": 1.5})
    table([FIRST], None)
    first, row = capsys.readouterr().out.splitlines()
    assert first.split(",") == list(FIELDS)
    assert row.startswith(f"{FIRST.name},") and row.endswith(",1.5")


def test_the_committed_table_is_of_these_plans_in_their_order() -> None:
    names = list(rows_of(Path(planned.__file__).parent / "results" / "planned.csv"))
    assert names == [work.name for work in WORKS if work.name in names] and len(names) >= 15
