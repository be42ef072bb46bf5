"""`python -m tools.results`: rows of raw cells, and the archive of the cells themselves."""

import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedpeft.plan.plan import SCHEMA
from fedpeft.runs.folder import create, write_json
from fedpeft.studies.study import Cell, Study, read_study
from tools.results.__main__ import main
from tools.results.archive import digest, digest_file, pack, unpack
from tools.results.cells import results_of
from tools.results.rows import (
    Result,
    merge_results,
    newest_results,
    read_results,
    write_results,
)

STUDY = """
base = {{ method = "head", rounds = {rounds} }}
seeds = [1, 2]
[[axis]]
key = "cohort"
values = [2, 4]
[[row]]
label = "centralised, 1"
set = ["partition={{ name = \\"iid\\", clients = 1 }}", "cohort=1"]
"""
ROUNDS: list[dict[str, Any]] = [
    {"round": 1, "held_out": None, "aggregation_error": 0.5, "vote": {"merge": "plain"}},
    {"round": 2, "held_out": {"accuracy": 0.25, "loss": 2.0}, "aggregation_error": None},
    {"round": 3, "held_out": {"accuracy": 2 / 3, "loss": 1.5}, "vote": {"merge": "half"}},
]
SUMMARY: dict[str, Any] = {
    "method": "head",
    "accuracy_last": 2 / 3,
    "held_out_last": {"accuracy": 2 / 3, "loss": 1.5},
    "client_accuracy": {"mean": 0.5, "each": {"a": 0.5}},
    "own_held_out": {
        "examples": {"a": 8, "b": 4},
        "metrics": {
            "loss": {"mean": 1.25, "weighted": 1.0, "worst_tenth": 2.0, "each": {"a": 0.5, "b": 2}}
        },
    },
    "privacy": None,
    "bytes_up": 123456789012,
    "versions": {"torch": "2.13.0"},
    "first_failure": {"round": 1},
}


def read(tmp_path: Path, rounds: int = 3) -> Study:
    file = tmp_path / "tiny.toml"
    file.write_text(STUDY.format(rounds=rounds))
    return read_study(file)


def finish(
    cell: Cell,
    runs: Path,
    rounds: Sequence[dict[str, Any]] = ROUNDS,
    summary: dict[str, Any] = SUMMARY,
) -> Path:
    """A finished run of a cell, written by hand."""
    folder = create(cell.plan, runs / cell.name)
    folder.rounds.write_text("".join(json.dumps(one) + "\n" for one in rounds))
    write_json(folder.summary, summary)
    return folder.path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["results", *map(str, arguments)])
    main()


def result(seed: int = 1, schema: int = SCHEMA, **values: str) -> Result:
    return Result(schema, "tiny", f"cohort-2-seed{seed}", seed, "cohort=2", {"cohort": "2"}, values)


def test_a_finished_cell_is_a_row(tmp_path: Path) -> None:
    study = read(tmp_path)
    finish(study.cells[0], tmp_path / "tiny")
    (row,) = results_of(study, tmp_path / "tiny")
    assert row == Result(
        schema=SCHEMA,
        study="tiny",
        cell="cohort-2-seed1",
        seed=1,
        settings="cohort=2",
        labels={"cohort": "2"},
        values={
            "method": "head",
            "accuracy_last": "0.6666666666666666",
            "held_out_last.accuracy": "0.6666666666666666",
            "held_out_last.loss": "1.5",
            "client_accuracy.mean": "0.5",
            "own_held_out.loss.mean": "1.25",
            "own_held_out.loss.weighted": "1.0",
            "own_held_out.loss.worst_tenth": "2.0",
            "bytes_up": "123456789012",
            "versions.torch": "2.13.0",
            "by_round.accuracy": "[[2,0.25],[3,0.6666666666666666]]",
            "by_round.loss": "[[2,2.0],[3,1.5]]",
            "vote_last": '{"merge":"half"}',
        },
    )
    assert row.name == "cohort-2"
    assert row.number("accuracy_last") == 2 / 3
    assert row.plain("by_round.loss") == [[2, 2.0], [3, 1.5]]
    assert row.plain("privacy.epsilon") is None
    with pytest.raises(SystemExit, match=r"no accuracy_best was measured, only .*bytes_up"):
        row.number("accuracy_best")


