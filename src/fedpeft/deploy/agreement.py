"""An owner's own terms: what a node answers is what its owner agreed to, whatever a server asks."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from fedpeft.core.seeds import fold
from fedpeft.core.types import ClientId, Job
from fedpeft.deploy.answers import Answers
from fedpeft.errors import PlanError, say_count
from fedpeft.plan.calibration import learns, round_seed, select_cohort
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import phase_plans, plan_at


class Refused(PlanError):
    """A server asked for more than the owner agreed to."""


@dataclass(frozen=True)
class Agreement:
    """What the owner of a node agreed to: the plan, and one run of it unless he says more.

    Attributes:
      clients: all clients of the federation, in the order of the plan.
      declines: phases of the plan that the owner does not answer.
    """

    plan: Plan
    client: ClientId
    clients: Sequence[ClientId]
    answers: Answers
    declines: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        known = {phase for plan in phase_plans(self.plan).values() for phase in plan.handlers()}
        for phase in sorted(self.declines):
            if phase not in known:
                may = ", ".join(sorted(known)) or "there are none"
                raise PlanError(
                    f"{phase!r} is no message of this plan that can be declined: {may}"
                    + ('; "fit" is what a node is for' if phase == "fit" else "")
                )

    def check(self, token: str, job: Job) -> str:
        """The digest of a job that may be answered.

        Raises:
          Refused: the owner did not agree to it.
        """
        self._check_run(token)
        self._check_round(token, job)
        digest = digest_of(job)
        known = self.answers.asked(token, job)
        most = self._times(job)
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

    def _check_round(self, token: str, job: Job) -> None:
        plan = self.plan
        self._check_number(job)
        # With seeds of its own choice a server could have the same examples under noise of many
        # draws, and take their mean.
        if job.seed != fold(round_seed(plan, job.round), "client", self.client):
            raise Refused(f"asked for round {job.round} with another seed than the plan's")
        if job.accepted is not None and not 0 <= job.accepted < job.round:
            raise Refused(
                f"asked in round {job.round} to go on from its memory of round {job.accepted}"
            )
        if job.step < 0:
            raise Refused(f"asked for message number {job.step}, and a round begins with number 0")
        self._check_phase(job)
        now = self._at(job.round)
        everyone = {phase for phases in now.hooks("asks_everyone") for phase in phases}
        if job.phase in everyone:
            return
        if learns(plan):
            self._check_bound(token, job, everyone)
            return
        drawn = select_cohort(now, self.clients, job.round)
        if self.client not in drawn:
            raise Refused(
                f"asked to take part in round {job.round}, for which the plan draws others"
            )

    def _check_bound(self, token: str, job: Job, everyone: Collection[str]) -> None:
        """Raises Refused for a further round than those that a sampler that learns may draw.

        Whom it draws, only the server can tell; how often at most, the plan says, and noise is
        accounted for no more.
        """
        sampler: Any = self.plan.sampler
        most = sampler.most(self.plan.rounds, self.plan.cohort, len(self.clients))
        answered = self.answers.rounds(token, apart=everyone)
        if job.round not in answered and len(answered) >= most:
            raise Refused(
                f"asked to take part in round {job.round}, and this node has taken part in "
                f"{say_count(len(answered), 'round')}, of which the plan allows {most}"
            )

    def _check_number(self, job: Job) -> None:
        """Raises Refused for a round that the plan does not have, and does not ask after either."""
        after = any(job.round in rounds for rounds in self._rounds_of(job))
        if not 0 <= job.round < self.plan.rounds and not after:
            raise Refused(
                f"asked for round {job.round}, and the plan has "
                f"{say_count(self.plan.rounds, 'rounds')}"
            )

    def _check_phase(self, job: Job) -> None:
        """Raises Refused for a phase that the owner declines, or the plan has in other rounds
        alone."""
        if job.phase in self.declines:
            raise Refused(f"asked for {job.phase!r}, which the owner of this node declines")
        for rounds in self._rounds_of(job):
            if job.round not in rounds:
                agreed = ", ".join(map(str, sorted(rounds)))
                raise Refused(
                    f"asked for {job.phase!r} in round {job.round}, and the plan asks for it in "
                    f"round {agreed} alone"
                )

    def _at(self, round: int) -> Plan:
        """The plan of a round, with the parts that it has then alone; the last one's for what is
        asked after all rounds."""
        return plan_at(self.plan, min(max(round, 0), self.plan.rounds))

    def _rounds_of(self, job: Job) -> Iterator[Collection[int]]:
        """The only rounds in which a job's phase is asked, by each part that says so."""
        plan = self._at(job.round)
        for rounds in [*plan.hooks("asks_in"), *(when(plan) for when in plan.hooks("asks_when"))]:
            if job.phase in rounds:
                yield rounds[job.phase]

    def _times(self, job: Job) -> int:
        """How often a client is asked in a round for a job's phase, by what the plan's parts
        say."""
        every = self._at(job.round).hooks("asks_times")
        return max((times.get(job.phase, 1) for times in every), default=1)


def digest_of(job: Job) -> str:
    """What tells a message from another one."""
    head = [job.run, job.round, job.client, job.phase, job.seed, job.accepted, job.step]
    text = json.dumps(head).encode()
    # JSON as it is written here has no line break, so that none of the payload can pass for the
    # head.
    return blake2b(text + b"\n" + job.payload, digest_size=16).hexdigest()
