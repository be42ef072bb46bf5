"""Handing a run to a SuperLink, and seeing what becomes of it. Its folder is on a disk that both
see."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from shutil import disk_usage, which
from socket import gethostname
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

from fedpeft.core.units import now
from fedpeft.deploy.bundle import write_app
from fedpeft.errors import RunError, explain_install
from fedpeft.plan.plan import Plan
from fedpeft.runs.folder import RunFolder, read_json, read_rounds, write_json
from fedpeft.runs.record import RoundRecord
from fedpeft.runs.summary import UNFINISHED

ROOM = 1 << 16  # bytes without which nothing can be written
POLL = 0.3  # seconds between two looks at the folder
# Seconds between two questions to the SuperLink, each a process with two seconds of work.
ASK = 30.0
# Seconds after which a command of Flower's is taken to hang; a busy machine needs ten of them.
LONGEST = 120.0
WAITS = 3  # answers that the run is pending until that is told
PENDING = (
    "the SuperLink has not begun the run for %g s: others may come first, "
    "or its process that begins runs (flower-superexec) has ended; then start the SuperLink again. "
    "`%s` takes the run back"
)


def require_flower() -> None:
    """Raises RunError where Flower is not installed."""
    if find_spec("flwr") is None:
        raise RunError(f'the engine "flower" needs Flower: {explain_install("flower")}')


def submit(folder: RunFolder, plan: Plan, federation: str) -> None:
    """Hand a run to the SuperLink that Flower's config.toml calls `federation`.

    Raises:
      RunError: Flower does not take it.
    """
    # What an earlier attempt left would end this one at once.
    for mark in (end_file(folder), _process(folder), log_file(folder)):
        mark.unlink(missing_ok=True)
    with TemporaryDirectory() as inside:
        app = Path(inside) / "app"
        write_app(plan, app)
        told = _flwr(
            "run", app, federation, "--run-config", f"run={json.dumps(str(folder.path.resolve()))}"
        )
    write_json(_submission(folder), {"federation": federation, "run": told.get("run-id")})


def here(folder: RunFolder) -> None:
    """Leave the number of this process, which is the server's part, for those on this machine who
    follow the run."""
    write_json(_process(folder), {"host": gethostname(), "process": os.getpid()})


def was_killed(folder: RunFolder) -> bool:
    """Whether the server's part was begun on this machine and is no more: Flower takes a minute to
    notice."""
    told = read_json(_process(folder))
    if told is None or told["host"] != gethostname() or not Path("/proc/self/stat").exists():
        return False
    try:
        # The command's name stands in brackets and may hold some itself, so the last one counts; Z
        # is a zombie and X is dead.
        state = Path(f"/proc/{told['process']}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return True
    return state in "ZX"


def federation_of(folder: RunFolder) -> str | None:
    """Where the run was submitted the last time."""
    return (read_json(_submission(folder)) or {}).get("federation")


def status(folder: RunFolder) -> str:
    """What the SuperLink says of the run: "pending", "starting", "running" or "finished:..."; empty
    if it cannot."""
    told = read_json(_submission(folder)) or {}
    try:
        answer = _flwr("list", str(told.get("federation")), "--run-id", str(told.get("run")))
    except RunError:
        return ""
    runs = answer.get("runs") or [{}]
    return str(runs[0].get("status", ""))


def count_online(federation: str) -> int:
    """How many nodes the SuperLink that Flower's config.toml calls `federation` knows to be there.

    Raises:
      RunError: it does not answer.
    """
    nodes = _flwr("supernode", "list", federation).get("nodes", [])
    return sum(node.get("status") == "online" for node in nodes)


def follow(folder: RunFolder, tell: Callable[[str], None]) -> Iterator[RoundRecord]:
    """The rounds that come from now on, until the run is finished.

    Args:
      tell: told each line that the server's part says, such as for whom it waits.

    Raises:
      RunError: the server's part has ended before.
    """
    done, asked, waits, heard = len(read_rounds(folder)), monotonic(), 0, 0
    while True:
        heard += _tell_new(folder, heard, tell)
        # Before the rounds are read, so that none is missed.
        over = _is_over(folder)
        if not over and monotonic() - asked > ASK:
            state, asked = status(folder), monotonic()
            over, waits = state.startswith("finished"), waits + (state == "pending")
            if state == "pending" and waits == WAITS:
                getLogger("fedpeft").warning(PENDING, WAITS * ASK, how_to_stop(folder))
        for values in read_rounds(folder)[done:]:
            done += 1
            yield RoundRecord(**values)
        if _is_whole(folder, over):
            return
        if over:
            raise RunError(_why(folder))
        sleep(POLL)


def _tell_new(folder: RunFolder, heard: int, tell: Callable[[str], None]) -> int:
    """Tell what the server's part said after the first `heard` lines; how many lines it was."""
    if not log_file(folder).exists():
        return 0
    *lines, _ = log_file(folder).read_text(encoding="utf-8").split("\n")  # the last is not whole
    for line in lines[heard:]:
        tell(line)
    return len(lines[heard:])