def test_a_plan_without_a_version_is_of_the_first(tmp_path: Path) -> None:
    study = read(tmp_path)
    plan = finish(study.cells[0], tmp_path / "tiny") / "plan.toml"
    lines = plan.read_text().splitlines(keepends=True)
    plan.write_text("".join(line for line in lines if not line.startswith("schema")))
    assert [one.schema for one in results_of(study, tmp_path / "tiny")] == [1]


def test_unfinished_runs_and_those_of_another_plan_are_no_rows(tmp_path: Path) -> None:
    study, other = read(tmp_path), read(tmp_path, rounds=5)
    (finish(study.cells[0], tmp_path / "tiny") / "summary.json").unlink()
    finish(other.cells[1], tmp_path / "tiny")
    assert results_of(study, tmp_path / "tiny") == []
    assert results_of(study, tmp_path / "nowhere") == []


def test_a_run_without_rounds_is_a_row(tmp_path: Path) -> None:
    study = read(tmp_path)
    finish(study.cells[0], tmp_path / "tiny", rounds=[], summary={"rounds": 0})
    assert results_of(study, tmp_path / "tiny")[0].values == {"rounds": "0"}


def test_rows_read_back_as_they_were_written(tmp_path: Path) -> None:
    study = read(tmp_path)
    for cell in study.cells:
        finish(cell, tmp_path / "tiny")
    rows = results_of(study, tmp_path / "tiny")
    assert {tuple(one.labels.items()) for one in rows} == {
        (("cohort", "2"),),
        (("cohort", "4"),),
        (("row", "centralised, 1"),),
    }
    write_results(reversed(rows), tmp_path / "tiny.csv")
    back = read_results(tmp_path / "tiny.csv")
    assert sorted(back, key=lambda one: one.identity) == sorted(rows, key=lambda one: one.identity)
    names = ("centralised-1", "cohort-2", "cohort-4")
    assert [(one.name, one.seed) for one in back] == [(x, seed) for x in names for seed in (1, 2)]
    first = (tmp_path / "tiny.csv").read_bytes()
    write_results(back, tmp_path / "tiny.csv")
    assert (tmp_path / "tiny.csv").read_bytes() == first


def test_columns_keep_their_order_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    rows = [result(1, accuracy_last="1", seconds="2"), result(2, accuracy_last="1", loss="3")]
    write_results(rows, tmp_path / "x.csv")
    heading = "schema,study,cell,seed,settings,label.cohort,accuracy_last,loss,seconds"
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == heading
    write_results([], tmp_path / "empty.csv")
    assert read_results(tmp_path / "empty.csv") == []


