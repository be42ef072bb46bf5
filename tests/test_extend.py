"""More rounds for a run that is finished."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import PLAN, fedpeft

from fedpeft.core.facts import Fact, offered_by
from fedpeft.errors import RunError
from fedpeft.local.descent import Descent
from fedpeft.plan.reading import read_plan
from fedpeft.registry import OWN
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.extend import extend
from fedpeft.runs.folder import reopen
from fedpeft.storage.files import load_tensors

REMEMBERS = ["server=adam", 'stages=["error_feedback"]', "uplink=topk"]
PRIVATE = [
    'stages=[{name="local_dp", noise_multiplier=1.0}]',
    "weighting=uniform",
    "privacy.delta=1e-3",
    "privacy.accountant=rdp",
]


def run(folder: Path, *settings: str, rounds: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "plan.toml").write_text(PLAN)
    out = folder / f"run{rounds}"
    sets = [word for pair in settings for word in ("--set", pair)]
    ended = fedpeft("run", folder / "plan.toml", *sets, "--rounds", rounds, "-o", out, "-q")
    assert ended.exit_code == 0, ended.output
    return out


def told(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("settings", [(), tuple(REMEMBERS)], ids=["plain", "remembers"])
def test_it_is_as_if_the_plan_had_had_them_from_the_beginning(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    short, whole = (run(tmp_path, *settings, rounds=n) for n in (2, 4))
    ended = fedpeft("run", "--resume", short, "--rounds", 4, "-q")
    assert ended.exit_code == 0, ended.output
    one, other = (path / "checkpoint" / "state.safetensors" for path in (short, whole))
    assert one.read_bytes() == other.read_bytes()  # equal checkpoints are equal files
    assert told(short) == told(whole)
    assert json.loads((short / "summary.json").read_text())["rounds"] == 4
    assert (short / "plan.toml").read_text() == (whole / "plan.toml").read_text()
    assert "nothing is left to do" in fedpeft("run", "--resume", short, "--rounds", 4).stdout


def test_a_kill_between_checkpoint_and_plan_is_mended(tmp_path: Path) -> None:
    path = run(tmp_path, rounds=2)
    folder, plan = reopen(path, OWN)
    saved = load_checkpoint(folder.checkpoint, plan)
    assert saved is not None
    save_checkpoint(folder.checkpoint, replace(plan, rounds=3), saved.state, saved.environment)
    with pytest.raises(RunError, match="another plan"):
        extend(path, 4, OWN)
    extend(path, 3, OWN)
    assert fedpeft("run", "--resume", path, "-q").exit_code == 0
    assert len(told(path)) == 3 and load_tensors(folder.checkpoint)[1]["round"] == "3"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (['local.schedule="cosine"'], "Descent follows a course over all rounds"),
        (["local.warmup=0.1"], "Descent follows a course over all rounds"),
        (["local.lr={from=0.1, to=0.01}"], "schedule follows a course over all rounds"),
        ([*PRIVATE], "what it promises is for 2 rounds"),
    ],
)
def test_what_cannot_be_longer_is_refused_with_why(
    tmp_path: Path, settings: list[str], words: str
) -> None:
    path = run(tmp_path, *settings, rounds=2)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    ended = fedpeft("run", "--resume", path, "--rounds", 3)
    assert ended.exit_code == 2 and words in ended.stderr
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert {file: x for file, x in after.items() if file.name != ".lock"} == {
        file: x for file, x in before.items() if file.name != ".lock"
    }


def test_a_course_of_a_middle_phase_is_seen(tmp_path: Path) -> None:
    phases = 'phase=[{until=1, set=["local.lr=0.1"]}, {until=2, set=["local.schedule=cosine"]}]'
    path = run(tmp_path, phases, rounds=3)
    ended = fedpeft("run", "--resume", path, "--rounds", 4)
    assert ended.exit_code == 2 and "Descent follows a course over all rounds" in ended.stderr


def test_a_kill_before_the_plan_leaves_no_old_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run(tmp_path, rounds=2)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedpeft.runs.extend.write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        extend(path, 3, OWN)
    monkeypatch.undo()
    assert not (path / "summary.json").exists()
    ended = fedpeft("run", "--resume", path, "--rounds", 3, "-q")
    assert ended.exit_code == 0, ended.output
    assert len(told(path)) == 3


def test_fewer_rounds_and_merges_are_refused(tmp_path: Path) -> None:
    path = run(tmp_path, rounds=2)
    assert "give more" in fedpeft("run", "--resume", path, "--rounds", 1).stderr
    (path / "contributions").mkdir()
    assert "merged from files" in fedpeft("run", "--resume", path, "--rounds", 3).stderr


def test_a_schedule_of_each_round_alone_follows_no_course() -> None:
    cosine = Descent(schedule="cosine")
    assert Fact.SPANS_ROUNDS in offered_by(cosine)
    assert Fact.SPANS_ROUNDS not in offered_by(replace(cosine, restart_schedule=True))
    assert Fact.SPANS_ROUNDS not in offered_by(Descent())
    assert read_plan({"rounds": 3}).rounds == 3
