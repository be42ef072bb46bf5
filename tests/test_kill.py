"""Runs that are killed, interrupted or out of disk, as real processes; what is resumed ends in the
same bits."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crashes import BLOBS, alive, assert_same_end, descendants, outcome, write

from fedpeft import Folder, Processes, read_plan
from fedpeft.runs.execute import execute, open_engine, open_run_site
from fedpeft.runs.folder import RunFolder, create, read_rounds

TESTS = Path(__file__).parent
DIGITS = """
name = "digits"
method = "lora"
rounds = 5
cohort = 2
evaluate_every = 5
partition = {name = "dirichlet", clients = 48, alpha = 1.0}
local = {batch_size = 16, lr = 0.05}
"""
MEMORY = """
name = "memory"
task = "parts:Points"
data = "parts:Blobs"
method = "full"
rounds = 5
cohort = 3
engine = "processes"
uplink = {name = "topk", density = 0.2}
stages = ["error_feedback"]
partition = {name = "dirichlet", clients = 5, alpha = 1.0}
local = {batch_size = 4, epochs = 30, lr = 0.01, correction = "scaffold"}
"""


def begin(*arguments: str | Path) -> "subprocess.Popen[str]":
    """`fedpeft ...` as a process, in a process group of its own, as a terminal would have it."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "fedpeft", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Which a test run in the background ignores.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(*arguments: str | Path) -> None:
    process = begin(*arguments)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr


def until(
    what: Callable[[], Any], process: "subprocess.Popen[str] | None" = None, seconds: float = 90
) -> None:
    """Wait for `what`, which a process that has ended cannot bring about any more."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


PRIVATE = """
name = "private"
task = "parts:Points"
data = "parts:Blobs"
method = "full"
rounds = 5
cohort = 3
engine = "processes"
weighting = "uniform"
delta = 1e-3
accountant = "rdp"
partition = {name = "dirichlet", clients = 5, alpha = 1.0}
local = {batch_size = 4, epochs = 30, lr = 0.01}
stages = [{name = "STAGE", noise_multiplier = 1.0}]
"""


def undisturbed(plan: Path, out: Path, secrets: tuple[Path, Path] | None = None) -> Path:
    """The same run in this process, without a command line and with the engine that has no
    processes."""
    chosen = read_plan(plan, ["engine=inprocess"])
    site = open_run_site(chosen)
    folder = create(chosen, out)
    for theirs, ours in zip(secrets or (), folder.secrets, strict=False):
        ours.parent.mkdir(exist_ok=True)
        shutil.copy(theirs, ours)
    for _ in execute(folder, site, open_engine(folder, site)):
        pass
    return out


def kill_somewhere(plan: Path, out: Path, draws: random.Random) -> None:
    """Run until a round drawn at random is done, a moment drawn at random longer, and then not a
    step further."""
    process = begin("run", plan, "--out", out, "--quiet")
    line = draws.randrange(5)
    until(
        lambda: len(read_rounds(RunFolder(out))) >= line and (out / "partition.json").exists(),
        process,
    )
    time.sleep(draws.uniform(0, 0.6))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("text", [DIGITS, MEMORY], ids=["plain", "memory"])
def test_a_run_killed_at_a_random_moment(tmp_path: Path, text: str) -> None:
    plan = write(tmp_path / "plan.toml", text)
    kill_somewhere(plan, tmp_path / "killed", random.Random(1))
    finish("run", "--resume", tmp_path / "killed")
    assert_same_end(tmp_path / "killed", undisturbed(plan, tmp_path / "undisturbed"))
    assert json.loads((tmp_path / "killed" / "summary.json").read_text())["rounds"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["client_dp", "local_dp"])
def test_a_private_run_killed_at_a_random_moment(tmp_path: Path, stage: str) -> None:
    """Its noise is that of its secret, so that an undisturbed run with the same one ends in the
    same bits."""
    plan = write(tmp_path / "plan.toml", PRIVATE.replace("STAGE", stage))
    killed = RunFolder(tmp_path / "killed")
    kill_somewhere(plan, killed.path, random.Random(3))
    finish("run", "--resume", killed.path)
    assert_same_end(killed.path, undisturbed(plan, tmp_path / "undisturbed", killed.secrets))
    ours, theirs = (
        read_rounds(RunFolder(tmp_path / name))[-1] for name in ("killed", "undisturbed")
    )
    assert ours["privacy"] == theirs["privacy"] and ours["privacy"]["epsilon"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("text", [DIGITS, MEMORY], ids=["plain", "memory"])
def test_a_run_killed_at_many_random_moments(tmp_path: Path, text: str) -> None:
    plan = write(tmp_path / "plan.toml", text)
    wanted = undisturbed(plan, tmp_path / "undisturbed")
    for seed in range(2, 12):
        kill_somewhere(plan, tmp_path / f"killed{seed}", random.Random(seed))
        finish("run", "--resume", tmp_path / f"killed{seed}")
        assert_same_end(tmp_path / f"killed{seed}", wanted)


def file_events(folder: Path, chosen: str) -> str:
    script = f"import crashes; crashes.kill_at_file_events({str(folder)!r}, {chosen!r})"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_run_killed_before_some_file_events(tmp_path: Path) -> None:
    assert file_events(tmp_path, "6").startswith("6 of ")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_killed_before_every_file_event(tmp_path: Path) -> None:
    done, _, total = file_events(tmp_path, "all").partition(" of ")
    assert done == total
    assert int(total) > 40


@pytest.fixture
def at_the_gate(tmp_path: Path) -> Iterator["tuple[subprocess.Popen[str], Path, list[int]]"]:
    """A run whose two worker processes are in the middle of a job; with their process numbers."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("processes are looked up in /proc")
    (tmp_path / "closed").touch()
    gate = f'engine = "processes"\nstages = [{{name = "crashes:Gate", folder = "{tmp_path}"}}]\n'
    plan = write(tmp_path / "plan.toml", gate, BLOBS)
    process = begin("run", plan, "--out", tmp_path / "run", "--workers", "2")
    until((tmp_path / "reached").exists, process)
    yield process, tmp_path, descendants(process.pid)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_parent(
    at_the_gate: "tuple[subprocess.Popen[str], Path, list[int]]",
) -> None:
    process, folder, workers = at_the_gate
    assert len(alive(workers)) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until(lambda: not alive(workers), seconds=15)
    assert (folder / "closed").exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_says_how_to_go_on(
    at_the_gate: "tuple[subprocess.Popen[str], Path, list[int]]",
) -> None:
    process, folder, workers = at_the_gate
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    advice = f"go on with `fedpeft run --resume {folder / 'run'}`"
    assert stderr.splitlines() == [f"interrupted: what is done is kept; {advice}"]
    until(lambda: not alive(workers), seconds=15)
    (folder / "closed").unlink()
    finish("run", "--resume", folder / "run")
    assert_same_end(folder / "run", undisturbed(folder / "plan.toml", folder / "undisturbed"))