def test_a_new_row_replaces_that_of_the_same_run_and_no_other() -> None:
    old = [result(1, x="1"), result(2, x="2"), result(1, schema=SCHEMA - 1, x="3")]
    merged = merge_results(old, [result(1, x="4"), result(3, x="5")])
    told = {(one.seed, one.schema): one.values["x"] for one in merged}
    assert told == {
        (1, SCHEMA): "4",
        (2, SCHEMA): "2",
        (1, SCHEMA - 1): "3",
        (3, SCHEMA): "5",
    }
    newest = {one.seed: one.values["x"] for one in newest_results(merged)}
    assert newest == {1: "4", 2: "2", 3: "5"}
    assert {one.schema for one in newest_results(reversed(merged))} == {SCHEMA}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("study,cell,seed\na,b,1\n", "has a row without schema"),
        ("schema,study,cell,seed,settings\n1,a,b\n", "has a row without seed"),
        ("schema,study,cell,seed,settings\nx,a,b,1,\n", "schema 'x', seed '1': both are whole"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(SystemExit, match=told):
        read_results(tmp_path / "x.csv")
    with pytest.raises(SystemExit, match=r"none\.csv cannot be read: No such file"):
        read_results(tmp_path / "none.csv")


def test_the_command_adds_rows_and_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, other = read(tmp_path, rounds=5), read(tmp_path)
    runs, out = tmp_path / "runs", tmp_path / "tiny.csv"
    finish(study.cells[1], runs)
    finish(other.cells[0], runs)
    arguments = ("table", runs, "-o", out, "--study", tmp_path / "tiny.toml")
    call(monkeypatch, *arguments)
    told = capsys.readouterr().out
    assert "left out: 1 finished runs" in told and "1 rows, 1 of them from" in told
    finish(other.cells[2], runs)
    call(monkeypatch, *arguments)
    assert [one.cell for one in read_results(out)] == ["centralised-1-seed1", "cohort-2-seed1"]
    with pytest.raises(SystemExit, match="has no finished run of"):
        call(monkeypatch, "table", tmp_path / "nowhere", "-o", out, "--study", arguments[-1])
    with pytest.raises(SystemExit, match=r"error: .*cannot be read"):
        call(monkeypatch, "table", runs, "-o", out, "--study", tmp_path / "none.toml")


def test_an_archive_has_the_finished_cells_and_nothing_else(tmp_path: Path) -> None:
    study = read(tmp_path)
    runs, archive = tmp_path / "runs", tmp_path / "dist" / "results.tar.xz"
    kept = finish(study.cells[0], runs / "tiny")
    (kept / "checkpoint").mkdir()
    (kept / "checkpoint" / "state.safetensors").write_bytes(b"weights")
    (finish(study.cells[1], runs / "tiny") / "summary.json").unlink()
    assert pack(runs, archive) == 1
    assert digest_file(archive).read_text() == f"{digest(archive)}  results.tar.xz\n"
    assert unpack(archive, tmp_path / "out", digest(archive)) == 1
    there = {file.relative_to(tmp_path / "out"): file for file in (tmp_path / "out").rglob("*.*")}
    files = {
        Path("tiny", kept.name, name) for name in ("plan.toml", "rounds.jsonl", "summary.json")
    }
    assert {path for path, file in there.items() if file.is_file()} == files
    assert all(there[path].read_bytes() == (runs / path).read_bytes() for path in files)
    assert results_of(study, tmp_path / "out" / "tiny") == results_of(study, runs / "tiny")


def test_the_same_cells_give_the_same_archive(tmp_path: Path) -> None:
    study = read(tmp_path)
    for name, cells in (("a", study.cells), ("b", tuple(reversed(study.cells)))):
        for cell in cells:
            finish(cell, tmp_path / name / "tiny")
        pack(tmp_path / name, tmp_path / f"{name}.tar.xz")
    assert digest(tmp_path / "a.tar.xz") == digest(tmp_path / "b.tar.xz")


def test_an_archive_is_checked_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, out = tmp_path / "results.tar.xz", tmp_path / "out"
    finish(read(tmp_path).cells[0], tmp_path / "runs" / "tiny")
    call(monkeypatch, "pack", tmp_path / "runs", "-o", archive)
    call(monkeypatch, "unpack", archive, "-o", out)
    assert f"{out}: 1 cells" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is not empty: give --out a new folder"):
        call(monkeypatch, "unpack", archive, "-o", out)
    with pytest.raises(SystemExit, match=f"has the SHA-256 {digest(archive)}, not {'0' * 64}"):
        call(monkeypatch, "unpack", archive, "-o", tmp_path / "new", "--sha256", "0" * 64)
    assert not (tmp_path / "new").exists()
    digest_file(archive).write_text("nonsense\n")
    with pytest.raises(SystemExit, match="has no SHA-256"):
        call(monkeypatch, "unpack", archive, "-o", tmp_path / "new")
    digest_file(archive).unlink()
    with pytest.raises(SystemExit, match="give the archive's SHA-256 with --sha256"):
        call(monkeypatch, "unpack", archive, "-o", tmp_path / "new")


@pytest.mark.parametrize(
    "name", ["../cell/plan.toml", "/study/cell/plan.toml", "study/../plan.toml", "study/cell/x.py"]
)
def test_no_file_leaves_the_folder(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "evil.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        member = tarfile.TarInfo(name)
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(SystemExit, match="which is no file of a cell"):
        unpack(archive, tmp_path / "deep" / "out", digest(archive))
    assert not list((tmp_path / "deep").rglob("*.*"))


def test_a_folder_without_finished_cells_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no finished cell"):
        pack(tmp_path, tmp_path / "x.tar.xz")
    folder = finish(read(tmp_path).cells[0], tmp_path / "runs" / "tiny")
    (folder / "rounds.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"rounds\.jsonl is missing"):
        pack(tmp_path / "runs", tmp_path / "x.tar.xz")
    assert not (tmp_path / "x.tar.xz").exists()
