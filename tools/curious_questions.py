"""Questions that a curious server asks a node beside those of its plan: other phases, rounds,
seeds, runs, plans, memories and layouts."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedpeft.core.conversation import PARAMS, Message
from fedpeft.core.seeds import fold
from fedpeft.core.types import Job, Tensors
from fedpeft.errors import PlanError
from fedpeft.plan.calibration import round_seed
from fedpeft.plan.coding import downlink_coding
from fedpeft.plan.plan import Plan
from fedpeft.registry import build, names
from fedpeft.wire.payloads import decode_sent, encode_message
from fedpeft.wire.sockets import Envelope

INVENTED = "examples"
"""A phase that no part has."""
KINDS = (
    *("algorithm", "aggregator", "evaluation", "exchange"),
    *("local", "routing", "sampler", "stage"),
)
"""Kinds of parts that may answer messages."""
FIELDS = ("run", "round", "client", "phase", "seed", "accepted", "step")


@dataclass(frozen=True)
class Question:
    """An envelope to a node.

    Attributes:
      way: what of it is not the plan's, in a word for the table.
      what: the same in more words.
    """

    way: str
    what: str
    envelope: Envelope


def known_phases() -> list[str]:
    """Every phase that a registered part answers, those of secure sums with keys too, and one that
    none does."""
    found = {"fit", INVENTED, "story"}
    for kind in KINDS:
        for name in names(kind):
            try:
                part = build(kind, name)
            except PlanError:  # it has no defaults
                continue
            found |= set(part.handlers() if hasattr(part, "handlers") else ())
    return sorted(found)


def pack_job(job: Job, token: str, terms: Mapping[str, str]) -> Envelope:
    """A job as it comes to a node."""
    head = {key: getattr(job, key) for key in FIELDS}
    return Envelope({"kind": "job", **head, "token": token, **terms}, job.payload)


@dataclass(frozen=True)
class Asking:
    """What a server knows when it asks.

    Attributes:
      token, terms: of the run that the owner agreed to.
      ahead: by round the phases that the plan has it ask later, in these words: they are its own
        questions.
      idle: rounds for which the plan draws others.
    """

    plan: Plan
    token: str
    terms: Mapping[str, str]
    ahead: Callable[[int], Collection[str]] = lambda round: ()
    idle: Collection[int] = ()

    def beside(self, job: Job, answered: bool) -> Iterator[Question]:
        """What it asks beside a job that is the plan's own.

        Args:
          answered: whether the node has answered some job of the run before, so that another run is
            one that the owner did not agree to.
        """
        yield from self._changed("phase", self._phases(job))
        yield from self._changed("round", self._rounds(job))
        yield from self._changed("seed", self._seeds(job))
        yield from self._changed("memory", self._memories(job))
        yield from self._changed("layout", self._layouts(job))
        yield from self._tokens(job, answered)
        yield from self._terms(job)

    def again(self, job: Job) -> Iterator[Question]:
        """The same question in other words, after it was answered."""
        message = self._message(job)
        if message is not None and PARAMS in message.tensors:
            moved = {n: x + 1e-3 for n, x in message.tensors[PARAMS].items()}
            changed = {**message.tensors, PARAMS: moved}
            yield from self._changed("again", {"moved": self._sent(job, changed, message.values)})
        steps = {"another step": replace(job, step=job.step + 1)}
        if job.round > 0:
            other = 0 if job.accepted is None else None
            steps["another memory"] = replace(job, accepted=other)
        yield from self._changed("again", steps)

    def _changed(self, way: str, jobs: Mapping[str, Job]) -> Iterator[Question]:
        for what, job in jobs.items():
            yield Question(way, what, pack_job(job, self.token, self.terms))

    def _phases(self, job: Job) -> dict[str, Job]:
        others = set(known_phases()) - {job.phase, *self.ahead(job.round)}
        return {phase: replace(job, phase=phase) for phase in sorted(others)}

    def _rounds(self, job: Job) -> dict[str, Job]:
        rounds = {-1, self.plan.rounds, self.plan.rounds + 7, 10**9, -(10**9), *self.idle}
        found = {f"round {k}": self._at(job, k) for k in sorted(rounds - {job.round})}
        return {**found, "a truth": self._at(job, True), "a fraction": self._at(job, 0.5)}

    def _at(self, job: Job, round: Any) -> Job:
        """The job in another round, with that round's own seed where it has one."""
        whole = isinstance(round, int) and not isinstance(round, bool)
        seed = fold(round_seed(self.plan, round), "client", job.client) if whole else job.seed
        return replace(job, round=round, seed=seed, accepted=None)

    def _seeds(self, job: Job) -> dict[str, Job]:
        seeds = (job.seed + 1, 0, -1, 2**63, 10**40)
        return {f"seed {seed}": replace(job, seed=seed) for seed in seeds}

    def _memories(self, job: Job) -> dict[str, Job]:
        rounds = (-1, job.round, self.plan.rounds, 10**9, True)
        found = {f"round {k}": replace(job, accepted=k) for k in rounds}
        return {**found, "step -1": replace(job, step=-1), "a truth": replace(job, step=True)}

    def _layouts(self, job: Job) -> dict[str, Job]:
        blob = job.payload
        flipped = blob[:-1] + bytes([blob[-1] ^ 1])
        found = {"empty": b"", "cut": blob[:-3], "flipped": flipped, "zeros": bytes(64)}
        jobs = {what: replace(job, payload=payload) for what, payload in found.items()}
        message = self._message(job)
        for what, groups in odd_layouts(message.tensors).items() if message else ():
            jobs[what] = self._sent(job, groups, message.values if message else {})
        for what, values in odd_values(message.values).items() if message else ():
            jobs[what] = self._sent(job, message.tensors if message else {}, values)
        return jobs

    def _message(self, job: Job) -> Message | None:
        how = downlink_coding(self.plan, job.round)
        groups = [PARAMS, *self.plan.shares({})] if job.phase == "fit" else None
        return decode_sent(job.payload, self.plan.downlink, groups, how)

    def _sent(self, job: Job, groups: Mapping[str, Tensors], values: Mapping[str, Any]) -> Job:
        how = downlink_coding(self.plan, job.round)
        payload = encode_message(Message(groups, values), self.plan.downlink, how)
        return replace(job, payload=payload)

    def _tokens(self, job: Job, answered: bool) -> Iterator[Question]:
        tokens = ["", "../../etc/passwd", self.token.upper() + "G", self.token[:-1]]
        tokens += [self.token[::-1], "0" * 32] if answered else []
        for token in tokens:
            yield Question("run", f"token {token!r}", pack_job(job, token, self.terms))

    def _terms(self, job: Job) -> Iterator[Question]:
        for name in self.terms:
            other = {**self.terms, name: "0123456789abcdef"}
            yield Question("plan", f"another {name}", pack_job(job, self.token, other))
        jobs = {
            "another run": replace(job, run=f"{job.run}0"),
            "another client": replace(job, client=f"{job.client}0"),
        }
        yield from self._changed("plan", jobs)


