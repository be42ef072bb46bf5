"""What the tests of killed runs need: a plan, the processes of this machine, and a run that dies at
a chosen moment."""

import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedpeft.core.tensors import equal
from fedpeft.core.types import Cohort, Context, Event, Tensors, Update
from fedpeft.runs.folder import RunFolder, read_rounds
from fedpeft.storage.files import load_tensors

BLOBS = """
name = "blobs"
task = "parts:Points"
data = "parts:Blobs"
method = "full"
rounds = 3
cohort = 2
partition = {name = "dirichlet", clients = 4, alpha = 1.0}
local = {batch_size = 8, lr = 0.1, correction = "scaffold"}
"""


@dataclass(frozen=True)
class Gate:
    """A stage at which clients wait while the file `closed` is in the folder; `reached` says that
    one is there.

    With a name, only this client waits.
    """

    folder: str
    client: str = ""

    @property
    def remembers(self) -> bool:
        return False

    @property
    def event(self) -> Event | None:
        return None

    def on_client(
        self, update: Update, memory: Tensors, context: Context
    ) -> tuple[Update, Tensors]:
        while self.client in ("", context.client) and (Path(self.folder) / "closed").exists():
            (Path(self.folder) / "reached").touch()
            time.sleep(0.02)
        return update, {}

    def on_arrival(self, update: Update) -> Update:
        return update

    def on_server(self, update: Update, cohort: Cohort) -> Update:
        return update


@dataclass(frozen=True)
class FullDisk:
    """A stage with which `client` finds the disk full in round `round`, while the file `full` is in
    the folder.

    The system's limit on the size of a file stands for the disk, in the process that writes the
    client's memory.
    """

    folder: str
    client: str
    round: int

    @property
    def remembers(self) -> bool:
        return False

    @property
    def event(self) -> Event | None:
        return None

    def on_client(
        self, update: Update, memory: Tensors, context: Context
    ) -> tuple[Update, Tensors]:
        full = (Path(self.folder) / "full").exists()
        if full and (context.client, context.round) == (self.client, self.round):
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )
        return update, {}

    def on_arrival(self, update: Update) -> Update:
        return update

    def on_server(self, update: Update, cohort: Cohort) -> Update:
        return update


@dataclass(frozen=True)
class Killed:
    """A stage in which the process of `client` is killed in round `round`, once: the file `killed`
    says so."""

    folder: str
    client: str
    round: int

    @property
    def remembers(self) -> bool:
        return False

    @property
    def event(self) -> Event | None:
        return None

    def on_client(
        self, update: Update, memory: Tensors, context: Context
    ) -> tuple[Update, Tensors]:
        killed = Path(self.folder) / "killed"
        if (context.client, context.round) == (self.client, self.round) and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return update, {}

    def on_arrival(self, update: Update) -> Update:
        return update

    def on_server(self, update: Update, cohort: Cohort) -> Update:
        return update


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(texts))
    return path


def outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, str]]:
    """The tensors of the last checkpoint, the rounds without their seconds, and who was counted
    when."""
    tensors, metadata = load_tensors(RunFolder(folder).checkpoint)
    lines = [
        {key: x for key, x in line.items() if key != "seconds"}
        for line in read_rounds(RunFolder(folder))
    ]
    return tensors, lines, {key: metadata[key] for key in ("round", "accepted", "order")}


def assert_same_end(ours: Path, theirs: Path) -> None:
    (tensors, *rest), (others, *other_rest) = outcome(ours), outcome(theirs)
    assert equal(tensors, others)
    assert rest == other_rest


def children(parent: int) -> list[int]:
    return [pid for pid, (_, above) in processes().items() if above == parent]


def descendants(ancestor: int) -> list[int]:
    """Children, and theirs: worker processes are forks of one that the run began."""
    found, known = [ancestor], processes()
    for one in found:  # it grows meanwhile
        found += [pid for pid, (_, above) in known.items() if above == one]
    return found[1:]


def processes() -> dict[int, tuple[str, int]]:
    """By process number the state and the parent's number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = path.read_text().rpartition(") ")
        except OSError:
            continue
        found[int(path.parent.name)] = (rest.split()[0], int(rest.split()[1]))
    return found


def alive(pids: list[int]) -> list[int]:
    now = processes()
    return [pid for pid in pids if pid in now and now[pid][0] != "Z"]


def kill_at_file_events(folder: str, chosen: str) -> None:
    """Kill a run just before it opens for writing, renames or removes a file; then resume it, and
    compare.

    This is run in a process of its own, which loads everything once and then forks for each kill.
    `chosen` is "all", or how many of the moments are drawn.
    """
    import fedpeft.engines.inprocess
    import fedpeft.runs.summary  # noqa: F401  # before the forks, so that each need not do it

    plan = write(Path(folder) / "plan.toml", BLOBS)
    wanted = Path(folder) / "undisturbed"
    assert in_fork(lambda: command("run", plan, "--out", wanted, "--quiet")) == 0
    events = Path(folder) / "events"
    in_fork(lambda: killed_before(None, Path(folder) / "counted", plan, events))
    total = int(events.read_text())
    moments = (
        list(range(total))
        if chosen == "all"
        else sorted(random.Random(5).sample(range(total), int(chosen)))
    )
    for moment in moments:
        out = Path(folder) / f"killed{moment}"
        status = in_fork(partial(killed_before, moment, out, plan, events))
        assert os.WTERMSIG(status) == signal.SIGKILL
        again: list[str | Path] = (
            ["--resume", out] if (out / "plan.toml").exists() else [plan, "--out", out]
        )
        assert in_fork(lambda: command("run", *again, "--quiet")) == 0, moment  # noqa: B023
        assert_same_end(out, wanted)
        shutil.rmtree(out)
    sys.stdout.write(f"{len(moments)} of {total}\n")


def command(*arguments: str | Path) -> None:
    from fedpeft.cli.app import app

    app([str(argument) for argument in arguments])


def in_fork(work: Callable[[], None]) -> int:
    """Do the work in a copy of this process, and give its status as `os.waitpid` does."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        work()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def killed_before(moment: int | None, out: Path, plan: Path, events: Path) -> None:
    """Run a plan and die before its file event number `moment`; without one, write how many there
    are."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if not (writes or event in ("os.rename", "os.remove", "os.mkdir")) or str(out) not in str(
            arguments[0]
        ):
            return
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    sys.addaudithook(hook)
    try:
        command("run", plan, "--out", out, "--quiet")
    finally:
        counted, out = seen, Path("nowhere")
        events.write_text(str(counted))
