"""`fedpeft watch`: what it shows of runs, when it ends, and the event files it writes."""

import json
import re
from pathlib import Path
from threading import Timer

import pytest
from cells import summary, write_cell, write_study
from running import fedpeft

from fedpeft.cli.watch_runs import spark
from fedpeft.watching.views import look, state


def test_values_as_bars() -> None:
    assert spark([0.0, 0.5, 1.0]) == "▁▅█"
    assert spark([0.3, 0.3]) == "▁▁" and spark([]) == ""
    assert spark([float(k) for k in range(100)], width=4) == "▁▃▆█"


def test_one_run_at_a_glance(tmp_path: Path) -> None:
    run = write_cell(
        tmp_path / "run", [0.25, 0.75, 0.5], planned=5, up=2048, failed="it is tired", epsilon=0.5
    )
    result = fedpeft("watch", run, "--once")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert (result.exit_code, result.stderr) == (0, "")
    assert lines[1][:2] == ["round", "3/5"] and lines[1][-3:] == ["1.0", "s", "left"]
    assert lines[2] == ["accuracy", "0.5000", "▁█▅", "best", "0.7500"]
    assert "10.0 KiB up, 60 B down" in result.stdout
    assert "1.5 at delta 1e-05" in result.stdout
    assert "1; the last: b in round 1: it is tired" in result.stdout


def test_several_runs_have_a_line_each(tmp_path: Path) -> None:
    write_study(tmp_path)
    write_cell(tmp_path / "half", [0.5], method="full", planned=4)
    result = fedpeft("watch", tmp_path, "--once")
    rows = {
        line.split()[0]: line.split()[1:]
        for line in result.stdout.splitlines()
        if line and line[0] != "─"
    }
    assert (
        result.exit_code == 0
        and rows["half"][:1] == ["1/4"]
        and rows["half"][-2:] == ["under", "way"]
    )
    assert rows["bias-1"][-5:] == ["0", "finished", "in", "1.5", "s"]
    assert "10 runs, 9" in result.stdout


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_narrow_terminal_still_names_every_run(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in ("digits-lora-1-001", "study-bias-seed-1-and-more"):
        write_cell(tmp_path / name, [k / 40 for k in range(30)])
    shown = fedpeft("watch", tmp_path, "--once").stdout
    first = "".join(line.split("  ")[0].strip() for line in shown.splitlines())
    assert "digits-lora-1-001" in first and "study-bias-seed-1-and-more" in first
    assert max(map(len, shown.splitlines())) <= columns
    assert len(re.findall(r"\b15 s\b", shown)) == 2, "how long each took is whole"


def test_a_run_that_has_stopped_is_told(tmp_path: Path) -> None:
    import os
    from time import time

    run = write_cell(tmp_path / "run", [0.1, 0.2, 0.3], planned=9)
    for file in run.iterdir():
        os.utime(file, (time() - 600, time() - 600))
    (view,) = look(run, {}).values()
    assert state(view) == "no round for 10 min 00 s; usual is 0.5 s"


def test_it_ends_when_the_run_does(tmp_path: Path) -> None:
    run = write_cell(tmp_path / "run", [0.1, 0.2, 0.3], planned=4)

    def finish() -> None:
        first = (run / "rounds.jsonl").read_text().splitlines()[0]
        with (run / "rounds.jsonl").open("a") as file:
            file.write(
                json.dumps(json.loads(first) | {"round": 4, "held_out": {"accuracy": 0.9}}) + "\n"
            )
        (run / "summary.json").write_text(json.dumps(summary(1, None)))

    timer = Timer(0.5, finish)
    timer.start()
    result = fedpeft("watch", run)
    timer.join()
    assert result.exit_code == 0
    assert (
        "4/4" in result.stdout
        and "0.9000" in result.stdout
        and "finished in 2.0 s" in result.stdout
    )


def test_only_what_changed_is_read_again(tmp_path: Path) -> None:
    one, two = (write_cell(tmp_path / name, [0.1], planned=2) for name in ("one", "two"))
    before = look(tmp_path, {})
    with (one / "rounds.jsonl").open("a") as file:
        file.write("{")  # a line that is being written
    (two / "rounds.jsonl").write_text("damaged\n")
    after = look(tmp_path, before)
    assert before["one"].cell is not None and after["one"].cell is not None
    assert after["one"].cell.rounds == before["one"].cell.rounds
    assert after["two"].cell is None and "line 1 is damaged" in after["two"].problem
    assert look(tmp_path, after)["two"] is after["two"]


def test_an_unreadable_run_is_shown_and_nothing_to_watch_is_an_error(tmp_path: Path) -> None:
    nothing = fedpeft("watch", tmp_path, "--once")
    assert (nothing.exit_code, nothing.stderr) == (
        2,
        f"error: there is no run at or below {tmp_path}\n",
    )
    run = write_cell(tmp_path / "run", [0.1])
    (run / "summary.json").write_text("{")
    write_cell(tmp_path / "good", [0.1])
    result = fedpeft("watch", tmp_path, "--once")
    assert result.exit_code == 0 and "good" in result.stdout and "cannot be read" in result.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what TensorBoard imports
def test_event_files_hold_the_rounds(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_cell(tmp_path / "runs" / "one", [0.1, None, 0.3], failed="it is tired", epsilon=0.5)
    write_cell(tmp_path / "runs" / "two", [0.2], method="bias")
    for _ in range(2):  # the second time anew, not twice
        result = fedpeft("watch", tmp_path / "runs", "--once", "--tensorboard", tmp_path / "logs")
        assert (result.exit_code, result.stderr) == (0, "")
    events = accumulator.EventAccumulator(str(tmp_path / "logs" / "one"))
    events.Reload()
    told = {
        tag: [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]
        for tag in ("held_out/accuracy", "bytes/up", "round/failed", "privacy/epsilon")
    }
    assert told == {
        "held_out/accuracy": [(1, 0.1), (3, 0.3)],
        "bytes/up": [(1, 1000), (2, 2000), (3, 2000)],
        "round/failed": [(1, 1), (2, 0), (3, 0)],
        "privacy/epsilon": [(1, 0.5), (2, 1.0), (3, 1.5)],
    }
    alone = fedpeft(
        "watch", tmp_path / "runs" / "two", "--once", "--tensorboard", tmp_path / "logs"
    )
    assert alone.exit_code == 0 and len(list((tmp_path / "logs" / "two").iterdir())) == 1
