"""An owner's own terms: what a node answers is what its owner agreed to, whatever a server asks.

Beside the folders of single runs, and not in them, lies a list of what was answered. By it a node
answers each message of a round once: asked again in the same words it gives the same bytes, asked
in others it refuses. The list survives restarts and new runs, so that no server can have the same
examples under noise of many draws by beginning again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fedpeft.core.seeds import fold
from fedpeft.core.types import ClientId, Job
from fedpeft.errors import PlanError, RunError
from fedpeft.plan.calibration import learns, round_seed, select_cohort
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import plan_at

ANSWERS = "answers.jsonl"


class Refused(PlanError):
    """A server asked for more than the owner agreed to."""


@dataclass
class Answers:
    """What a node has answered, as a file of lines that only grows.

    Attributes:
      digests: by run and by round and phase, the digests of what was asked.
      runs: how many runs of the plan the owner agreed to.
    """

    path: Path
    digests: dict[tuple[str, int, str], list[str]] = field(default_factory=dict)
    runs: int = 1

    @classmethod
    def at(cls, folder: Path, plan: Plan) -> "Answers":
        """The list of a plan's answers in a node's folder.

        Raises:
          RunError: it is damaged. Without it nobody can tell what was answered.
        """
        answers = cls(folder / plan.fingerprint / ANSWERS)
        if answers.path.exists():
            lines = answers.path.read_bytes().split(b"\n")
            for line in lines[:-1]:  # a kill may have cut the last one short: nothing was sent then
                answers._take(line)
        return answers

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            if "again" in values:
                self.runs += 1
                return
            key = str(values["run"]), int(values["round"]), str(values["phase"])
            self.digests.setdefault(key, []).append(str(values["digest"]))
        except (ValueError, KeyError, TypeError):
            raise RunError(
                f"{self.path} is damaged, and without it nobody can tell what this node has "
                "answered: put it back, or agree anew to a plan of another name or seed"
            ) from None

    @property
    def tokens(self) -> list[str]:
        """The runs that were answered, in their order."""
        return list(dict.fromkeys(run for run, _, _ in self.digests))

    def agree_again(self) -> None:
        """The owner agrees to one more run of the plan."""
        if self.runs <= len(self.tokens):
            self._append({"again": True})
            self.runs += 1

    def record(self, token: str, job: Job, digest: str) -> None:
        """Note an answer; it is on the disk when this returns."""
        known = self.digests.setdefault((token, job.round, job.phase), [])
        if digest not in known:
            known.append(digest)
            self._append({"run": token, "round": job.round, "phase": job.phase, "digest": digest})

    def _append(self, values: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(self.path, flags, 0o600), "ab") as file:
            file.write(json.dumps(values).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Agreement:
    """What the owner of a node agreed to: the plan, and one run of it unless he says more.

    Attributes:
      clients: all clients of the federation, in the order of the plan.
    """

    plan: Plan
    client: ClientId
    clients: Sequence[ClientId]
    answers: Answers

    def check(self, token: str, job: Job) -> str:
        """The digest of a job that may be answered.

        Raises:
          Refused: the owner did not agree to it.
        """
        self._check_run(token)
        self._check_round(job)
        digest = digest_of(job)
        known = self.answers.digests.get((token, job.round, job.phase), [])
        most = self._times(job.phase)
        if digest not in known and len(known) >= most:
            raise Refused(
                f"{job.phase!r} of round {job.round} was answered already, to a message in other "
                "words: each is answered once, or again in the same words"
            )
        return digest

    def _check_run(self, token: str) -> None:
        known = self.answers.tokens
        if token not in known and len(known) >= self.answers.runs:
            raise Refused(
                f"this node has answered {len(known)} run(s) of this plan, and its owner agreed to "
                f"{self.answers.runs}: start `fedpeft node` with --again to agree to one more"
            )

    def _check_round(self, job: Job) -> None:
        plan = self.plan
        if not 0 <= job.round < plan.rounds:
            raise Refused(f"asked for round {job.round}, and the plan has {plan.rounds} rounds")
        if job.seed != fold(round_seed(plan, job.round), "client", self.client):
            raise Refused(f"asked for round {job.round} with another seed than the plan's")
        if job.accepted is not None and not 0 <= job.accepted < job.round:
            raise Refused(
                f"asked in round {job.round} to go on from its memory of round {job.accepted}"
            )
        everyone = any(job.phase in phases for phases in plan.hooks("asks_everyone"))
        if everyone or learns(plan):  # whom a sampler that learns draws, only the server can tell
            return
        drawn = select_cohort(plan_at(plan, job.round), self.clients, job.round)
        if self.client not in drawn:
            raise Refused(
                f"asked to take part in round {job.round}, for which the plan draws others"
            )

    def _times(self, phase: str) -> int:
        """How often a client is asked in one round for this phase, by what the plan's parts say."""
        return max((times.get(phase, 1) for times in self.plan.hooks("asks_times")), default=1)


def digest_of(job: Job) -> str:
    """What tells a message from another one."""
    head = [job.run, job.round, job.client, job.phase, job.seed, job.accepted, job.step]
    text = json.dumps(head).encode()
    return blake2b(text + b"\n" + job.payload, digest_size=16).hexdigest()
