"""Trackers are told of rounds by the same names, of nothing that identifies anyone, and end no
run."""

import getpass
import json
import math
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from cells import write_cell
from running import PLAN, fedpeft

from fedpeft.core.tracking import RunLabel
from fedpeft.errors import PlanError
from fedpeft.report.reading import read_cell
from fedpeft.trackers.tensorboard import FILE
from fedpeft.watching.tracking import (
    Tracking,
    identity,
    read_trackers,
    scalars,
    settings_told,
)

ACCURACY = "held_out/accuracy"
TOLD: Mapping[str, Mapping[int, float]] = {
    ACCURACY: {1: 0.1, 3: 0.3},
    "held_out/loss": {1: 0.5, 3: 0.5},
    "clients/loss": {1: 1.0, 2: 1.0, 3: 1.0},
    "bytes/up": {1: 1000, 2: 2000, 3: 2000},
    "bytes/down": {1: 20, 2: 20, 3: 20},
    "round/failed": {1: 1, 2: 0, 3: 0},
    "round/seconds": {1: 0.5, 2: 0.5, 3: 0.5},
    "privacy/epsilon": {1: 0.5, 2: 1.0, 3: 1.5},
}
"""What every tracker has of the run that `write` makes."""
SECRETS = {
    "data": {"name": "images", "path": "/home/alice/patients", "label": "diagnosis"},
    "task": {"name": "image-classification", "model": "/srv/models/vit-tiny", "size": 224},
    "nodes": {"names": ["hospital-alpha"], "deadline": 60.0},
    "classes": ["pneumonia"],
    "partition": {"name": "lists", "clients": {"ward-7": [1, 2]}},
    "attacks": [{"name": "scaled", "clients": ["ward-7"], "factor": 2.0}],
}
SECRET_WORDS = ("alice", "patients", "diagnosis", "/srv", "hospital-alpha", "pneumonia", "ward-7")

OS_NAME = socket.gethostname()


def write(folder: Path) -> Path:
    return write_cell(
        folder, [0.1, None, 0.3], failed="it is tired of ward-7", epsilon=0.5, plan=SECRETS
    )


def by_name(values: Mapping[int, Mapping[str, float]]) -> dict[str, dict[int, Any]]:
    """Values by round as values by name; single precision is near enough."""
    found: dict[str, dict[int, Any]] = {}
    for at, told in values.items():
        for name, value in told.items():
            found.setdefault(name, {})[at] = pytest.approx(value)
    return found


def assert_nothing_personal(text: str, folder: Path) -> None:
    """Neither a machine nor an owner is named, and no path of this machine."""
    # A name of two letters is found in any binary file by chance.
    every = (socket.gethostname(), OS_NAME, f"{Path.home()}/")
    names = [name for name in every if len(name) > 5]
    for word in (*SECRET_WORDS, *names, str(folder)):
        assert word not in text, word


