"""Sweeps as real processes: killed in the middle, with cells that fail, and gone on with; nothing
is run twice."""

import json
import os
import signal
from pathlib import Path

import pytest
from crashes import alive, assert_same_end, children, write
from running import fedpeft
from test_kill import begin, finish, undisturbed, until

STUDY = """
seeds = [1]
[base]
name = "blobs"
task = "parts:Points"
data = "parts:Blobs"
method = "full"
rounds = 3
cohort = 2
partition = {{name = "dirichlet", clients = 4, alpha = 1.0}}
local = {{batch_size = 8, lr = 0.1, correction = "scaffold"}}
stages = [{{name = "crashes:Gate", folder = '{folder}'}}]
[[row]]
label = "plain"
[[row]]
label = "other"
set = [{setting}]
"""


def study(folder: Path, setting: str = '"local.lr=0.05"') -> Path:
    folder.mkdir(exist_ok=True)
    return write(folder / "small.toml", STUDY.format(folder=folder, setting=setting))


def words(run: Path) -> int:
    """How many times a run's process began."""
    return (run / "log.txt").read_text().count("blobs: 3 rounds")


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_goes_on_and_runs_nothing_twice(tmp_path: Path) -> None:
    path, out = study(tmp_path / "study"), tmp_path / "out"
    process = begin("sweep", path, "--out", out)
    until(lambda: (out / "plain-seed1" / "summary.json").exists(), process)
    (tmp_path / "study" / "closed").touch()
    until((tmp_path / "study" / "reached").exists, process)
    cells = children(process.pid)
    assert len(cells) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until(lambda: not alive(cells), seconds=5)  # nobody goes on behind our back
    (tmp_path / "study" / "closed").unlink()

    refused = fedpeft("sweep", path, "--out", out)
    assert refused.exit_code == 2 and "go on with --resume" in refused.stderr
    finish("sweep", path, "--out", out, "--resume", "--keep", tmp_path / "kept")
    assert [words(out / name) for name in ("plain-seed1", "other-seed1")] == [1, 2]
    assert_same_end(
        out / "other-seed1",
        undisturbed(out / "other-seed1" / "plan.toml", tmp_path / "undisturbed"),
    )
    rows = json.loads((out / "table.json").read_text())["rows"]
    summary = json.loads((out / "plain-seed1" / "summary.json").read_text())
    assert rows[0]["accuracy_last"] == {
        "mean": summary["accuracy_last"],
        "low": None,
        "high": None,
        "each": [summary["accuracy_last"]],
    }
    assert rows[0]["bytes"]["mean"] == summary["bytes_up"] + summary["bytes_down"]
    kept = sorted(
        file.relative_to(tmp_path / "kept").as_posix() for file in (tmp_path / "kept").rglob("*.*")
    )
    assert kept[:3] == [
        f"small/other-seed1/{name}" for name in ("plan.toml", "rounds.jsonl", "summary.json")
    ]
    assert len(kept) == 6

    # elsewhere, with only what was kept, and called otherwise: nothing is run, and the numbers are
    # the same
    renamed = write(tmp_path / "renamed.toml", path.read_text().replace('"plain"', '"as it is"'))
    again = fedpeft("sweep", renamed, "--out", tmp_path / "again", "--keep", tmp_path / "kept")
    assert again.exit_code == 0, again.stderr
    assert "2 cells, 2 of them finished before" in again.stdout
    others = json.loads((tmp_path / "again" / "table.json").read_text())["rows"]
    assert [row["accuracy_last"] for row in others] == [row["accuracy_last"] for row in rows]
    assert not list((tmp_path / "again").glob("*/plan.toml"))
    assert (tmp_path / "kept" / "renamed" / "as-it-is-seed1" / "summary.json").exists()


def test_a_cell_that_fails_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    gone = '"data={ name = \\"arrays\\", path = \\"gone.npz\\" }"'
    path, out = study(tmp_path / "study", gone), tmp_path / "out"
    process = begin("sweep", path, "--out", out, "--json", "--jobs", "2")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: other-seed1 failed: there is no file 'gone.npz' here" in stderr
    plain, other = json.loads(stdout)["rows"]
    assert (plain["seeds"], plain["failed"]) == ([1], {})
    assert other["seeds"] == [] and list(other["failed"]) == ["1"]
    assert "failed" in (out / "table.md").read_text()


@pytest.mark.slow
def test_a_cell_whose_process_is_killed_is_a_failure_and_is_gone_on_with(tmp_path: Path) -> None:
    path, out = study(tmp_path / "study"), tmp_path / "out"
    (tmp_path / "study" / "closed").touch()
    process = begin("sweep", path, "--out", out)
    until((tmp_path / "study" / "reached").exists, process)
    (cell,) = children(process.pid)
    os.kill(cell, signal.SIGKILL)
    (tmp_path / "study" / "closed").unlink()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "plain-seed1 failed: its process was ended by signal 9" in stderr
    finish("sweep", path, "--out", out, "--resume")
    assert_same_end(
        out / "plain-seed1",
        undisturbed(out / "plain-seed1" / "plan.toml", tmp_path / "undisturbed"),
    )
    assert words(out / "other-seed1") == 1


@pytest.mark.slow
def test_an_interrupted_sweep_ends_its_cells_and_says_how_to_go_on(tmp_path: Path) -> None:
    path, out = study(tmp_path / "study"), tmp_path / "out"
    (tmp_path / "study" / "closed").touch()
    process = begin("sweep", path, "--out", out, "--jobs", "2")
    until((tmp_path / "study" / "reached").exists, process)
    cells = children(process.pid)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "with --resume goes on" in stderr
    assert not alive(cells)


@pytest.mark.slow
def test_an_estimate_runs_one_round_and_leaves_nothing(tmp_path: Path) -> None:
    path, out = study(tmp_path / "study"), tmp_path / "out"
    process = begin("sweep", path, "--out", out, "--estimate", "--json")
    found = json.loads(process.communicate(timeout=120)[0])
    assert (found["cells"], found["finished"]) == (2, 0)
    assert 0 < found["hours"] < 0.1
    assert "one round of plain-seed1" in found["source"]
    assert not out.exists()
