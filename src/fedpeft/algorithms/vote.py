"""Several merges of one round, of which the clients choose: each scores all of them on examples
that it set apart.

A merge is the inner algorithm's with the plan's weights or uniform ones, and where rows of the head
are weighted also without; a candidate is w + λ·(merge − w), for w before the round and each λ of
the plan. The recorded answers are replayed for each merge, so that nobody trains twice. Down go w
and the merges, up a score for each candidate and by how many examples it is. Taken is the best of
the summed scores: accuracy, or where the task has none the loss. The examples that clients set
apart have, together, the labels of all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpeft.compute.trainable import is_statistic
from fedpeft.core.conversation import Answer, Ask, Flow, Message, record, replay
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.errors import PlanError, WireError

PHASE = "vote"
START = "start"
SCORES, WEIGHT = "scores", "weight"
COUNTS = "class_counts"
Heard = Sequence[tuple[Ask, Sequence[Answer]]]


@dataclass(frozen=True)
class Vote:
    """Clients choose the strength and the weights of a round's merge.

    Attributes:
      strengths: λ, each once, of equals the first.
      share: of each client's examples those that it sets apart.

    Raises:
      ValueError: a value out of range.
    """

    strengths: tuple[float, ...] = (0.5, 1.0, 1.5)
    share: float = 0.2
    reveals: ClassVar[frozenset[str]] = frozenset({"scores"})
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SCALES_STEP})
    forbids: ClassVar[Mapping[Fact, str]] = {
        **{
            fact: "a vote is on models that all clients have alike: leave out personal, ranks and "
            "SCAFFOLD"
            for fact in (Fact.PERSONAL, Fact.MIXED_RANKS, Fact.CONTROL)
        },
        Fact.MIXED_TENSORS: "{other} {what}, and a vote is on models that all clients "
        "train alike: leave out one of them",
        Fact.ASYNCHRONOUS: "a vote is on a round's merge, and asynchronous steps have no rounds: "
        "leave it out",
        Fact.SUM_ONLY: "a vote replays the clients' updates, which sums hide: leave it out",
    }

    def __post_init__(self) -> None:
        good = all(0 < x < float("inf") for x in self.strengths)
        if not self.strengths or len(set(self.strengths)) < len(self.strengths) or not good:
            raise ValueError(f"strengths must be positive, each once, got {list(self.strengths)}")
        if not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")

    @property
    def sets_apart(self) -> float:
        """The share of each client's examples that it does not train on."""
        return self.share

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The inner algorithm's round, and then a vote among its merges by those who trained."""
        heard: list[tuple[Ask, Sequence[Answer]]] = []
        own = yield from record(inner(state, round), heard)
        voters = sorted(
            answer.client for ask, answers in heard if ask.updates for answer in answers
        )
        if own.params is state.params or not voters:  # nothing changed
            return own
        merges = {words: edit(heard) for words, edit in self._merges(round).items()}
        ends = [own] + [
            replay(inner(state, round.silent()), heard) for heard in list(merges.values())[1:]
        ]
        ask = self._ask(state, ends, dict.fromkeys(voters))
        choice = self._count(list(merges), (yield ask), ask)
        round.report("vote", choice.told)
        end = ends[choice.number]
        return replace(end, params=interpolate(state.params, end.params, choice.strength))

    def handlers(self) -> Mapping[str, Handler]:
        return {PHASE: self._answer}

    def receives(self, phase: str, layout: Mapping[str, Layout]) -> Mapping[str, Layout] | None:
        """What a client may be sent to vote on: the start and any of the merges."""
        params = layout["params"]
        most = 2 * 2  # two weightings, with rows of the head and without
        return {START: params, **{str(number): params for number in range(most)}}

    def _merges(self, round: Round) -> dict[str, Any]:
        """By what a merge is called, how the recorded answers are changed for it; the plan's own
        merge comes first."""
        plan = round.plan
        weightings = dict.fromkeys((plan.weighting, "uniform"))
        rows = ("class_counts", None) if hasattr(plan.aggregator, "weights_rows") else (None,)
        return {
            f"weights {weighting}" + (f", rows {row}" if row else ""): _Merge(
                uniform=weighting == "uniform", counts=row is not None
            )
            for row in rows
            for weighting in weightings
        }

    def _ask(self, state: State, ends: Sequence[State], voters: Mapping[ClientId, Any]) -> Ask:
        groups = {START: state.params} | {str(k): end.params for k, end in enumerate(ends)}
        message = Message(groups)
        candidates = len(ends) * len(self.strengths)
        layout: Layout = [(SCORES, [candidates], "float64"), (WEIGHT, [], "float64")]
        return Ask(PHASE, dict.fromkeys(voters, message), lambda _: {PHASE: layout}, _check)

    def _answer(self, client: Any, message: Message) -> Message:
        """A client's message: the score of each candidate, and by how many examples.

        Raises:
          PlanError: the task has neither accuracy nor loss.
          WireError: the message lacks the start or a merge.
        """
        for group in (START, *map(str, range(len(message.tensors) - 1))):
            if group not in message.tensors:
                raise WireError(f"the message {PHASE!r} lacks {group!r}, which this plan sends")
        start, total, weight = message.tensors[START], [], 0.0
        for number in range(len(message.tensors) - 1):
            for strength in self.strengths:
                params = interpolate(start, message.tensors[str(number)], strength)
                score, weight = _score(client.measure_apart(params))
                total.append(score)
        scores = torch.tensor(total, dtype=torch.float64)
        said = {SCORES: scores, WEIGHT: torch.tensor(weight, dtype=torch.float64)}
        return Message({PHASE: said})

    def _count(self, names: Sequence[str], answers: Iterator[Answer], ask: Ask) -> "Choice":
        """The candidate with the best mean score, of equals the first; without any vote the plan's
        own merge as it is."""
        candidates = [(n, strength) for n in range(len(names)) for strength in self.strengths]
        sums, weight = torch.zeros(len(candidates), dtype=torch.float64), 0.0
        silent = set(ask.to)
        for answer in answers:
            own = answer.message.tensors[PHASE]
            sums, weight = sums + own[SCORES], weight + float(own[WEIGHT])
            silent.discard(answer.client)
        number, strength = candidates[int(sums.argmax())] if weight else (0, 1.0)
        scores = [
            {"merge": names[n], "strength": s, "score": x / weight if weight else None}
            for (n, s), x in zip(candidates, sums.tolist(), strict=True)
        ]
        told = {
            "merge": names[number],
            "strength": strength,
            "examples": weight,
            "failed": sorted(silent),
            "scores": scores,
        }
        return Choice(number, strength, told)