@pytest.fixture(autouse=True)
def named_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has a name that cannot be missed where a library looks it up in Python."""
    monkeypatch.setattr(socket, "gethostname", lambda: "the-machine-of-hospital-beta")


@dataclass(frozen=True)
class Fails:
    """A tracker that fails from a round on, and again when it is closed."""

    at: int
    seen: list[int] = field(default_factory=list)
    done: int = 0

    def require(self) -> None: ...

    def follow(self, run: RunLabel) -> "Fails":
        return self

    def write(self, round: int, values: Mapping[str, float]) -> None:
        if round == self.at:
            raise TimeoutError("the server\nis gone")
        self.seen.append(round)

    def close(self, finished: bool) -> None:
        raise OSError("and so is the disk")


def test_names_are_those_that_all_trackers_take(tmp_path: Path) -> None:
    cell = read_cell(write(tmp_path / "run"))
    assert by_name({r.round: dict(scalars(r)) for r in cell.rounds}) == by_name_of(TOLD)
    odd = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[0])
    odd["held_out"] = {"f1@5 (best)": 0.5, "lost": None}
    (tmp_path / "run" / "rounds.jsonl").write_text(json.dumps(odd) + "\n")
    names = [name for name, _ in scalars(read_cell(tmp_path / "run").rounds[0])]
    assert "held_out/f1_5 _best_" in names and "held_out/lost" not in names


def by_name_of(told: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, Any]]:
    return {name: {at: pytest.approx(x) for at, x in one.items()} for name, one in told.items()}


def test_settings_have_numbers_and_parts_but_no_places_and_names() -> None:
    plan = {
        "name": "study",
        "rounds": 3,
        "local": {"name": "descent", "lr": 0.1, "clip_norm": math.inf, "as_published": False},
        "stages": [{"name": "client_dp", "clip_norm": 1.0}],
        "method": {"name": "lora", "target": ["q_proj"]},
        **SECRETS,
    }
    told = settings_told(plan)
    assert told["local.lr"] == 0.1 and told["local.as_published"] is False
    assert told["stages.0.name"] == "client_dp" and told["attacks.0.factor"] == 2.0
    assert told["task.model"] == "vit-tiny" and told["data.name"] == "images"
    assert "local.clip_norm" not in told and "nodes.deadline" not in told
    assert_nothing_personal(json.dumps(told), Path("/srv"))
    assert settings_told({"task": {"model": "google/vit"}}) == {"task.model": "google/vit"}
    assert settings_told({"name": "/home/alice/plan", "task": "module"}) == {}


def test_a_run_is_known_again_and_told_from_others(tmp_path: Path) -> None:
    one, other = read_cell(write(tmp_path / "one")), read_cell(write(tmp_path / "other"))
    assert identity(one) == identity(read_cell(tmp_path / "one")) != identity(other)
    assert len(identity(one)) == 16 and int(identity(one), 16) >= 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mlfow", "no tracker called 'mlfow'. Did you mean 'mlflow'?"),
        ("tensorboard:folder=x", "no key called 'folder'"),
        ("wandb:mode=ofline", "mode must be one of online, offline, got 'ofline'"),
    ],
)
def test_a_tracker_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        read_trackers([text])


def test_a_missing_library_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    (tmp_path / "plan.toml").write_text(PLAN)
    result = fedpeft("run", tmp_path / "plan.toml", "--out", tmp_path / "run", "--track", "mlflow")
    assert result.exit_code == 2 and "pip install 'fedpeft[mlflow]'" in result.stderr
    assert not (tmp_path / "run").exists()


def test_one_that_fails_is_told_in_a_line_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    broken, good = Fails(2), Fails(99)
    tracking = Tracking({"broken": broken, "good": good}, said.append)
    for _ in range(2):
        tracking.add({"run": read_cell(write_once(tmp_path / "run"))})
    tracking.close()
    assert broken.seen == [1] and good.seen == [1, 2, 3]
    assert [line.split(":")[1].split()[0] for line in said] == ["broken", "good"]
    assert said[0].endswith("everything else goes on: the server is gone")
    assert all("\n" not in line for line in said)


def write_once(folder: Path) -> Path:
    return folder if folder.exists() else write_cell(folder, [0.1, 0.2, 0.3], planned=4)


def test_a_run_tells_each_round_as_it_comes_and_goes_on_without_a_tracker(tmp_path: Path) -> None:
    """From the command line: one tracker works, and the other has no place to write to."""
    pytest.importorskip("tensorboard")
    (tmp_path / "plan.toml").write_text(PLAN)
    (tmp_path / "file").write_text("no folder")
    good, bad = f"tensorboard:{tmp_path / 'logs'}", f"tensorboard:{tmp_path / 'file'}"
    result = fedpeft(
        "run", tmp_path / "plan.toml", "--out", tmp_path / "run", "--track", good, "--track", bad
    )
    assert result.exit_code == 0, result.output
    assert result.stderr.count(f"{bad} is told nothing more") == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 3
    told = read_events(tmp_path / "logs" / "run")
    assert sorted(told[ACCURACY]) == [1, 2, 3]
    again = fedpeft("run", "--resume", tmp_path / "run", "--rounds", "4", "--track", good)
    assert again.exit_code == 0 and sorted(read_events(tmp_path / "logs" / "run")["bytes/up"]) == [
        1,
        2,
        3,
        4,
    ]


def read_events(folder: Path) -> dict[str, dict[int, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: {event.step: pytest.approx(event.value) for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what TensorBoard imports
def test_event_files_name_no_machine(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write(tmp_path / "runs" / "one")
    result = fedpeft(
        "watch", tmp_path / "runs", "--once", "--track", f"tensorboard:{tmp_path / 'logs'}"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert read_events(tmp_path / "logs" / "one") == by_name_of(TOLD)
    [file] = (tmp_path / "logs" / "one").iterdir()
    assert file.name == FILE and socket.gethostname() not in file.name
    assert_nothing_personal(file.read_bytes().decode("latin1"), tmp_path)


@pytest.mark.filterwarnings("ignore")  # of what MLflow imports
def test_mlflow_has_the_rounds_once_and_nothing_personal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = write(tmp_path / "runs" / "one")
    whole = (folder / "rounds.jsonl").read_text()
    done = (folder / "summary.json").read_text()
    (folder / "rounds.jsonl").write_text("\n".join(whole.splitlines()[:2]) + "\n")
    (folder / "summary.json").unlink()
    store = tmp_path / "store"
    command = ("watch", tmp_path / "runs", "--once", "--track", f"mlflow:{store}")
    assert fedpeft(*command).exit_code == 0
    client = mlflow.MlflowClient(str(store))
    experiment = client.get_experiment_by_name("fedpeft").experiment_id
    [run] = client.search_runs([experiment])
    assert run.info.status == "RUNNING"
    (folder / "rounds.jsonl").write_text(whole)
    (folder / "summary.json").write_text(done)
    assert fedpeft(*command).exit_code == 0
    [run] = client.search_runs([experiment])
    assert run.info.status == "FINISHED" and run.info.run_name == "one"
    every = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    told = {
        name: {one.step: pytest.approx(one.value) for one in history}
        for name, history in every.items()
    }
    assert told.pop("round/number") == {1: 1, 2: 2, 3: 3}
    assert told == by_name_of(TOLD)
    assert {name: len(every[name]) for name in TOLD} == {name: len(TOLD[name]) for name in TOLD}
    assert run.data.params["task.model"] == "vit-tiny" and run.info.user_id != getpass.getuser()
    sent = json.dumps([run.data.params, run.data.tags, list(run.data.metrics), run.info.run_name])
    assert_nothing_personal(sent, tmp_path)


@pytest.mark.filterwarnings("ignore")  # of what MLflow imports
def test_a_server_that_is_not_there_costs_a_line_and_some_seconds(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with socket.socket() as taken:  # nobody listens at its port
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        run, begun = write(tmp_path / "run"), monotonic()
        result = fedpeft("watch", run, "--once", "--track", f"mlflow:{address}")
    assert result.exit_code == 0 and "accuracy" in result.stdout
    [line] = [line for line in result.stderr.splitlines() if "told nothing more" in line]
    assert f"mlflow:{address}" in line and monotonic() - begun < 60


@pytest.mark.filterwarnings("ignore")  # of what the library imports
def test_wandb_keeps_the_rounds_offline_and_nothing_personal(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    write(tmp_path / "runs" / "one")
    tracker = f"wandb:project=ours,mode=offline,place={tmp_path}"
    result = fedpeft("watch", tmp_path / "runs", "--once", "--track", tracker)
    assert (result.exit_code, result.stderr) == (0, "")
    [kept] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    rounds, config = read_offline(kept)
    # The library adds its own clock, whose names begin with "_".
    assert by_name(rounds) == by_name_of(TOLD)
    assert config["task.model"] == "vit-tiny" and config["rounds"] == 3
    assert_nothing_personal(kept.read_bytes().decode("latin1"), tmp_path)


def read_offline(kept: Path) -> tuple[dict[int, dict[str, float]], dict[str, Any]]:
    """The rounds and the settings of a file that `wandb sync` would send."""
    from wandb.proto import wandb_internal_pb2

    rounds: dict[int, dict[str, float]] = {}
    config: dict[str, Any] = {}
    for data in records(kept.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for one in record.run.config.update:
            config[one.key or ".".join(one.nested_key)] = json.loads(one.value_json)
        items = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        if items:
            own = {key: x for key, x in items.items() if not key.startswith("_")}
            rounds[record.history.step.num] = own
    return rounds, config


def records(content: bytes) -> Iterator[bytes]:
    """What such a file holds: LevelDB's log, in blocks of 32 KiB, after 7 bytes of its own.

    A piece has a checksum of 4 bytes, its length in 2, and 1 that says whether it is a whole record
    (1), its beginning (2), its middle (3) or its end (4).
    """
    at, block, held = 7, 32768, b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # too short for another piece: filled up
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        held += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield held
            held = b""
