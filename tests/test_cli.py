"""The command line: what it prints and what it leaves."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from running import PLAN, fedpeft

from fedpeft import read_plan
from fedpeft.catalogue import CATALOGUE
from fedpeft.cli.app import app
from fedpeft.cli.options import resolve
from fedpeft.cli.part_keys import keys_of, read_source
from fedpeft.core.units import duration, say_epsilon, size
from fedpeft.registry import import_target, names


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "plan.toml").write_text(PLAN)
    result = fedpeft("run", folder / "plan.toml", "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    return folder / "run"


def test_a_run_shows_its_rounds_and_ends_with_a_table(plan: Path, tmp_path: Path) -> None:
    result = fedpeft("run", plan, "--out", tmp_path / "run")
    read, begins, rest = result.stdout.partition("blobs: 3 rounds")
    lines = (begins + rest).splitlines()
    assert read.startswith("data, as they were read here\n  90 examples to train on; 30 are held")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert lines[0] == f"blobs: 3 rounds, 2 of 4 clients in each, in {tmp_path / 'run'}"
    assert [line.split()[:2] for line in lines[1:4]] == [["round", f"{n}/3"] for n in (1, 2, 3)]
    assert all(
        "2/2 answered" in line and "accuracy" in line and "up" in line for line in lines[1:4]
    )
    assert f"accuracy, last  {summary['accuracy_last']:>10.4f}".split() == lines[8].split()
    assert f"{summary['trainable_params']}" in result.stdout
    assert lines[-1] == f"results: {tmp_path / 'run'}"
    assert result.stderr == ""


def test_the_time_left_is_told_once_it_can_be_known(plan: Path, tmp_path: Path) -> None:
    result = fedpeft("run", plan, "--out", tmp_path / "run", "--set", "rounds=5")
    rounds = [line for line in result.stdout.splitlines() if line.startswith("round ")]
    assert [line.endswith(" left") for line in rounds] == [False, False, True, True, False]


def test_json_is_all_that_is_on_standard_output(plan: Path, tmp_path: Path) -> None:
    result = fedpeft("run", plan, "--out", tmp_path / "run", "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "round 3/3" in result.stderr
    quiet = fedpeft("run", plan, "--out", tmp_path / "again", "--json", "--quiet")
    assert json.loads(quiet.stdout)["bytes_up"] == json.loads(result.stdout)["bytes_up"]
    assert quiet.stderr == ""


def test_settings_and_flags_change_the_plan(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = fedpeft(
        *("run", plan, "--set", "rounds=1", "-s", "local.lr=0.5", "--seed", 7),
        *("--engine", "processes", "--workers", 1, "--out", out, "--quiet"),
    )
    assert result.exit_code == 0, result.stderr
    left = read_plan(out / "plan.toml")
    assert (left.rounds, left.local.lr, left.seed, left.engine) == (1, 0.5, 7, "processes")  # type: ignore[attr-defined]
    assert left == read_plan(plan, ["rounds=1", "local.lr=0.5", "seed=7", "engine=processes"])


def test_runs_without_a_name_get_folders_of_their_own(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert fedpeft("run", plan, "--set", "rounds=1", "--quiet").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "blobs-full-1-001",
        "blobs-full-1-002",
    ]


def test_resuming_a_finished_run_shows_its_summary(done: Path) -> None:
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    result = fedpeft("run", "--resume", done)
    assert result.exit_code == 0
    assert "this run is finished: nothing is left to do" in result.stdout
    assert "accuracy, last" in result.stdout
    as_json = fedpeft("run", "--resume", done, "--json")
    assert json.loads(as_json.stdout) == json.loads((done / "summary.json").read_text())
    assert before == {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}


def test_a_resume_elsewhere_is_warned_of(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fedpeft("run", plan, "--out", out, "--quiet")
    (out / "summary.json").unlink()
    from fedpeft.storage.files import dump_tensors, load_tensors

    tensors, metadata = load_tensors(out / "checkpoint" / "state.safetensors")
    then = json.loads(metadata["environment"])
    metadata["environment"] = json.dumps({**then, "cpu": "abacus"})
    dump_tensors(out / "checkpoint" / "state.safetensors", tensors, metadata)
    result = fedpeft("run", "--resume", out, "--quiet")
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    expected = f"cpu abacus then, {then['cpu']} now"
    assert line == f"warning: the last bits may differ from an undisturbed run's: {expected}"
    assert json.loads((out / "summary.json").read_text())["rounds"] == 3


def test_show_prints_a_plan_that_reads_back(plan: Path) -> None:
    result = fedpeft("show", plan, "--set", "local.optimizer=adamw", "--set", "rounds=5")
    assert read_plan(result.stdout) == read_plan(plan, ["local.optimizer=adamw", "rounds=5"])


def test_the_plan_without_a_plan(tmp_path: Path) -> None:
    chosen = read_plan(fedpeft("show").stdout)
    assert (chosen.name, chosen.cohort, chosen.partition.clients) == ("digits", 8, 32)  # type: ignore[attr-defined]
    assert json.loads(fedpeft("partition", "--json").stdout)["clients"] == 32


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([], "digits"),
        (["data.subset=90"], "digits"),
        (["data=tests"], "tests"),
        (['data={name="images",path="x"}'], "run"),
        (["data=tests", "name=mine"], "mine"),
    ],
)
def test_the_plan_without_a_plan_is_called_as_its_data(settings: list[str], name: str) -> None:
    assert resolve(None, settings).name == name


def test_partition_draws_the_division_that_a_run_has(plan: Path, done: Path) -> None:
    report = json.loads(fedpeft("partition", plan, "--json").stdout)
    of_run = json.loads((done / "partition.json").read_text())
    assert len(of_run.pop("contents")) == 8  # what the examples are, which only a run reads
    assert report == of_run
    shown = fedpeft("partition", plan).stdout
    assert report["fingerprint"] in shown
    assert all(client in shown for client in report["histograms"])
    other = json.loads(fedpeft("partition", plan, "--json", "--seed", 2).stdout)
    assert other["fingerprint"] != report["fingerprint"]


def test_evaluate_finds_what_the_run_found(done: Path) -> None:
    summary = json.loads((done / "summary.json").read_text())
    found = json.loads(fedpeft("evaluate", done, "--json", "--per-client").stdout)
    assert found["round"] == 3
    assert found["held_out"]["accuracy"] == summary["accuracy_last"]
    spread = found["clients"]["accuracy"]
    assert 0 <= spread["worst_tenth"] <= spread["mean"] <= 1
    shown = fedpeft("evaluate", done, "--per-client").stdout.splitlines()
    assert shown[:2] == ["after round 3", f"  accuracy    {summary['accuracy_last']:.4f}"]
    assert (
        shown[3]
        == f"  accuracy    mean {spread['mean']:.4f}   worst tenth {spread['worst_tenth']:.4f}"
    )


def test_list_knows_every_part() -> None:
    shown = fedpeft("list").stdout
    for kind, parts in CATALOGUE.items():
        alone = fedpeft("list", kind).stdout.splitlines()
        assert alone[0] == kind
        assert [line.split()[0] for line in alone[1:] if line[2] != " "] == sorted(parts)
        ends = [before for before, after in pairwise([*alone, "  end"]) if after[2] != " "]
        assert all(line.endswith((".", kind)) for line in ends), "no sentence is cut off"
        assert all(line in shown for line in alone)
    assert "Low-rank adaptation" in fedpeft("list", "method").stdout


def test_the_keys_of_a_part_with_what_they_mean() -> None:
    shown = fedpeft("list", "data", "images").stdout
    assert "  path (must be given)\n      the folder.\n" in shown
    assert "  test_fraction (default 0.2)\n" in shown and "  window (default left out)\n" in shown
    assert '  start (default "zero")' in fedpeft("list", "method", "lora").stdout
    assert "It has no keys." in fedpeft("list", "codec", "float16").stdout
    refused = fedpeft("list", "data", "image")
    assert refused.exit_code == 2 and "Did you mean 'images'?" in refused.stderr


def test_every_key_of_every_part_has_a_meaning_and_the_default_of_its_field() -> None:
    keys = 0
    for kind in CATALOGUE:
        for name, target in names(kind).items():
            source = read_source(target)
            assert source and source[1], target
            part = import_target(target)
            fields = {f.name: f for f in dataclasses.fields(part)} if kind != "engine" else {}
            for key in keys_of(source[0], source[1]) if fields else ():
                keys += 1
                assert key.meaning, f"{kind} {name}: {key.name} has no meaning"
                assert key.name in fields and fields[key.name].init
                field = fields[key.name]
                needed = field.default is field.default_factory is dataclasses.MISSING
                assert not key.default.isupper(), f"{kind} {name}: {key.name} {key.default}"
                assert (key.default == "") == needed, f"{kind} {name}: {key.name} {key.default}"
    assert keys > 150


@pytest.mark.parametrize("command", [one.name for one in app.registered_commands])
def test_help_has_examples(command: str) -> None:
    result = fedpeft(command, "--help")
    assert result.exit_code == 0
    assert f"Examples:\n    fedpeft {command}" in result.stdout
    assert "\\[" not in result.stdout, "brackets are shown as they are"
    described = result.stdout.partition("Options:")[0].partition("Arguments:")[0]
    assert not re.search(r"\S {2,}\S", described), "no line break of the source shows"


def test_the_list_of_commands_is_not_cut_short() -> None:
    assert "..." not in fedpeft("--help").stdout.partition("Commands:")[2]


def test_help_and_list_do_not_wait_for_torch() -> None:
    script = (
        "import sys\nfrom fedpeft.cli.app import app\n"
        "for words in (['--help'], ['run', '--help'], ['list'], ['--version']):\n"
        "    try: app(words)\n"
        "    except SystemExit as ended: assert not ended.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_the_module_is_the_command() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "fedpeft", "list", "codc"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no kind of part called 'codc'. Did you mean 'codec'?")


def test_names_are_completed_in_a_shell() -> None:
    asked = {
        "_FEDPEFT_COMPLETE": "complete_bash",
        "COMP_WORDS": "fedpeft run --engine pro",
        "COMP_CWORD": "3",
    }
    script = "from fedpeft.cli.app import app; app(prog_name='fedpeft')"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **asked},
    )
    assert ended.stdout.split() == ["processes"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (343498752, "327.6 MiB"),
        (5 * 2**50, "5120.0 TiB"),
    ],
)
def test_bytes_are_read_in_units_of_1024(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (119.4, "119 s"),
        (125, "2 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_seconds_are_read_in_fitting_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("bound", "text"),
    [
        *((7.989682908839349, "7.99"), (8.0, "8"), (2.0001, "2.01"), (3.0000000000000004, "3")),
        *((0.00123456, "0.00124"), (12345.6, "12400"), (0.0, "0")),
        *((None, "not bounded"), (float("inf"), "not bounded")),
    ],
)
def test_an_epsilon_is_never_told_too_low(bound: float | None, text: str) -> None:
    assert say_epsilon(bound) == text


def test_a_run_in_which_nothing_changed_fails(plan: Path, tmp_path: Path) -> None:
    """Every client's training diverges: the model is the one it began with."""
    result = fedpeft("run", plan, "-o", tmp_path / "run", "-s", "local.lr=1e38", "-s", "rounds=2")
    assert result.exit_code == 1
    assert "error: no round changed anything" in result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rounds_without_change"] == 2 and summary["failed"] == summary["asked"]


def test_a_cohort_larger_than_the_federation_is_told(plan: Path, tmp_path: Path) -> None:
    result = fedpeft("run", plan, "--out", tmp_path / "run", "-s", "cohort=9", "-s", "rounds=1")
    assert result.exit_code == 0, result.stderr
    assert "cohort = 9 is more than there are clients: all take part" in result.stdout