def odd_layouts(groups: Mapping[str, Tensors]) -> dict[str, dict[str, Tensors]]:
    """The tensors of a message as no plan sends them, by what is odd."""
    found: dict[str, dict[str, Tensors]] = {"another group": {**groups, "odd": _one()}}
    for group, tensors in groups.items():
        rest = {other: some for other, some in groups.items() if other != group}
        name, x = next(iter(tensors.items()))
        others = {n: y for n, y in tensors.items() if n != name}
        long = torch.cat([x.reshape(-1), x.reshape(-1)[:1]])
        changed: dict[str, Tensors] = {
            "one more": {**tensors, "odd": torch.ones(3)},
            "another name": {**others, "odd": x},
            "another shape": {**others, name: long},
            "another type": {**others, name: x.double()},
        }
        if x.is_floating_point():
            changed |= {
                "no number": {**others, name: torch.full_like(x, float("nan"))},
                "an infinity": {**others, name: torch.full_like(x, float("inf"))},
            }
        if others:
            changed["one less"] = others
        found |= {f"{group}: {what}": {**rest, group: some} for what, some in changed.items()}
        if group == PARAMS:
            found[f"without {group}"] = {**rest, "odd": _one()}
    return found


def odd_values(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The plain values of a message as no plan sends them; none where it has none."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        rest = {other: x for other, x in values.items() if other != name}
        found[f"without {name}"] = {**rest, "odd": 1}
        found[f"{name}: nothing"] = {**rest, name: None}
        found[f"{name}: empty"] = {**rest, name: type(value)()}
        found[f"{name}: a number"] = {**rest, name: 7}
        found[f"{name}: and more"] = {**values, "odd": [1, 2, 3]}
        some = list(value)
        found[f"{name}: strangers"] = {**rest, name: [f"x{k}" for k in range(len(some))]}
        found[f"{name}: one alone"] = {**rest, name: some[:1] * len(some)}
    return found


def _one() -> dict[str, torch.Tensor]:
    return {"x": torch.ones(2)}