def test_ctrl_c_while_the_workers_are_being_loaded(tmp_path: Path) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("processes are looked up in /proc")
    plan = write(tmp_path / "plan.toml", 'engine = "processes"\n', BLOBS)
    process = begin("run", plan, "--out", tmp_path / "run", "--workers", "2", "--quiet")
    # A tracker of resources, and the process that loads the libraries for the workers.
    until(lambda: len(descendants(process.pid)) > 1, process)
    workers = descendants(process.pid)
    time.sleep(0.6)  # it imports torch meanwhile
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("interrupted")  # with how to go on, once the run has a folder
    until(lambda: not alive(workers), seconds=15)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The system's limit on the size of a file stands for the disk: rounds.jsonl is the first to
    grow beyond it."""
    plan, out = (
        write(tmp_path / "plan.toml", BLOBS.replace("rounds = 3", "rounds = 30")),
        tmp_path / "run",
    )
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "from fedpeft.cli.app import app; app(sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", limited, "run", str(plan), "--out", str(out), "--quiet"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"error: {out} cannot be written: File too large: what is done is kept; go on with "
        f"`fedpeft run --resume {out}`"
    ]
    done = len(read_rounds(RunFolder(out)))
    assert 3 < done < 30
    assert outcome(out)[2]["round"] == str(done)
    assert not (out / "rounds.jsonl").read_bytes().endswith(b"\n")  # the line that the limit cut
    finish("run", "--resume", out)
    assert_same_end(out, undisturbed(plan, tmp_path / "undisturbed"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inprocess", "processes"])
def test_a_disk_that_is_full_for_a_clients_memory_loses_nothing(
    tmp_path: Path, engine: str
) -> None:
    stage = f'{{name = "crashes:FullDisk", folder = "{tmp_path}", client = "c002", round = 1}}'
    text = f"stages = [{stage}]\n" + BLOBS.replace("cohort = 2", "cohort = 4")
    plan, out = write(tmp_path / "plan.toml", text), tmp_path / "run"
    (tmp_path / "full").touch()
    process = begin("run", plan, "--out", out, "--quiet", "--engine", engine)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.splitlines() == [
        f"error: {out} cannot be written: File too large: what is done is kept; go on with "
        f"`fedpeft run --resume {out}`"
    ]
    assert len(read_rounds(RunFolder(out))) == 1
    assert [path.name for path in Folder(out / "clients").place("c002").iterdir()] == [
        "0.safetensors"
    ]
    (tmp_path / "full").unlink()
    finish("run", "--resume", out)
    assert_same_end(out, undisturbed(plan, tmp_path / "undisturbed"))
    assert not any(
        client.get("failed")
        for line in read_rounds(RunFolder(out))
        for client in line["clients"].values()
    )


@pytest.mark.slow
def test_a_closed_pipe_is_no_full_disk(tmp_path: Path) -> None:
    """As `fedpeft run | head` leaves it."""
    plan, out = write(tmp_path / "plan.toml", BLOBS), tmp_path / "run"
    reading, writing = os.pipe()
    os.close(reading)
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-m", "fedpeft", "run", str(plan), "--out", str(out)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert ended.returncode == 1
    after = f"what is done is kept; go on with `fedpeft run --resume {out}`"
    assert ended.stderr.splitlines() == [f"stopped: a pipe is closed at its other end: {after}"]
    finish("run", "--resume", out)


@pytest.mark.slow
def test_processes_give_the_bits_of_a_single_one(tmp_path: Path) -> None:
    """What the comparisons above rest on."""
    plan = write(tmp_path / "plan.toml", BLOBS)
    wanted = undisturbed(plan, tmp_path / "undisturbed")
    chosen = read_plan(plan)
    site, folder = open_run_site(chosen), create(chosen, tmp_path / "run")
    engine = Processes(site, Folder(folder.clients), workers=2)
    try:
        for _ in execute(folder, site, engine):
            pass
    finally:
        engine.close()
    assert_same_end(folder.path, wanted)
