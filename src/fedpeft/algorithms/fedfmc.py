"""Fork, merge, consolidate (FedFMC: Kopparapu and Lin, 2020, arXiv:2006.10937).

There is no code of the authors'. This is a reading of the paper, from three parts: several models
that clients choose among (IFCA, arXiv:2006.04088), a merge by Fisher information (arXiv:2111.09832)
and elastic weights (EWC, arXiv:1612.00796).
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpeft.algorithms.fedavg import SERVER
from fedpeft.algorithms.fisher import (
    Fisher,
    check_squares,
    mean_squared_gradient,
    merge_by_information,
    squared_length,
)
from fedpeft.algorithms.ifca import IFCA, Choices
from fedpeft.algorithms.ifca import PHASE as CHOICE
from fedpeft.core.conversation import Answer, Ask, Flow, Message
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Handler, Inner
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout, add_prefix, take_prefix, zeros_like
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.errors import PlanError

PHASE = OWNER = "fedfmc"
ANCHOR, INFORMATION = "anchor", "information"


@dataclass(frozen=True)
class FedFMC:
    """For `fork` rounds clients train the one of several models that fits them best, as under
    IFCA. Then these are merged, entry by entry, and all clients train the merged one:

        fork         θ_1 ... θ_k, each the mean of those who chose it
        merge        θ* = Σ_j F_j·θ_j / Σ_j F_j
        consolidate  θ ← (θ + λ·F·θ*) / (1 + λ·F) after each further round, F = Σ_j F_j

    F_j is the sum, over the clients of one round that choose model j, of the mean squared gradient
    of their examples at θ_j, by the number of these clients in all; each counts once. In the merge
    `floor` is added to it.

    The last line is argmin_t ½·(t − θ)² + ½·λ·F·(t − θ*)², the proximal step of EWC's penalty, at
    the server. EWC adds the penalty's gradient to each step of the training; so nothing more
    travels here, and a round's pull does not depend on how many steps its clients take.

    Attributes:
      fork: rounds with several models; at least one round must follow.
      pull: λ; 0 for none. F is of the size of a squared gradient, so that λ may be large.
      floor: what is added to each F_j in the merge, so that entries of which nobody knows anything
        go to their mean.
      clusters, spread, least, draws: of the models, as for "ifca".

    Raises:
      ValueError: a value out of range.
    """

    fork: int = 5
    pull: float = 1.0
    floor: float = 1e-6
    clusters: int = 2
    spread: float = 0.1
    least: float = 0.1
    draws: int = 5
    reveals: ClassVar[frozenset[str]] = IFCA.reveals | Fisher.reveals
    offers: ClassVar[frozenset[Fact]] = IFCA.offers
    # what does not fit one of the two does not fit both; in IFCA's words its name is a plan's key
    forbids: ClassVar[Mapping[Fact, str]] = {
        **Fisher.forbids,
        **{fact: words.replace("ifca", "fedfmc") for fact, words in IFCA.forbids.items()},
    }

    def __post_init__(self) -> None:
        if self.fork < 1:
            raise ValueError(f"fork must be at least 1, got {self.fork}")
        if not (self.pull >= 0 and isfinite(self.pull)):
            raise ValueError(f"pull must be at least 0 and finite, got {self.pull}")
        # each of them checks its own values as it is made
        Fisher(self.floor)
        IFCA(self.clusters, self.spread, self.least, self.draws)

    @property
    def ifca(self) -> IFCA:
        """How the models are chosen and trained."""
        return IFCA(self.clusters, self.spread, self.least, self.draws)

    @property
    def asks_times(self) -> Mapping[str, int]:
        return self.ifca.asks_times

    @property
    def asks_in(self) -> Mapping[str, frozenset[int]]:
        return {CHOICE: frozenset(range(self.fork + 1)), PHASE: frozenset({self.fork})}

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError where there is nothing to consolidate, or no gradient by example."""
        if plan.algorithms and plan.algorithms[-1] is not self:
            raise PlanError("fedfmc divides a round among its models: put it last in algorithms")
        if plan.sets_apart:
            raise PlanError("a vote is on one merge, and fedfmc has several: leave out one of them")
        Fisher(self.floor).check_plan(plan)

    def needs_rounds(self) -> Mapping[str, int]:
        return {"fork": self.fork + 1}

    def models(self, state: State) -> Sequence[Tensors]:
        """The parameters of each model; of the merged one alone after the fork."""
        return self.ifca.models(state)

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """A round of several models, or one of the merged model and its pull."""
        if state.round < self.fork:
            return (yield from self.ifca.round(state, round, inner))
        if OWNER not in state.memory:
            state = yield from self._merge(state, round)
        after = yield from inner(state, round)
        if after.params is state.params:  # nothing changed, and nothing is to be pulled back
            return after
        kept = state.memory[OWNER]
        anchor, information = (take_prefix(group, kept) for group in (ANCHOR, INFORMATION))
        pulled = consolidate(after.params, anchor, information, self.pull)
        return replace(after, params=pulled)

    def handlers(self) -> Mapping[str, Handler]:
        return {**self.ifca.handlers(), PHASE: self._answer}

    def receives(self, phase: str, layout: Mapping[str, Layout]) -> Mapping[str, Layout] | None:
        """All models to choose from, and else what goes to "fit"."""
        return self.ifca.receives(phase, layout) if phase == CHOICE else layout

    def _answer(self, client: Any, message: Message) -> Message:
        """A client's message: F of the model that it chose."""
        return Message({PHASE: mean_squared_gradient(client)})

    def _merge(self, state: State, round: Round) -> Generator[Ask, Iterator[Answer], State]:
        """The state of the merged model, which no optimizer of the server's knows yet."""
        states, chosen = self.ifca.apart(state), dict.fromkeys(round.cohort, 0)
        if len(states) > 1:
            chosen = dict((yield from self.ifca.choose(states, round)))
        answers = yield self._ask(states, chosen, round)
        information, heard = _mean_information(states, chosen, answers)
        params = merge_by_information(
            [one.params for one in states], information, [1.0] * len(states), self.floor
        )
        total = {n: torch.stack([one[n] for one in information]).sum(0) for n in params}
        kept = {**add_prefix(ANCHOR, params), **add_prefix(INFORMATION, total)}
        sizes = [list(chosen.values()).count(k) for k in range(len(states))]
        round.report(OWNER, {"merged": sizes, "heard": heard})
        memory = {**_begun_again(states[0], params, round), OWNER: kept}
        return replace(states[0], params=params, memory=memory)

    def _ask(self, states: Sequence[State], chosen: Choices, round: Round) -> Ask:
        """The question for F, with the model that each chose."""
        to: dict[ClientId, Message] = {}
        for k, own in enumerate(states):
            to |= round.messages(own, sorted(c for c, number in chosen.items() if number == k))
        views = round.views(list(to))

        def expects(client: ClientId) -> Mapping[str, Layout]:
            trained = views[client].trained(to[client].tensors["params"])
            return {PHASE: [(name, list(x.shape), "float32") for name, x in trained.items()]}

        return Ask(PHASE, to, expects, check_squares, weight=squared_length)


