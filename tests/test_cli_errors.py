"""What the command line says about bad input; nothing is lost and nothing is left behind."""

import json
from pathlib import Path

import pytest
from running import PLAN, fedpeft

from fedpeft import PlanError


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


def test_training_that_diverges_is_named_and_the_run_goes_on(plan: Path, tmp_path: Path) -> None:
    result = fedpeft("run", plan, "--out", tmp_path / "run", "--set", "local.lr=1e38")
    assert result.exit_code == 1
    assert "0/2 answered" in result.stdout
    assert "not counted: c00" in result.stdout
    warnings = result.stderr.splitlines()
    assert warnings[0].startswith("warning: 6 of 6 replies were not counted; first c00")
    assert "in round 1: training diverged" in warnings[0]
    assert warnings[1] == "warning: 3 of 3 rounds changed nothing; rounds.jsonl says why"
    line = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[0])
    assert all("training diverged" in client["failed"] for client in line["clients"].values())
    assert line["note"] == "0 good replies, 1 needed: nothing changes"


def bad_folders(root: Path, done: Path) -> dict[str, Path]:
    (root / "empty").mkdir()
    (root / "broken.toml").write_text("rounds = = 3")
    (root / "binary.toml").write_bytes(b"\xff\xfe\x00\x80")
    broken = root / "broken"
    (broken / "checkpoint").mkdir(parents=True)
    for name in ("plan.toml", "rounds.jsonl", "partition.json"):
        (broken / name).write_bytes((done / name).read_bytes())
    (broken / "checkpoint" / "state.safetensors").write_bytes(b"half a checkpoint")
    return {"ROOT": root, "DONE": done, "PLAN": root / "plan.toml", "OUT": root / "out"}


