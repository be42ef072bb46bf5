"""The other end of a racer: a process that is told when to go."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from select import select
from typing import Any

from safetensors.torch import load_file

from benchmarks.racing.course import START
from benchmarks.racing.venvs import ROOT, processors, python_of

MEGABYTES = (
    "proportional memory (PSS), in which what processes share counts once in all"
    if sys.platform == "linux"
    else "resident memory, in which what processes share counts once for each"
)
"""What the column MB of a race is; records that do not say it have sums of resident memory."""
LONG = 240.0
"""Seconds after which a racer is given up."""
ONE_THREAD = ("flower", "processes", "processes-bf16", "auto")
"""Racers that may have a process for each processor."""
CHOSE = "chose "
"""What a line of the log begins with that tells what a racer chose."""


class Racer:
    """A process in the middle of a race.

    Attributes:
      first: seconds from its start to the end of its first round.
      turns: for each turn the seconds of its rounds.
      memory: the most bytes in memory at the end of a turn, all its processes together.
      result: the file with its parameters at the end.

    Raises:
      RuntimeError: it ended; what it said last is in the message.
    """

    def __init__(self, folder: Path, name: str, arguments: tuple[str, ...]) -> None:
        racer, *variant = arguments
        python = python_of(racer)
        self.name = name
        self.result = folder / f"{name}.safetensors"
        self.log = folder / f"{name}.log"
        threads = 1 if {racer, *variant} & set(ONE_THREAD) else processors()
        began = time.perf_counter()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.racing", racer, str(folder), str(self.result), *variant],
                cwd=ROOT,
                env=environment(folder, threads, ours=racer == "ours"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                start_new_session=True,
            )
        self.turns: list[list[float]] = []
        self.memory = 0
        self.go(1)
        self.first = time.perf_counter() - began
        self.turns.clear()

    @property
    def chose(self) -> str:
        """What it chose, and why; empty where it had nothing to choose."""
        lines = self.log.read_text().splitlines()
        return next((line.removeprefix(CHOSE) for line in lines if line.startswith(CHOSE)), "")

    def go(self, rounds: int) -> None:
        self.turns.append(self._asked(f"go {rounds}"))
        self.memory = max(self.memory, resident(self.process.pid))

    def end(self) -> None:
        """Let it write down its parameters and finish."""
        self._asked("end")
        self.process.wait(timeout=120)

    def _asked(self, command: str) -> Any:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(command + "\n")
            answered = select([self.process.stdout], [], [], LONG)[0]  # an answer is one line
            return json.loads(self.process.stdout.readline() if answered else "")
        except (OSError, ValueError):
            last = self.log.read_text()[-3000:]
            self.stop()
            raise RuntimeError(
                f"{self.name} ended in the middle of the race, or was silent:\n{last}"
            ) from None

    def stop(self) -> None:
        """End it and the processes that it started, whatever it is at."""
        import psutil

        if self.process.poll() is None:
            parent = psutil.Process(self.process.pid)
            for process in [*parent.children(recursive=True), parent]:
                process.kill()
        self.process.communicate()


def environment(folder: Path, threads: int, ours: bool) -> dict[str, str]:
    """What a racer is started with: its threads, no network, and this project's modules alone."""
    # another racer's interpreter must not find the packages of this one
    own = {name: x for name, x in os.environ.items() if name != "PYTHONPATH" or ours}
    path = os.pathsep.join(filter(None, [str(ROOT), own.get("PYTHONPATH", "")]))
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(folder / "flwr"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return {**own, **quiet, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def resident(pid: int) -> int:
    """Bytes in memory of a process and all that it started, as `MEGABYTES` says."""
    import psutil

    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended meanwhile
            continue
    return total


def difference(ours: Path, theirs: Path, folder: Path) -> float:
    """The largest difference of two racers' parameters, over the largest change of one of ours."""
    start, mine, other = load_file(folder / START), load_file(ours), load_file(theirs)
    if mine.keys() != other.keys():
        raise RuntimeError(
            f"{theirs.stem} trained other tensors: {sorted(mine.keys() ^ other.keys())}"
        )
    moved = max(float((x - start[name]).abs().max()) for name, x in mine.items())
    return max(float((x - other[name]).abs().max()) for name, x in mine.items()) / moved
