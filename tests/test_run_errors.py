"""Run folders that are not what they should be: each is named, and none is changed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from running import SMALL, run

from fedpeft import Plan, PlanError, RunError, open_site, read_plan
from fedpeft.data.client_data import Partitioned
from fedpeft.registry import OWN
from fedpeft.rounds.site import Site
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.environment import compare_environments
from fedpeft.runs.execute import check_workers, find_changes, open_run_site
from fedpeft.runs.folder import RunFolder, append_round, create, lock_run, read_rounds, reopen


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(SMALL)


@pytest.fixture(scope="module")
def site(plan: Plan) -> Site:
    return open_site(plan)


@pytest.fixture
def halfway(plan: Plan, site: Site, tmp_path: Path) -> Iterator[RunFolder]:
    folder = create(plan, tmp_path / "halfway")
    run(folder, site, rounds=2)
    yield folder


def test_an_out_folder_that_is_taken(plan: Plan, halfway: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match="already holds a run: continue it with `fedpeft run --resume"
    ):
        create(plan, halfway.path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("keep me")
    with pytest.raises(RunError, match="not empty"):
        create(plan, tmp_path / "full")
    with pytest.raises(RunError, match="is a file"):
        create(plan, tmp_path / "full" / "letter.txt")
    with pytest.raises(RunError, match="cannot be made"):
        create(plan, tmp_path / "full" / "letter.txt" / "run")
    assert (tmp_path / "full" / "letter.txt").read_text() == "keep me"


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        reopen(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"no plan\.toml"):
        reopen(tmp_path)


def test_a_damaged_checkpoint_is_said_to_be_damaged(site: Site, halfway: RunFolder) -> None:
    whole = halfway.checkpoint.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"not a checkpoint at all"):
        halfway.checkpoint.write_bytes(broken)
        with pytest.raises(RunError, match=r"state\.safetensors cannot be read"):
            run(halfway, site)
    assert len(read_rounds(halfway)) == 2


def test_a_lost_checkpoint_does_not_start_the_run_anew(site: Site, halfway: RunFolder) -> None:
    halfway.checkpoint.unlink()
    with pytest.raises(RunError, match="tells of 2 rounds, and there is no checkpoint"):
        run(halfway, site)
    assert len(read_rounds(halfway)) == 2


def test_lost_or_damaged_lines_are_named(site: Site, halfway: RunFolder) -> None:
    lines = halfway.rounds.read_bytes().splitlines(keepends=True)
    halfway.rounds.write_bytes(lines[0])
    with pytest.raises(RunError, match="tells of 1 round, the checkpoint of 2"):
        run(halfway, site)
    halfway.rounds.write_bytes(lines[1])
    with pytest.raises(RunError, match="line 1 is damaged or out of order"):
        run(halfway, site)


def test_a_checkpoint_of_another_plan(halfway: RunFolder) -> None:
    text = halfway.plan.read_text()
    halfway.plan.write_text(text.replace("seed = 1", "seed = 2"))
    _, changed = reopen(halfway.path, OWN)
    with pytest.raises(RunError, match="belongs to another plan"):
        load_checkpoint(halfway.checkpoint, changed)


def test_another_partition_is_noticed(plan: Plan, site: Site, halfway: RunFolder) -> None:
    report = json.loads(halfway.partition.read_text())
    halfway.partition.write_text(json.dumps({**report, "fingerprint": "0" * 16}))
    with pytest.raises(RunError, match="its partition was 0000000000000000, now it is"):
        run(halfway, site)


def test_another_example_is_noticed(site: Site, halfway: RunFolder) -> None:
    data = site.data
    assert isinstance(data, Partitioned)
    point = data.train["point"].clone()
    point[0, 0] += 1
    with pytest.raises(RunError, match=r"the examples changed since .* though not who holds which"):
        run(halfway, replace(site, data=replace(data, train={**data.train, "point": point})))
    report = json.loads(halfway.partition.read_text())
    halfway.partition.write_text(
        json.dumps({name: x for name, x in report.items() if name != "contents"})
    )
    run(halfway, site)  # begun by an earlier version, which did not look


@pytest.mark.slow
def test_two_processes_do_not_work_on_one_run(halfway: RunFolder) -> None:
    attempt = (
        "import sys; from pathlib import Path\n"
        "from fedpeft.runs.folder import RunFolder, lock_run\n"
        "with lock_run(RunFolder(Path(sys.argv[1]))): pass"
    )
    command = [sys.executable, "-c", attempt, str(halfway.path)]
    with lock_run(halfway):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another process is working on" in second.stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_what_moved_is_named(site: Site, plan: Plan, halfway: RunFolder) -> None:
    assert find_changes(halfway, site) == []
    saved = load_checkpoint(halfway.checkpoint, plan)
    assert saved is not None
    then = json.loads(json.dumps(saved.environment))
    then["versions"]["torch"], then["cpu"] = "0.4.1", "abacus"
    save_checkpoint(halfway.checkpoint, plan, saved.state, then)
    assert [line.partition(" then")[0] for line in find_changes(halfway, site)] == [
        "torch 0.4.1",
        "cpu abacus",
    ]


def test_a_difference_needs_two_sides() -> None:
    assert compare_environments({"versions": {}}, {"versions": {"torch": "2"}, "threads": 1}) == []
    assert compare_environments({"threads": 2}, {"threads": 1}) == ["threads 2 then, 1 now"]


def test_a_line_that_is_no_json_is_refused_before_it_is_written(halfway: RunFolder) -> None:
    before = halfway.rounds.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_round(halfway, {"round": 3, "loss": float("nan")})
    assert halfway.rounds.read_bytes() == before


def test_a_device_that_is_not_here(plan: Plan) -> None:
    with pytest.raises(PlanError, match="the device 'abacus' cannot be used here"):
        open_run_site(plan, "abacus")


def test_workers_are_for_engines_that_have_them(plan: Plan) -> None:
    check_workers(replace(plan, engine="processes"), 2)
    check_workers(plan, 0)
    with pytest.raises(PlanError, match="'inprocess' has no workers"):
        check_workers(plan, 2)
    with pytest.raises(PlanError, match="-1 worker processes"):
        check_workers(replace(plan, engine="processes"), -1)