BAD = {
    "unknown key": (
        ["run", "PLAN", "--set", "round=3"],
        "no key called 'round'. Did you mean 'rounds'?",
    ),
    "unknown key of a part": (
        ["run", "PLAN", "--set", "local.lrr=3"],
        "no key called 'lrr'. Did you mean 'lr'?",
    ),
    "unknown method": (
        ["run", "--set", "method=lorra"],
        "no method called 'lorra'. Did you mean 'lora'?",
    ),
    "unknown engine": (["run", "PLAN", "--engine", "process"], "Did you mean 'processes'?"),
    "wrong type": (["run", "PLAN", "--set", "rounds=many"], "plan.rounds = 'many'"),
    "a number as part": (
        ["run", "PLAN", "--set", "server=1"],
        "plan.server = 1: must be a name, a table with a `name`",
    ),
    "a number as stages": (
        ["run", "PLAN", "--set", "stages=5"],
        "plan.stages = 5: must be a name, a table",
    ),
    "a key of a number": (
        ["run", "PLAN", "--set", "local.lr.x=3"],
        "local.lr is 0.1, which has no keys",
    ),
    "a key of a list": (
        ["run", "PLAN", "--set", "stages.0.codec=dense"],
        "stages is [], which has no keys",
    ),
    "a downlink that drops": (
        ["run", "PLAN", "--set", "downlink=topk", "--set", "method=bias"],
        "receive most of them as zero",
    ),
    "no such array": (["run", "PLAN", "--set", "data=none.npz"], "there is no file 'none.npz'"),
    "out of range": (["run", "PLAN", "--set", "rounds=0"], "rounds must be at least 1, got 0"),
    "no pair": (["run", "PLAN", "--set", "rounds"], "'rounds' is not of the form key=value"),
    "no such plan": (["run", "ROOT/none.toml"], "none.toml cannot be read: No such file"),
    "a folder as plan": (["run", "ROOT/empty"], "empty cannot be read: Is a directory"),
    "a plan that is no TOML": (["show", "ROOT/broken.toml"], "the plan is no TOML"),
    "a plan that is no text": (["run", "ROOT/binary.toml"], "the plan is no TOML"),
    "too many clients": (
        ["run", "PLAN", "--set", "partition.clients=500"],
        "too few for 500 clients",
    ),
    "a run in the way": (["run", "PLAN", "--out", "DONE"], "already holds a run"),
    "a file in the way": (["run", "PLAN", "--out", "PLAN"], "is a file"),
    "no such device": (
        ["run", "PLAN", "--device", "abacus"],
        "the device 'abacus' cannot be used here",
    ),
    "workers of no engine": (
        ["run", "PLAN", "--workers", "2"],
        "the engine 'inprocess' has no workers",
    ),
    "resume nothing": (
        ["run", "--resume", "ROOT/none"],
        "is not a run's folder: there is no such folder",
    ),
    "resume no run": (
        ["run", "--resume", "ROOT/empty"],
        "is not a run's folder: it has no plan.toml",
    ),
    "resume from a broken checkpoint": (
        ["run", "--resume", "ROOT/broken"],
        "state.safetensors cannot be read",
    ),
    "evaluate a broken checkpoint": (
        ["evaluate", "ROOT/broken"],
        "state.safetensors cannot be read",
    ),
    "evaluate no run": (["evaluate", "ROOT/empty"], "it has no plan.toml"),
    "export no run": (["export", "ROOT/empty", "OUT"], "it has no plan.toml"),
    "list an unknown kind": (["list", "methods"], "Did you mean 'method'?"),
    "show an unknown part": (["show", "--set", "uplink=zip"], "no codec called 'zip'"),
    "partition of too many": (
        ["partition", "PLAN", "-s", "partition.clients=500"],
        "too few for 500 clients",
    ),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_clear_line(
    plan: Path, done: Path, arguments: list[str], words: str
) -> None:
    places = bad_folders(plan.parent, done)
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    if arguments[0] == "run" and "--out" not in arguments and "--resume" not in arguments:
        arguments = [*arguments, "--out", str(places["OUT"])]
    result = fedpeft(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not places["OUT"].exists()


def test_a_broken_checkpoint_and_its_run_are_left_alone(plan: Path, done: Path) -> None:
    bad_folders(plan.parent, done)
    broken = plan.parent / "broken"
    before = {
        path: path.read_bytes()
        for path in broken.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    fedpeft("run", "--resume", broken)
    assert before == {
        path: path.read_bytes()
        for path in broken.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    "beside", [["PLAN"], ["--set", "rounds=9"], ["--seed", "2"], ["--out", "x"]]
)
def test_a_resume_takes_no_other_plan(plan: Path, done: Path, beside: list[str]) -> None:
    result = fedpeft(
        "run", "--resume", done, *(plan if word == "PLAN" else word for word in beside)
    )
    assert result.exit_code == 2
    assert "--resume goes on with the run's own plan" in result.stderr


def test_debug_shows_where_an_error_comes_from(plan: Path) -> None:
    for arguments in (
        ["show", "--set", "round=1", "--debug"],
        ["--debug", "show", "--set", "round=1"],
    ):
        assert isinstance(fedpeft(*arguments).exception, PlanError)
    assert isinstance(fedpeft("show", plan, "--set", "round=1").exception, SystemExit)


def test_a_file_that_cannot_be_written_is_one_line(plan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = fedpeft("run", plan, "--out", tmp_path / "file" / "run")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "cannot be made" in result.stderr


def test_a_bad_place_for_a_result_is_told_before_anything_is_read_or_trained(
    plan: Path, tmp_path: Path
) -> None:
    out = plan / "x"  # below a file
    study = tmp_path / "study"
    fedpeft("invite", plan, "-o", study, "--set", "rounds=1")
    commands: tuple[list[str | int | Path], ...] = (
        ["run", plan, "-o", out],
        ["contribute", study, "--client", 0, "--yes", "--memory", tmp_path, "-o", out],
        ["merge", study, plan, "-o", out],
        ["report", tmp_path, "-o", out],
    )
    for words in commands:
        refused = fedpeft(*words)
        assert refused.exit_code == 2 and refused.stdout == "", refused.output
        assert refused.stderr.startswith(f"error: {out} cannot be made: {plan}: Not a directory")


def test_evaluate_before_the_first_round(plan: Path, done: Path) -> None:
    begun = plan.parent / "begun"
    begun.mkdir()
    (begun / "plan.toml").write_bytes((done / "plan.toml").read_bytes())
    result = fedpeft("evaluate", begun)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "has no checkpoint yet" in result.stderr


def test_a_run_that_is_refused_at_its_start_leaves_no_folder(plan: Path, tmp_path: Path) -> None:
    """What the engine refuses is known only when the folder is there."""
    settings = ["exchange=masked_files", "weighting=uniform"]
    result = fedpeft("run", plan, "--out", tmp_path / "run", *(f"--set={s}" for s in settings))
    assert result.exit_code == 2 and result.stderr.startswith("error: "), result.stderr
    assert not (tmp_path / "run").exists()
