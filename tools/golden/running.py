"""Runs the plans with one tree of the library, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from signal import SIGKILL
from tarfile import open as open_tar
from typing import Any

from tools.golden.plans import GoldenPlan

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("child.py")
SECRETS = {"secret": b"the server's noise, for tests.  ", "clients/secret": b"noise of clients" * 2}
"""By file of a run's folder the 32 bytes that noise is drawn from, in the place of random ones."""
MERGED = 3
"""Contribution files of a merge."""


@dataclass(frozen=True)
class Outcome:
    """What became of a plan.

    Attributes:
      failed: the exit status and the last words of a command that failed; empty if all went well.
    """

    name: str
    folder: Path
    failed: str
    seconds: float


def unpack_commit(commit: str, at: Path) -> Path:
    """Write the library as it was at a commit below a folder; return where its packages lie.

    It is taken out of the repository as an archive: unlike a further worktree, it leaves no trace
    there, however this process ends.

    Raises:
      ValueError: there is no such commit.
    """
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", commit, "src"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise ValueError(
            f"the commit {commit} cannot be read: {done.stderr.decode().strip()}. Give --against "
            "a commit of this repository"
        )
    with open_tar(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(at, filter="data")
    return at / "src"


class Run:
    """A child process at work on all plans; outcomes come as it finishes them."""

    def __init__(self, plans: Sequence[GoldenPlan], version: int, source: Path, at: Path) -> None:
        self.at = at
        agreed = agreed_in(source)
        jobs = {plan.name: commands(plan, version, at / plan.name, agreed) for plan in plans}
        file = at / "jobs.json"
        file.write_text(json.dumps(jobs))
        own = {
            "PYTHONPATH": str(source),
            "FEDPEFT_CACHE": str(at / "cache"),  # features that the other tree computed may differ
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD), str(file), str(source)],
            cwd=at,
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a group, so that `stop` reaches the commands too
        )

    def outcomes(self) -> Iterator[Outcome]:
        """What became of each plan.

        Raises:
          RuntimeError: the child process failed.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield self._outcome(json.loads(line))
        if code := self.process.wait():
            raise RuntimeError(f"the process that runs the plans ended with exit status {code}")

    def _outcome(self, told: dict[str, Any]) -> Outcome:
        failed = f"exit status {told['code']}: {told['said']}" if told["code"] else ""
        return Outcome(told["name"], self.at / told["name"], failed, told["seconds"])

    def stop(self) -> None:
        """End the child process and its commands if it still works."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, SIGKILL)
        self.process.communicate()


def agreed_in(source: Path) -> list[str]:
    """How one who contributes agrees without being asked, in a tree; earlier ones asked nobody."""
    contribute = source / "fedpeft" / "cli" / "contribute.py"
    return ["--yes"] if contribute.exists() and "consent" in contribute.read_text() else []


def commands(
    plan: GoldenPlan, version: int, folder: Path, agreed: Sequence[str] = ()
) -> list[list[str]]:
    """The command lines that leave the plan's run in a folder, and what must lie there before."""
    text = plan.texts[version]
    if plan.steps == "merge":
        file = folder.with_suffix(".toml")
        file.write_text(text)
        return _merging(file, folder, agreed)
    # A new run takes no folder with something in it. So this is one that was stopped before its
    # first round, with its secrets drawn.
    for name, secret in SECRETS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(secret)
        (folder / name).chmod(0o600)
    (folder / "plan.toml").write_text(text)
    return [["run", "--resume", str(folder), "--quiet"]]


def _merging(plan: Path, folder: Path, agreed: Sequence[str]) -> list[list[str]]:
    study = str(folder.with_suffix(".study"))
    files = [str(folder.with_suffix(f".{number}.safetensors")) for number in range(MERGED)]
    return [
        ["invite", str(plan), "-o", study],
        *(
            ["contribute", study, "--client", str(number), "-o", file, *agreed]
            for number, file in enumerate(files)
        ),
        ["merge", study, *files, "-o", str(folder)],
    ]