def interpolate(start: Tensors, end: Tensors, strength: float) -> dict[str, Tensor]:
    """start + strength·(end − start); counts and running statistics, which are measured, as at the
    end."""
    return {
        name: x
        if is_statistic(name) or not x.is_floating_point()
        else torch.lerp(start[name], x, strength)
        for name, x in end.items()
    }


@dataclass(frozen=True)
class _Merge:
    """Recorded answers as one of the merges counts them."""

    uniform: bool
    counts: bool

    def __call__(self, heard: Heard) -> Heard:
        return [(ask, [self._one(answer) for answer in answers]) for ask, answers in heard]

    def _one(self, answer: Answer) -> Answer:
        values = dict(answer.message.values)
        if self.uniform and "weight" in values:
            values["weight"] = 1.0
        if not self.counts:
            values.pop(COUNTS, None)
        return replace(answer, message=replace(answer.message, values=values))


def _score(found: Mapping[str, Any]) -> tuple[float, float]:
    """The sum of a client's scores, and by how many examples it is; of no examples none."""
    if not found:
        return 0.0, 0.0
    for name, sign in (("accuracy", 1.0), ("loss", -1.0)):
        if name in found:
            return sign * found[name].total, found[name].weight
    raise PlanError(
        f"a vote is by accuracy or loss, and this task has {', '.join(found)}: leave out the vote"
    )


def _check(client: ClientId, message: Message) -> None:
    if message.tensors[PHASE][WEIGHT] < 0:
        raise ValueError("its scores are by fewer examples than none")


@dataclass(frozen=True)
class Choice:
    """How a vote ended.

    Attributes:
      number: of the merge; `strength`: λ.
      told: both, with all scores, as plain values for the ledger.
    """

    number: int
    strength: float
    told: Mapping[str, Any]
