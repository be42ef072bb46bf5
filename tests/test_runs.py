"""Run folders: what a run leaves, and that nothing is lost or doubled when it is cut off
anywhere."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import line as kept_line
from rich.console import Console
from running import SMALL, run

from fedpeft import Folder, InProcess, Plan, federate, open_site, read_plan, start
from fedpeft.cli.progress import failure_line, show_rounds, summary_table, warnings
from fedpeft.core.tensors import equal
from fedpeft.core.types import State
from fedpeft.evaluation.measure import full_payloads, measure
from fedpeft.evaluation.own_held_out import over_clients
from fedpeft.registry import OWN, build
from fedpeft.rounds.site import Site
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.folder import RunFolder, create, read_rounds, reopen
from fedpeft.runs.measured import ended_worse
from fedpeft.runs.record import RoundRecord
from fedpeft.runs.summary import summarize


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(SMALL)


@pytest.fixture(scope="module")
def site(plan: Plan) -> Site:
    return open_site(plan)


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
    assert ours.memory.keys() == theirs.memory.keys() and ours.shared.keys() == theirs.shared.keys()
    for owner, own in {**ours.memory, **ours.shared}.items():
        assert equal(own, {**theirs.memory, **theirs.shared}[owner])
    assert ours.accepted == theirs.accepted
    assert without_seconds(folder) == without_seconds(undisturbed)


def test_a_run_is_the_loop_and_nothing_else(
    plan: Plan, site: Site, undisturbed: RunFolder, tmp_path: Path
) -> None:
    for state, ledger in federate(
        plan, InProcess(site, Folder(tmp_path)), start(plan, site.params())
    ):
        line = read_rounds(undisturbed)[ledger.round]
        assert line["bytes_up"] == ledger.bytes_up
        assert line["bytes_down"] == ledger.bytes_down
        assert line["held_out"] == measure(site, state.params)
    assert equal(state.params, state_of(undisturbed, plan).params)


def test_the_plan_in_the_folder_is_the_plan(plan: Plan, undisturbed: RunFolder) -> None:
    assert reopen(undisturbed.path, OWN) == (undisturbed, plan)


def test_a_line_tells_of_each_client_asked(undisturbed: RunFolder, site: Site) -> None:
    for number, line in enumerate(read_rounds(undisturbed), 1):
        assert line["round"] == number
        assert len(line["clients"]) == 3
        assert {c: w["weight"] for c, w in line["clients"].items()} == {
            c: site.data.size(c) for c in line["clients"]
        }
        assert line["bytes_up"] == sum(client["up"] for client in line["clients"].values())
        assert line["bytes_down"] == sum(client["down"] for client in line["clients"].values())
        assert 0 < line["up_headers"] < line["bytes_up"]
        assert 0 < line["seconds"] < 60


def test_a_checkpoint_reads_back_to_the_state(plan: Plan, tmp_path: Path) -> None:
    params = {"z": torch.ones(1), "a.b": torch.tensor([1.5, -0.0])}
    memory = {"server": {"m/a.b": torch.ones(2, dtype=torch.bfloat16)}}
    shared = {"c": {"z": torch.zeros(1)}}
    state = State(3, params, shared, memory, {"c/1": 2})
    save_checkpoint(tmp_path / "state.safetensors", plan, state, {"threads": 1})
    saved = load_checkpoint(tmp_path / "state.safetensors", plan)
    assert saved is not None
    assert (saved.state.round, saved.state.accepted, saved.environment) == (
        3,
        {"c/1": 2},
        {"threads": 1},
    )
    assert equal(saved.state.params, state.params)
    assert equal(saved.state.memory["server"], memory["server"])
    assert equal(saved.state.shared["c"], shared["c"])
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


def test_a_kill_before_the_first_checkpoint(
    plan: Plan, site: Site, undisturbed: RunFolder, tmp_path: Path
) -> None:
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
        "checkpoint",
        "partition.json",
        "plan.toml",
        "rounds.jsonl",
    ]


def test_rounds_are_evaluated_as_often_as_the_plan_says(site: Site, tmp_path: Path) -> None:
    plan = read_plan({**SMALL, "evaluate_every": 3})
    folder = create(plan, tmp_path / "run")
    run(folder, replace(site, plan=plan))
    assert [line["held_out"] is not None for line in read_rounds(folder)] == [
        False,
        False,
        True,
        True,
    ]


def test_the_summary_adds_up(plan: Plan, site: Site, undisturbed: RunFolder) -> None:
    summary = summarize(undisturbed, site)
    lines = read_rounds(undisturbed)
    assert summary == json.loads(undisturbed.summary.read_text())
    assert summary["schema"] == plan.schema
    assert summary["rounds"] == 4
    assert summary["accuracy_last"] == lines[-1]["held_out"]["accuracy"]
    assert summary["accuracy_best"] == max(line["held_out"]["accuracy"] for line in lines)
    assert summary["bytes_up"] == sum(line["bytes_up"] for line in lines)
    assert summary["bytes_up_per_client_round"] == round(summary["bytes_up"] / 12, 1)
    assert summary["seconds"] == pytest.approx(sum(line["seconds"] for line in lines), abs=1e-3)
    assert (summary["asked"], summary["failed"], summary["rounds_without_change"]) == (12, 0, 0)
    assert summary["trainable_params"] == summary["full_params"] == 8 * 3 + 3
    assert summary["partition"] == json.loads(undisturbed.partition.read_text())["fingerprint"]


def test_a_run_that_ended_worse_than_it_began_says_so(tmp_path: Path) -> None:
    """All clients send the opposite of what they learned."""
    flip = {"name": "sign_flip", "share": 1.0, "factor": 10.0}
    plan = read_plan({**SMALL, "rounds": 2, "attacks": [flip], "local": {"lr": 0.1}})
    folder, site = create(plan, tmp_path / "run"), open_site(plan)
    run(folder, site)
    summary = summarize(folder, site)
    before, after = summary["start"]["metrics"], summary["held_out_last"]
    assert summary["start"]["round"] == 0 and before == measure(site, site.params())
    assert after["accuracy"] < before["accuracy"]
    [worse] = warnings(summary)
    assert f"accuracy is {after['accuracy']:.4f} at its end" in worse
    assert f"was {before['accuracy']:.4f} at its start" in worse


@pytest.mark.parametrize(
    ("start", "last", "told"),
    [
        ({"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.5, "loss": 2.0}, ""),
        ({"loss": 1.0}, {"loss": 2.0}, "loss is 2.0000 at its end and was 1.0000 after round 3"),
        ({"loss": 2.0}, {"loss": 1.0}, ""),
        ({"loss": 2.0}, {"loss": None}, "loss is not finite at its end"),
        ({"perplexity": 9.0}, {"loss": 1.0, "perplexity": 8.0}, ""),
        ({"f1": 0.5}, {"f1": 0.25}, "f1 is 0.2500"),
        ({"f1": None}, {"f1": 0.25}, ""),
    ],
)
def test_worse_is_what_the_metric_says(
    start: dict[str, float], last: dict[str, float], told: str
) -> None:
    said = ended_worse({"start": {"round": 3, "metrics": start}, "held_out_last": last})
    assert (told in said) if told else said == ""
    assert ended_worse({"start": None, "held_out_last": last}) == ended_worse({}) == ""


def test_full_fine_tuning_is_what_a_full_run_really_sends(tmp_path: Path) -> None:
    plan = read_plan(
        {**SMALL, "server": "average", "local": "descent", "uplink": "float16", "rounds": 3}
    )
    folder, site = create(plan, tmp_path / "run"), open_site(plan)
    run(folder, site)
    summary = summarize(folder, site)
    assert summary["full_bytes_down"] == summary["bytes_down"]
    # The weight and the loss travel as text, of at most so many letters in each of 9 replies.
    numbers = 9 * 20
    assert summary["full_bytes_up"] == pytest.approx(summary["bytes_up"], abs=numbers)
    larger = replace(plan, task=build("task", {"name": "parts:Points", "network": "convolution"}))
    # Convolution, norm with its statistics, head.
    assert full_payloads(larger, site.classes).params == 4 * 3 + 4 + 4 * 4 + 3 * 32 + 3


def test_full_fine_tuning_is_compared_with_the_same_extras(
    plan: Plan, undisturbed: RunFolder, site: Site
) -> None:
    """The plan of these runs is full fine-tuning with SCAFFOLD: both sides of the table are the
    same run."""
    summary = summarize(undisturbed, site)
    assert summary["full_bytes_down"] == summary["bytes_down"]
    assert summary["full_bytes_up"] == pytest.approx(summary["bytes_up"], abs=12 * 20)
    assert summary["full_not_measured"] is None
    plain = full_payloads(
        replace(plan, server=build("server", "average"), local=build("local", "descent")),
        site.classes,
    )
    weights_and_correction = 2 * 4 * plain.params
    assert plain.down < weights_and_correction < summary["full_bytes_down_per_client_round"]


@pytest.mark.parametrize("way", ["uplink", "downlink"])
def test_a_run_whose_whole_model_cannot_be_measured_has_its_summary(
    tmp_path: Path, way: str
) -> None:
    values = {
        **SMALL,
        "task": {"name": "parts:Points", "network": "deep"},
        "method": "head",
        "rounds": 1,
        way: "float16",
    }
    plan = read_plan({**values, "server": "average", "local": {"batch_size": 8}})
    folder, site = create(plan, tmp_path / "run"), open_site(plan)
    run(folder, site)
    summary = summarize(folder, site)
    assert summary == json.loads(folder.summary.read_text())
    assert {
        x for key, x in summary.items() if key.startswith("full_") and key != "full_not_measured"
    } == {None}
    assert "float16 ends at 65504" in summary["full_not_measured"]
    assert summary["failed"] == 0 and summary["bytes_up"] > 0
    console = Console(width=120)
    with console.capture() as shown:
        console.print(summary_table(summary))
    assert [line.split()[-1] for line in shown.get().splitlines() if "bytes up" in line] == [
        "-",
        "-",
    ]


def test_clients_are_measured_one_by_one(plan: Plan, site: Site, undisturbed: RunFolder) -> None:
    state = state_of(undisturbed, plan)
    each = [measure(site, state.params, client)["accuracy"] for client in site.data.clients]
    found = over_clients(site, state, Folder(undisturbed.clients))["accuracy"]
    assert found == {"mean": pytest.approx(sum(each) / 6), "worst_tenth": min(each)}


def test_a_round_that_was_not_measured_names_the_metric_of_those_that_were() -> None:
    measured = kept_line(2, 0.5, 100, None, None)
    records = [
        RoundRecord(**{**measured, "round": at, "held_out": held})
        for at, held in ((1, None), (2, {"loss": 0.5, "mae": 42.0}), (3, None))
    ]
    console = Console(width=120)
    with console.capture() as shown:
        show_rounds(console, 3, records)
    measures = [text.partition("  ")[2].partition("loss")[0] for text in shown.get().splitlines()]
    assert [text.rstrip() for text in measures] == [
        "held out    -",
        "mae 42.0000",
        "mae    -",
    ]


def test_each_reason_for_which_clients_failed_has_a_line() -> None:
    reasons = {"a": "gone", "b": "refused", "c": "gone", "d": "torn", "e": "late", "f": "lost"}
    measured = kept_line(2, 0.5, 100, None, None)
    clients = {name: {"down": 1, "failed": why} for name, why in reasons.items()}
    record = RoundRecord(**{**measured, "clients": {**clients, "g": {"down": 1, "weight": 2.0}}})
    assert failure_line(record).splitlines() == [
        "  not counted: a (and 1 more): gone",
        "  not counted: b: refused",
        "  not counted: d: torn",
        "  not counted: 2 more, for other reasons; rounds.jsonl names them",
    ]
    assert failure_line(RoundRecord(**measured)) == ""


def test_the_table_has_all_that_was_measured_beside_the_accuracy(
    plan: Plan, site: Site, undisturbed: RunFolder
) -> None:
    held = {"accuracy": 0.9, "loss": 0.3, "wer": 0.05}
    summary = {**summarize(undisturbed, site), "accuracy_last": 0.9, "held_out_last": held}
    console = Console(width=120)
    with console.capture() as shown:
        console.print(summary_table(summary))
    rows = [text.split() for text in shown.get().splitlines()]
    assert ["held-out", "wer,", "last", "0.0500"] in rows
    assert not [row for row in rows if row[:2] == ["held-out", "loss,"]]
