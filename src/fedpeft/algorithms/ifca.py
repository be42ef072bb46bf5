"""Several models, of which each client trains the one that fits it best (Ghosh et al., 2020, IFCA,
arXiv:2006.04088, Algorithm 1, option II).

In each round those who are drawn receive all k models and tell which has the least loss on the
examples that they train on. Then each receives that one to train, and each model becomes the mean
of those who chose it; one that nobody chose stays as it is. So k + 1 models go down and one comes
up, where the authors' clients train at once and k go down.

Model 0 is the state's parameters; the others, with what the server's optimizer remembers of them,
lie in the server's memory.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from fedpeft.algorithms.fedavg import SERVER
from fedpeft.algorithms.received_loss import least, mean_loss
from fedpeft.compute.trainable import is_statistic
from fedpeft.core.conversation import Answer, Ask, Flow, Message
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.rounds import Round
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import Layout, add_prefix, take_prefix
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.errors import PlanError

PHASE = OWNER = "ifca"
MODEL: Layout = [("model", [], "int64")]
Choices: TypeAlias = Mapping[ClientId, int]
"""By client the number of the model that it chose."""


@dataclass(frozen=True)
class IFCA:
    """k models for clients of k kinds, without knowing who is of which kind.

    Models that begin alike stay alike, since all clients then choose the first. So in the first
    round all but the first begin with noise. Where a model then has too few clients, the server
    draws the noise again, as the authors do; each draw costs a round's questions.

    Attributes:
      clusters: k, the number of models.
      spread: σ of the noise, by the root mean square of the tensor that it is added to. A tensor of
        zeros counts as one of 1 / √(its columns).
      least: the share of the drawn clients that each model must have in the first round; of draws
        that all fail the one with the largest smallest share is taken.
      draws: how often the noise is drawn at most.

    Raises:
      ValueError: a value out of range.
    """

    clusters: int = 2
    spread: float = 0.1
    least: float = 0.1
    draws: int = 5
    reveals: ClassVar[frozenset[str]] = frozenset(
        {"which of several models has the least loss on the examples here"}
    )
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SEVERAL_MODELS})
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.SUM_ONLY: "ifca takes the mean of those who chose a model, and sums hide who: leave "
        'it out, or set exchange = "plain"',
        Fact.ASYNCHRONOUS: "ifca asks in a round which model fits, and asynchronous steps have no "
        "rounds: leave out one of them",
        Fact.CONTROL: "{other} {what} of one model, and ifca has several: leave out one of them",
        Fact.SENDS_LATER: "{other} {what}, maybe to another model: leave it out, or ifca",
        Fact.MIXED_RANKS: "{other} {what}, and ifca's models are chosen by clients that have them "
        "alike: leave out one of them",
        Fact.MERGES_BASE: "{other} {what} of one model, and ifca has several: leave out ifca, or "
        'set aggregator = "fedit"',
    }

    def __post_init__(self) -> None:
        if self.clusters < 1 or self.draws < 1:
            raise ValueError(
                f"clusters and draws must be at least 1, got {self.clusters} and {self.draws}"
            )
        if not (self.spread > 0 and isfinite(self.spread)):
            raise ValueError(f"spread must be positive and finite, got {self.spread}")
        if not 0 <= self.least <= 1 / self.clusters:
            raise ValueError(
                f"least must be between 0 and 1 / clusters = {1 / self.clusters:g}, "
                f"got {self.least}"
            )

    @property
    def asks_times(self) -> Mapping[str, int]:
        return {PHASE: self.draws}

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError where another algorithm would see only one of the models."""
        if plan.algorithms and plan.algorithms[-1] is not self:
            raise PlanError("ifca divides a round among its models: put it last in algorithms")
        if plan.sets_apart:
            raise PlanError("a vote is on one merge, and ifca has several: leave out one of them")

    def models(self, state: State) -> Sequence[Tensors]:
        """The parameters of each model; before the first round there is one alone."""
        return [one.params for one in self.apart(state)]

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The clients choose, and then the inner algorithm has a round for each model."""
        if self.clusters == 1:
            return (yield from inner(state, round))
        states, draws = self.apart(state), 1
        if len(states) < self.clusters:
            states, chosen, draws = yield from self._begin(state, round)
        else:
            chosen = yield from self.choose(states, round)
        groups = _groups(chosen, self.clusters)
        sizes = [len(group) for group in groups]
        told = {"sizes": sizes, "empty": sizes.count(0), "draws": draws}
        round.report(OWNER, {**told, "chosen": dict(sorted(chosen.items()))})
        report = _summing(round.report)
        after: list[State] = []
        for own, group in zip(states, groups, strict=True):
            if not group:
                after.append(replace(own, round=state.round + 1))
                continue
            after.append((yield from inner(own, replace(round, cohort=group, report=report))))
        if not chosen:
            round.report("note", "nobody chose a model: nothing changes")
        return self._joined(state, after)

    def handlers(self) -> Mapping[str, Handler]:
        return {PHASE: self._answer}

    def receives(self, phase: str, layout: Mapping[str, Layout]) -> Mapping[str, Layout] | None:
        """All models, as they go to "fit"."""
        params = layout["params"]
        every = [
            (f"{k}/{name}", shape, dtype)
            for k in range(self.clusters)
            for name, shape, dtype in params
        ]
        return {OWNER: every}

    def apart(self, state: State) -> list[State]:
        """The state of each model; of the first alone where there are no others yet."""
        others = {owner: x for owner, x in state.memory.items() if owner != OWNER}
        kept, first = state.memory.get(OWNER, {}), replace(state, memory=others)
        states = [first]
        for k in range(1, self.clusters):
            own = take_prefix(str(k), kept)
            if own:
                server = take_prefix(SERVER, own)
                memory = {**others, **({SERVER: server} if server else {})}
                states.append(replace(first, params=take_prefix("params", own), memory=memory))
        return states

    def _joined(self, before: State, after: Sequence[State]) -> State:
        """The inverse: one state of those that the models end in."""
        kept: dict[str, Tensor] = {}
        accepted = dict(before.accepted)
        for k, own in enumerate(after):
            accepted |= {c: last for c, last in own.accepted.items() if last == before.round}
            if k:
                kept |= add_prefix(f"{k}/params", own.params)
                kept |= add_prefix(f"{k}/{SERVER}", own.memory.get(SERVER, {}))
        memory = {**after[0].memory, OWNER: kept}
        return replace(after[0], memory=memory, accepted=accepted)

    def _begin(
        self, state: State, round: Round
    ) -> Generator[Ask, Iterator[Answer], tuple[list[State], Choices, int]]:
        """The models of the first round, what clients chose, and how often noise was drawn."""
        first, best, most = self.apart(state)[0], None, -1
        for number in range(self.draws):
            draws = [generator(round.seed, OWNER, number, k) for k in range(1, self.clusters)]
            others = [replace(first, params=blurred(first.params, self.spread, d)) for d in draws]
            states = [first, *others]
            chosen = yield from self.choose(states, round)
            smallest = min(map(len, _groups(chosen, self.clusters)))
            if smallest > most:
                best, most = (states, chosen), smallest
            if smallest >= self.least * len(chosen):
                break
        assert best is not None
        return *best, number + 1

    def choose(
        self, states: Sequence[State], round: Round
    ) -> Generator[Ask, Iterator[Answer], Choices]:
        """By client the model that it chose, of those who answered."""
        views = round.views(round.cohort)
        messages = {
            view: Message(
                {
                    OWNER: {
                        f"{k}/{name}": x
                        for k, own in enumerate(states)
                        for name, x in view.select(own.params).items()
                    }
                }
            )
            for view in set(views.values())
        }
        to = {client: messages[view] for client, view in views.items()}
        answers = yield Ask(PHASE, to, lambda _: {PHASE: MODEL}, self._check)
        return {answer.client: int(answer.message.tensors[PHASE]["model"]) for answer in answers}

    def _answer(self, client: Any, message: Message) -> Message:
        """A client's message: the number of the model with the least loss, of equals the first.

        Raises:
          ArithmeticError: no model has a finite loss.
        """
        losses = []
        for k in range(self.clusters):
            params = take_prefix(str(k), message.tensors[OWNER])
            given = replace(client, found=replace(client.found, trained=params))
            losses.append(mean_loss(client.site.task, given.outputs()))
        return Message({PHASE: {"model": torch.tensor(least(losses))}})

    def _check(self, client: ClientId, message: Message) -> None:
        number = int(message.tensors[PHASE]["model"])
        if not 0 <= number < self.clusters:
            raise ValueError(f"it chose model {number}, and there are {self.clusters}, from 0")


def blurred(params: Tensors, spread: float, draws: torch.Generator) -> dict[str, Tensor]:
    """Parameters with noise, each tensor by its own size; counts and running statistics, which are
    measured, as they are."""

    def one(name: str, x: Tensor) -> Tensor:
        if not x.is_floating_point() or is_statistic(name):
            return x
        size = float(x.double().square().mean().sqrt()) or x.shape[-1:].numel() ** -0.5
        return x + spread * size * torch.randn(x.shape, generator=draws).to(x)

    return {name: one(name, x) for name, x in params.items()}


def _groups(chosen: Choices, clusters: int) -> list[list[ClientId]]:
    """By model those who chose it, by name."""
    return [sorted(c for c, number in chosen.items() if number == k) for k in range(clusters)]


def _summing(report: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
    """Reports of several merges of one round as the round's: metrics are summed, and of errors the
    largest is told."""
    told: dict[str, Any] = {}

    def summed(name: str, value: Any) -> None:
        before = told.get(name)
        if name == "metrics" and before:
            value = {**before, **{n: before[n] + x if n in before else x for n, x in value.items()}}
        elif name == "aggregation_error" and before is not None:
            value = before if value is None else max(before, value)
        told[name] = value
        report(name, value)

    return summed