def _is_over(folder: RunFolder) -> bool:
    """Whether the server's part left word that it ended, or was seen to be dead."""
    return was_killed(folder) or end_file(folder).exists()


def _is_whole(folder: RunFolder, over: bool) -> bool:
    """Whether the summary is there, with the comparison that it gets last; of a part that ended, as
    it was left."""
    summary = read_json(folder.summary)
    return summary is not None and (over or summary.get("full_not_measured") != UNFINISHED)


def _why(folder: RunFolder) -> str:
    told = read_json(_submission(folder)) or {}
    words = end_file(folder).read_text() if end_file(folder).exists() else "it was killed"
    if disk_usage(folder.path).free < ROOM:  # none was left to say it there
        words = f"the disk of {folder.path} has no room left"
    return (
        f"the server's part ended: {words}. `flwr log {told.get('run')} {told.get('federation')} "
        "--show` tells more; "
        f"what is done is kept; go on with `fedpeft run --resume {folder.path}`"
    )


def end_file(folder: RunFolder) -> Path:
    """Where the server's part says why it could not go on."""
    return folder.path / "ended"


def log_file(folder: RunFolder) -> Path:
    """Where the server's part says what becomes of the run, for those who follow it."""
    return folder.path / "server.log"


def log_for_followers(folder: RunFolder, words: str) -> None:
    """Add a line, with the time, to what they hear."""
    with log_file(folder).open("a", encoding="utf-8") as file:
        file.write(f"{now()} {words}\n")


def how_to_stop(folder: RunFolder) -> str:
    """The command that ends the run at the SuperLink."""
    told = read_json(_submission(folder)) or {}
    return f"flwr stop {told.get('run')} {told.get('federation')}"


def _process(folder: RunFolder) -> Path:
    return folder.path / "server.json"


def _submission(folder: RunFolder) -> Path:
    return folder.path / "federation.json"


def _flwr(*words: str | Path) -> dict[str, Any]:
    """What Flower's command answers.

    Raises:
      RunError: it is not there, or does not answer.
    """
    beside = Path(sys.executable).with_name("flwr")
    command = str(beside) if beside.exists() else which("flwr")
    if command is None:
        raise RunError(f"Flower's command `flwr` is not there: {explain_install('flower')}")
    try:
        made = subprocess.run(
            [command, *map(str, words), "--format", "json"],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired:
        raise RunError(
            f"`flwr {words[0]}` gave no answer for {LONGEST:g} s: see whether the SuperLink is "
            "there, and try again"
        ) from None
    try:
        answer = json.loads(made.stdout)
    except ValueError:
        answer = None
    if made.returncode or not isinstance(answer, dict) or answer.get("success") is False:
        said = (
            answer.get("error-message") if isinstance(answer, dict) else made.stderr or made.stdout
        )
        raise RunError(f"`flwr {words[0]}` failed: {' '.join(str(said).split())}")
    return answer
