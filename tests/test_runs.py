"""Run folders: what a run leaves, and that nothing is lost or doubled when it is cut off anywhere."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft import Folder, InProcess, Plan, RunError, federate, open_site, read_plan, start
from fedpeft.client import Site
from fedpeft.core.tensors import equal
from fedpeft.core.types import State
from fedpeft.registry import build
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.environment import differences
from fedpeft.runs.execute import check_workers, execute, moved, open_engine, open_run_site
from fedpeft.runs.folder import RunFolder, append_round, create, locked, read_rounds, reopen
from fedpeft.runs.measure import full_payloads, measure, over_clients
from fedpeft.runs.record import RoundRecord
from fedpeft.runs.summary import summarize

SMALL = {
    "name": "small",
    "task": "parts:Points",
    "data": "parts:Blobs",
    "method": "full",
    "rounds": 4,
    "cohort": 3,
    "partition": {"name": "dirichlet", "clients": 6, "alpha": 1.0},
    "local": {"batch_size": 8, "lr": 0.1, "correction": "scaffold"},
    "server": "scaffold",
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(SMALL)


@pytest.fixture(scope="module")
def site(plan: Plan) -> Site:
    return open_site(plan)


def run(folder: RunFolder, site: Site, rounds: int | None = None) -> list[RoundRecord]:
    """Execute all rounds, or stop after some as a caller may."""
    records = []
    for record in execute(folder, site, open_engine(folder, site)):
        records.append(record)
        if len(records) == rounds:
            break
    return records


def state_of(folder: RunFolder, plan: Plan) -> State:
    saved = load_checkpoint(folder.checkpoint, plan)
    assert saved is not None
    return saved.state


def without_seconds(folder: RunFolder) -> list[dict[str, Any]]:
    return [{key: x for key, x in line.items() if key != "seconds"} for line in read_rounds(folder)]


@pytest.fixture(scope="module")
def undisturbed(plan: Plan, site: Site, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = create(plan, tmp_path_factory.mktemp("undisturbed") / "run")
    run(folder, site)
    return folder


@pytest.fixture
def halfway(plan: Plan, site: Site, tmp_path: Path) -> Iterator[RunFolder]:
    folder = create(plan, tmp_path / "halfway")
    run(folder, site, rounds=2)
    yield folder


def same_end(folder: RunFolder, undisturbed: RunFolder, plan: Plan) -> None:
    ours, theirs = state_of(folder, plan), state_of(undisturbed, plan)
    assert ours.round == plan.rounds
    assert equal(ours.params, theirs.params)
    assert equal(ours.memory, theirs.memory)
    assert ours.accepted == theirs.accepted
    assert without_seconds(folder) == without_seconds(undisturbed)


def test_a_run_is_the_loop_and_nothing_else(plan: Plan, site: Site, undisturbed: RunFolder, tmp_path: Path) -> None:
    for state, ledger in federate(plan, InProcess(site, Folder(tmp_path)), start(plan, site.params())):
        line = read_rounds(undisturbed)[ledger.round]
        assert line["bytes_up"] == ledger.bytes_up
        assert line["bytes_down"] == ledger.bytes_down
        assert line["held_out"] == measure(site, state.params)
    assert equal(state.params, state_of(undisturbed, plan).params)


def test_the_plan_in_the_folder_is_the_plan(plan: Plan, undisturbed: RunFolder) -> None:
    assert reopen(undisturbed.path) == (undisturbed, plan)


def test_a_line_tells_of_each_client_asked(undisturbed: RunFolder, site: Site) -> None:
    for number, line in enumerate(read_rounds(undisturbed), 1):
        assert line["round"] == number
        assert len(line["clients"]) == 3
        assert {c: w["weight"] for c, w in line["clients"].items()} == {c: site.data.size(c) for c in line["clients"]}
        assert line["bytes_up"] == sum(client["up"] for client in line["clients"].values())
        assert line["bytes_down"] == sum(client["down"] for client in line["clients"].values())
        assert 0 < line["up_headers"] < line["bytes_up"]
        assert 0 < line["seconds"] < 60


def test_a_checkpoint_reads_back_to_the_state(plan: Plan, tmp_path: Path) -> None:
    params = {"z": torch.ones(1), "a.b": torch.tensor([1.5, -0.0])}
    state = State(3, params, {"m/a.b": torch.ones(2, dtype=torch.bfloat16)}, {"c/1": 2})
    save_checkpoint(tmp_path / "state.safetensors", plan, state, {"threads": 1})
    saved = load_checkpoint(tmp_path / "state.safetensors", plan)
    assert saved is not None
    assert (saved.state.round, saved.state.accepted, saved.environment) == (3, {"c/1": 2}, {"threads": 1})
    assert equal(saved.state.params, state.params)
    assert equal(saved.state.memory, state.memory)
    assert list(saved.state.params) == ["z", "a.b"]


def test_a_stopped_run_goes_on_to_the_same_bits(
    plan: Plan, site: Site, halfway: RunFolder, undisturbed: RunFolder
) -> None:
    assert [record.round for record in run(halfway, site)] == [3, 4]
    same_end(halfway, undisturbed, plan)


def test_a_kill_between_a_line_and_its_checkpoint(
    plan: Plan, site: Site, halfway: RunFolder, undisturbed: RunFolder, tmp_path: Path
) -> None:
    before = shutil.copy(halfway.checkpoint, tmp_path / "kept")
    run(halfway, site, rounds=1)
    shutil.copy(before, halfway.checkpoint)
    assert len(read_rounds(halfway)) == 3
    assert [record.round for record in run(halfway, site)] == [3, 4]
    same_end(halfway, undisturbed, plan)


def test_a_kill_before_the_first_checkpoint(plan: Plan, site: Site, undisturbed: RunFolder, tmp_path: Path) -> None:
    folder = create(plan, tmp_path / "run")
    run(folder, site, rounds=1)
    folder.checkpoint.unlink()
    run(folder, site)
    same_end(folder, undisturbed, plan)


@pytest.mark.parametrize("cut", [1, 100, -1])
def test_a_line_that_was_cut_short(
    plan: Plan, site: Site, halfway: RunFolder, undisturbed: RunFolder, cut: int
) -> None:
    third = (undisturbed.rounds.read_bytes().split(b"\n"))[2]
    with halfway.rounds.open("ab") as file:
        file.write(third[:cut])
    run(halfway, site)
    same_end(halfway, undisturbed, plan)


def test_leftovers_of_interrupted_writes_do_not_matter(
    plan: Plan, site: Site, halfway: RunFolder, undisturbed: RunFolder
) -> None:
    halfway.checkpoint.with_name(".state.safetensors.part").write_bytes(b"half")
    halfway.rounds.with_name(".rounds.jsonl.part").write_bytes(b"half")
    client = next(halfway.clients.iterdir())
    (client / ".2.safetensors.part").write_bytes(b"half")
    run(halfway, site)
    same_end(halfway, undisturbed, plan)


def test_a_run_without_memory_has_no_folder_for_it(tmp_path: Path) -> None:
    plan = read_plan({**SMALL, "rounds": 1, "local": {"batch_size": 8}, "server": "average"})
    folder = create(plan, tmp_path / "run")
    run(folder, open_site(plan))
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "checkpoint", "partition.json", "plan.toml", "rounds.jsonl"
    ]  # fmt: skip


def test_rounds_are_evaluated_as_often_as_the_plan_says(site: Site, tmp_path: Path) -> None:
    plan = read_plan({**SMALL, "evaluate_every": 3})
    folder = create(plan, tmp_path / "run")
    run(folder, replace(site, plan=plan))
    assert [line["held_out"] is not None for line in read_rounds(folder)] == [False, False, True, True]


def test_the_summary_adds_up(plan: Plan, site: Site, undisturbed: RunFolder) -> None:
    summary = summarize(undisturbed, site)
    lines = read_rounds(undisturbed)
    assert summary == json.loads(undisturbed.summary.read_text())
    assert summary["rounds"] == 4
    assert summary["accuracy_last"] == lines[-1]["held_out"]["accuracy"]
    assert summary["accuracy_best"] == max(line["held_out"]["accuracy"] for line in lines)
    assert summary["bytes_up"] == sum(line["bytes_up"] for line in lines)
    assert summary["bytes_up_per_client_round"] == round(summary["bytes_up"] / 12, 1)
    assert summary["seconds"] == pytest.approx(sum(line["seconds"] for line in lines), abs=1e-3)
    assert (summary["asked"], summary["failed"], summary["rounds_without_change"]) == (12, 0, 0)
    assert summary["trainable_params"] == summary["full_params"] == 8 * 3 + 3
    assert summary["partition"] == json.loads(undisturbed.partition.read_text())["fingerprint"]


def test_full_fine_tuning_is_what_a_full_run_really_sends(tmp_path: Path) -> None:
    plan = read_plan({**SMALL, "server": "average", "local": "descent", "uplink": "float16", "rounds": 3})
    folder, site = create(plan, tmp_path / "run"), open_site(plan)
    run(folder, site)
    summary = summarize(folder, site)
    assert summary["full_bytes_down"] == summary["bytes_down"]
    numbers = 9 * 20  # the weight and the loss travel as text, of at most so many letters in each of 9 replies
    assert summary["full_bytes_up"] == pytest.approx(summary["bytes_up"], abs=numbers)
    larger = replace(plan, task=build("task", {"name": "parts:Points", "network": "convolution"}))
    assert (
        full_payloads(larger, site.classes).params == 4 * 3 + 4 + 4 * 4 + 3 * 32 + 3
    )  # convolution, norm with its statistics, head


def test_clients_are_measured_one_by_one(plan: Plan, site: Site, undisturbed: RunFolder) -> None:
    params = state_of(undisturbed, plan).params
    each = [measure(site, params, client)["accuracy"] for client in site.data.clients]
    found = over_clients(site, params)["accuracy"]
    assert found == {"mean": pytest.approx(sum(each) / 6), "worst_tenth": min(each)}


def test_an_out_folder_that_is_taken(plan: Plan, undisturbed: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="already holds a run: continue it with `fedpeft run --resume"):
        create(plan, undisturbed.path)
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
    with pytest.raises(RunError, match="tells of 1 rounds, the checkpoint of 2"):
        run(halfway, site)
    halfway.rounds.write_bytes(lines[1])
    with pytest.raises(RunError, match="line 1 is damaged or out of order"):
        run(halfway, site)


def test_a_checkpoint_of_another_plan(halfway: RunFolder) -> None:
    text = halfway.plan.read_text()
    halfway.plan.write_text(text.replace("seed = 1", "seed = 2"))
    _, changed = reopen(halfway.path)
    with pytest.raises(RunError, match="belongs to another plan"):
        load_checkpoint(halfway.checkpoint, changed)


def test_another_partition_is_noticed(plan: Plan, site: Site, halfway: RunFolder) -> None:
    report = json.loads(halfway.partition.read_text())
    halfway.partition.write_text(json.dumps({**report, "fingerprint": "0" * 16}))
    with pytest.raises(RunError, match="its partition was 0000000000000000, now it is"):
        run(halfway, site)


def test_two_processes_do_not_work_on_one_run(halfway: RunFolder) -> None:
    attempt = (
        "import sys; from pathlib import Path; from fedpeft.runs.folder import RunFolder, locked\n"
        "with locked(RunFolder(Path(sys.argv[1]))): pass"
    )
    command = [sys.executable, "-c", attempt, str(halfway.path)]
    with locked(halfway):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another process is working on" in second.stderr
    assert subprocess.run(command, check=False).returncode == 0


def test_what_moved_is_named(site: Site, plan: Plan, halfway: RunFolder) -> None:
    assert moved(halfway, site) == []
    saved = load_checkpoint(halfway.checkpoint, plan)
    assert saved is not None
    then = json.loads(json.dumps(saved.environment))
    then["versions"]["torch"], then["cpu"] = "0.4.1", "abacus"
    save_checkpoint(halfway.checkpoint, plan, saved.state, then)
    assert [line.partition(" then")[0] for line in moved(halfway, site)] == ["torch 0.4.1", "cpu abacus"]


def test_a_difference_needs_two_sides() -> None:
    assert differences({"versions": {}}, {"versions": {"torch": "2"}, "threads": 1}) == []
    assert differences({"threads": 2}, {"threads": 1}) == ["threads 2 then, 1 now"]


def test_a_line_that_is_no_json_is_refused_before_it_is_written(halfway: RunFolder) -> None:
    before = halfway.rounds.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_round(halfway, {"round": 3, "loss": float("nan")})
    assert halfway.rounds.read_bytes() == before


def test_a_device_that_is_not_here(plan: Plan) -> None:
    with pytest.raises(Exception, match="the device 'abacus' cannot be used here"):
        open_run_site(plan, "abacus")


def test_workers_are_for_engines_that_have_them(plan: Plan) -> None:
    check_workers(replace(plan, engine="processes"), 2)
    check_workers(plan, 0)
    with pytest.raises(Exception, match="'inprocess' has no workers"):
        check_workers(plan, 2)
    with pytest.raises(Exception, match="-1 worker processes"):
        check_workers(replace(plan, engine="processes"), -1)