def _mean_information(
    states: Sequence[State], chosen: Choices, answers: Iterator[Answer]
) -> tuple[list[dict[str, Tensor]], int]:
    """By model the sum of F of those who chose it, by the number of all who told; and that
    number."""
    sums = [zeros_like(one.params) for one in states]
    heard = 0
    for answer in answers:
        heard, told = heard + 1, answer.message.tensors[PHASE]
        into = sums[chosen[answer.client]]
        into.update({name: into[name] + x for name, x in told.items()})
    return [{name: x / max(heard, 1) for name, x in one.items()} for one in sums], heard


def _begun_again(state: State, params: Tensors, round: Round) -> dict[str, Tensors]:
    """What the server remembers of a state, with an optimizer that knows nothing but these
    parameters."""
    server = round.plan.server.init(params)
    others = {owner: x for owner, x in state.memory.items() if owner != SERVER}
    return {**others, SERVER: server} if server else others


def consolidate(
    params: Tensors, anchor: Tensors, information: Tensors, pull: float
) -> dict[str, Tensor]:
    """(θ + λ·F·θ*) / (1 + λ·F) entry by entry, in the parameters' types."""
    return {
        name: ((x.double() + pull * f * anchor[name].double()) / (1 + pull * f)).to(x.dtype)
        for name, x in params.items()
        for f in [information[name].double()]
    }
