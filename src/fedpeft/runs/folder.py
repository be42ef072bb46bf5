"""A run's folder: which file holds what, and how each comes to be whole.

    plan.toml      the whole plan, defaults included; written first, it makes the folder a run's
    partition.json who holds what
    rounds.jsonl   a line for each round
    checkpoint/    the server's state after the last round, and after the best one where the plan
                   selects it
    clients/       the clients' own memory, where the plan's parts keep one
    secret, clients/secret
                   in private plans what noise is drawn from: for their owners only, never to be
                   passed on
    summary.json   written at the end; a run that has it is finished
    owners.json    what `fedpeft evaluate --at-owners` found
    audit.json     what `fedpeft audit --canaries` measured of its epsilon
    arrivals.json  what `fedpeft merge --evaluate` measured after each file
    pictures.json  what a text-to-image model draws, before its tuning and after
    curves.json    how a model goes on from held-out lines, before its tuning and after

A round's line is written before its checkpoint: a kill between the two leaves one line too many,
never one too few, and a resume takes it away.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fedpeft.errors import FedpeftError, RunError, say_count
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.registry import REGISTERED, Code, describe
from fedpeft.storage.files import SECRET, check_writable, lock_file, open_regular, write_atomically


@dataclass(frozen=True)
class RunFolder:
    """Paths below a run's folder."""

    path: Path

    @property
    def plan(self) -> Path:
        return self.path / "plan.toml"

    @property
    def partition(self) -> Path:
        return self.path / "partition.json"

    @property
    def rounds(self) -> Path:
        return self.path / "rounds.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint" / "state.safetensors"

    @property
    def best(self) -> Path:
        return self.path / "checkpoint" / "best.safetensors"

    @property
    def start(self) -> Path:
        return self.path / "checkpoint" / "start.safetensors"

    @property
    def clients(self) -> Path:
        return self.path / "clients"

    @property
    def secrets(self) -> tuple[Path, Path]:
        """The server's and the clients'."""
        return self.path / SECRET, self.clients / SECRET

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples.json"

    @property
    def owners(self) -> Path:
        return self.path / "owners.json"

    @property
    def audit(self) -> Path:
        return self.path / "audit.json"

    @property
    def arrivals(self) -> Path:
        return self.path / "arrivals.json"

    @property
    def contributions(self) -> Path:
        """The files that a merge was made of."""
        return self.path / "contributions"

    @property
    def benchmarks(self) -> Path:
        return self.path / "benchmarks.json"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures.json"

    @property
    def curves(self) -> Path:
        return self.path / "curves.json"


def vacant(path: Path) -> None:
    """Make sure that a new run may be put at `path`.

    Raises:
      RunError: something is there, or nothing can be put there.
    """
    if (path / "plan.toml").exists():
        raise RunError(
            f"{path} already holds a run: continue it with `fedpeft run --resume {path}`, or "
            "change --out"
        )
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file: give --out a new folder")
    # A kill in the first write leaves this file, which is no run yet.
    if path.is_dir() and any(inside.name != ".plan.toml.part" for inside in path.iterdir()):
        raise RunError(f"{path} is not empty: give --out a new or empty folder")
    check_writable(path)


def create(plan: Plan, path: Path | None = None) -> RunFolder:
    """A new run's folder at `path`, or at the next free name below `runs`.

    Raises:
      RunError: something is there, or the folder cannot be made.
    """
    try:
        if path is None:
            path = _next_free(Path("runs"), plan)
        else:
            vacant(path)
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"the run's folder cannot be made: {error.filename}: {error.strerror}"
        ) from None
    folder = RunFolder(path)
    try:
        write_atomically(folder.plan, plan.toml().encode())
    except OSError:
        with suppress(OSError):  # it is empty: without a plan it is no run's
            path.rmdir()
        raise
    return folder


