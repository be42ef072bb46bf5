"""What a node has answered. It survives restarts and new runs, so that no server can have the same
examples under noise of many draws by beginning again.

    answers.jsonl         a line for each message: the run, the round, the phase, digests of
                          question and answer, the answer's bytes and when it was given
    replies/RUN.DIGEST    the answers of the last round, by what was asked: asked again in the same
                          words, the node sends the same bytes and computes nothing

Both lie in the node's folder under the plan's fingerprint, beside the folders of single runs.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

from fedpeft.core.types import Job
from fedpeft.core.units import now
from fedpeft.deploy.refusals import Refusals
from fedpeft.errors import RunError
from fedpeft.plan.plan import Plan
from fedpeft.storage.files import disk_errors, private_folder, write_atomically

ANSWERS, REPLIES = "answers.jsonl", "replies"
Key: TypeAlias = tuple[str, int, str]
"""A run, a round and a phase."""


@dataclass
class Answers:
    """A file of lines that only grows, and the answers of one round.

    Attributes:
      digests: by run, round and phase, what was asked and what was answered, as digests; the
        answer's is empty where none was given.
      runs: how many runs of the plan the owner agreed to.
    """

    path: Path
    digests: dict[Key, dict[str, str]] = field(default_factory=dict)
    runs: int = 1

    @classmethod
    def at(cls, folder: Path, plan: Plan) -> "Answers":
        """The list of a plan's answers in a node's folder.

        Raises:
          RunError: it is damaged. Without it nobody can tell what was answered.
        """
        answers = cls(folder / plan.fingerprint / ANSWERS)
        if answers.path.exists():
            content = answers.path.read_bytes()
            *lines, rest = content.split(b"\n")
            for line in lines:
                answers._take(line)
            if rest:  # a kill cut the last one short: nothing was sent then
                os.truncate(answers.path, len(content) - len(rest))
        return answers

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            if "again" in values:
                self.runs += 1
                return
            key = str(values["run"]), int(values["round"]), str(values["phase"])
            self._put(key, str(values["digest"]), str(values.get("reply", "")))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RunError(
                f"{self.path} is damaged, and without it nobody can tell what this node has "
                "answered: put it back, or agree to a plan of another name or seed"
            ) from None

    def _put(self, key: Key, digest: str, reply: str) -> None:
        self.digests.setdefault(key, {})[digest] = reply

    @property
    def refusals(self) -> Refusals:
        """What was not answered."""
        return Refusals(self.path.parent)

    @property
    def tokens(self) -> list[str]:
        """The runs that were answered, in their order."""
        return list(dict.fromkeys(run for run, _, _ in self.digests))

    def asked(self, token: str, job: Job) -> Mapping[str, str]:
        """What was asked in the run for the job's phase and round, with what was answered."""
        return self.digests.get(_key(token, job), {})

    def rounds(self, token: str, apart: Collection[str] = ()) -> set[int]:
        """The rounds of a run in which anything was answered, without those of some phases."""
        return {round for run, round, phase in self.digests if run == token and phase not in apart}

    def agree_again(self) -> None:
        """The owner agrees to one more run of the plan."""
        if self.runs <= len(self.tokens):
            self._append({"again": True})
            self.runs += 1

    def begin(self, token: str, job: Job, digest: str) -> None:
        """Note what is being answered; it is on the disk when this returns. It counts as answered
        from now on: that training fails tells something of the examples too."""
        if digest not in self.asked(token, job):
            self._note(token, job, digest)

    def reply(self, token: str, digest: str) -> bytes | None:
        """What was answered to it in a run, as long as it is kept."""
        path = self._reply(token, digest)
        with disk_errors():
            return path.read_bytes() if path.exists() else None

    def give(self, token: str, job: Job, digest: str, payload: bytes) -> bool:
        """Note an answer before it is sent, and drop those of other rounds.

        Returns:
          Whether it may be sent: False where other bytes were answered to the same words before.
        """
        reply = blake2b(payload, digest_size=16).hexdigest()
        before = self.asked(token, job).get(digest, "")
        if before and before != reply:
            return False
        # The answer is on the disk before the note of it: with a note alone it would have to be
        # computed again, and might come out in other bytes.
        self._keep(token, job, digest, payload)
        if not before:
            self._note(token, job, digest, {"reply": reply, "bytes": len(payload), "at": now()})
        return True

    def _keep(self, token: str, job: Job, digest: str, payload: bytes) -> None:
        path = self._reply(token, digest)
        if path.exists():
            return
        with disk_errors():
            private_folder(self.path.parent)
            private_folder(path.parent)
            write_atomically(path, payload, private=True)
            same = {
                self._reply(run, asked)
                for (run, round, _), known in self.digests.items()
                if (run, round) == (token, job.round)
                for asked in known
            }
            for old in set(path.parent.iterdir()) - same - {path}:
                old.unlink(missing_ok=True)

    def _reply(self, token: str, digest: str) -> Path:
        return self.path.parent / REPLIES / f"{token}.{digest}"

    def _note(
        self, token: str, job: Job, digest: str, answer: Mapping[str, Any] | None = None
    ) -> None:
        """Write a line; `answer` has the digest of what was answered, and what its owner reads."""
        run, round, phase = key = _key(token, job)
        given = answer or {}
        self._append({"run": run, "round": round, "phase": phase, "digest": digest, **given})
        self._put(key, digest, given.get("reply", ""))

    def _append(self, values: Mapping[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with disk_errors():
            private_folder(self.path.parent)
            with os.fdopen(os.open(self.path, flags, 0o600), "ab") as file:
                file.write(json.dumps(values).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())


def _key(token: str, job: Job) -> Key:
    return token, job.round, job.phase