@contextmanager
def kept_if_begun(folder: RunFolder) -> Iterator[None]:
    """A new run that is refused before its first round leaves no folder behind: there is nothing to
    go on with."""
    try:
        yield
    except FedpeftError:
        if not folder.rounds.exists() and not folder.checkpoint.exists():
            shutil.rmtree(folder.path, ignore_errors=True)
        raise


def _next_free(root: Path, plan: Plan) -> Path:
    words = (plan.name, describe("method", plan.method)["name"], str(plan.seed))
    stem = "-".join(re.sub(r"[^\w.]+", "-", word) for word in words)
    root.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        try:
            # To make a folder is to take its name: of two commands at once, each gets one of its
            # own.
            (root / f"{stem}-{number:03d}").mkdir()
        except FileExistsError:
            continue
        return root / f"{stem}-{number:03d}"
    raise AssertionError("there are more numbers than folders")


def reopen(path: Path, code: Code = REGISTERED) -> tuple[RunFolder, Plan]:
    """A run that was begun, and its plan.

    Args:
      code: which modules the plan may name; none by default, as a folder may come from anyone.

    Raises:
      RunError: no run is there.
      PlanError: its plan cannot be read, or names a module that `code` does not allow.
    """
    if not (path / "plan.toml").is_file():
        reason = "it has no plan.toml" if path.is_dir() else "there is no such folder"
        raise RunError(f"{path} is not a run's folder: {reason}")
    return RunFolder(path), read_plan(path / "plan.toml", code=code)


@contextmanager
def lock_run(folder: RunFolder) -> Iterator[None]:
    """Nobody else works on this run meanwhile. The system lets go of the lock when the process
    ends, however it ends.

    Raises:
      RunError: another process is at it.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows; there the user must see to it
        yield
        return
    with lock_file(folder.path / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another process is working on {folder.path}: wait for it, or stop it"
            ) from None
        # A merge puts a new folder in the place of the old one: what is locked may be in the folder
        # that is gone.
        held, there = os.fstat(file.fileno()), (folder.path / ".lock").stat()
        if (held.st_dev, held.st_ino) != (there.st_dev, there.st_ino):
            raise RunError(f"{folder.path} was replaced just now: try again")
        yield


def append_round(folder: RunFolder, values: Mapping[str, Any]) -> None:
    """One more line of rounds.jsonl, on the disk when this returns."""
    with folder.rounds.open("ab") as file:
        file.write(json.dumps(values, allow_nan=False, separators=(",", ":")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_rounds(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl; one that a kill cut short is not there.

    Raises:
      RunError: a line is damaged or out of order.
    """
    text = folder.rounds.read_bytes() if folder.rounds.exists() else b""
    found: list[dict[str, Any]] = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict) or values.get("round") != number:
            raise RunError(f"{folder.rounds}: line {number} is damaged or out of order")
        found.append(values)
    return found


def keep_rounds(folder: RunFolder, done: int) -> None:
    """Take away what was written of rounds after `done`.

    Raises:
      RunError: rounds before it are missing, or more than one came after it.
    """
    found = len(read_rounds(folder))
    if not done <= found <= done + 1:
        raise RunError(
            f"{folder.path} cannot be continued: {folder.rounds.name} tells of "
            f"{say_count(found, 'rounds')}, "
            f"{'the checkpoint of ' + str(done) if done else 'and there is no checkpoint'}"
        )
    if folder.rounds.exists():
        lines = folder.rounds.read_bytes().split(b"\n")[:done]
        write_atomically(folder.rounds, b"".join(line + b"\n" for line in lines))


def write_json(path: Path, values: Mapping[str, Any], indent: int | None = 2) -> None:
    """A JSON file, whole or not at all."""
    write_atomically(path, json.dumps(values, allow_nan=False, indent=indent).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file's values; None if it does not exist.

    Raises:
      RunError: it is damaged.
    """
    try:
        with open_regular(path) as file:
            values = json.loads(file.read())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise RunError(f"{path} is damaged: it holds no table")
    return values
