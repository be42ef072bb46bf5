"""Admission: what is asked of an answer before any algorithm sees it.

An update must be what the plan sends (names, shapes, types, checksum), finite, and no longer than
`norm_factor` times the median of those let in before. What came and is not so is refused: it costs
its client that round, with a reason in the ledger, and after `max_refusals` of them the client is
asked no more.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from statistics import median
from typing import Any, TypeVar

from fedpeft.core.conversation import DELTA, Answer, Ask, Message
from fedpeft.core.tensors import finite
from fedpeft.core.types import ClientId, Failure, State
from fedpeft.core.views import EVERYTHING
from fedpeft.errors import WireError
from fedpeft.plan.coding import answer_codec, uplink_coding
from fedpeft.plan.plan import Plan
from fedpeft.rounds.ledger import Ledger
from fedpeft.wire.payloads import decode_answer, message_of, update_of

Thing = TypeVar("Thing")
FEW = 8
"""Updates of the first round that wait for each other, as there are none before them to be held
against."""
WINDOW = 100
"""Lengths that the median is of: old ones go, since later rounds take shorter steps."""


@dataclass
class Admission:
    """The clients that are asked in a round, and the answers that are admitted.

    Attributes:
      norms: lengths of updates let in so far, of earlier rounds too.
      weights: what updates let in so far counted.
      refused: how often each client was refused so far.
      claims: whether weights are claims of clients whose data nobody here knows.
    """

    plan: Plan
    state: State
    ledger: Ledger
    norms: list[float]
    weights: list[float]
    refused: dict[ClientId, int]
    claims: bool = True
    checks: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.checks = self.plan.hooks("check_update")

    @classmethod
    def of(cls, plan: Plan, state: State, ledger: Ledger, claims: bool = True) -> "Admission":
        kept = list(state.norms), list(state.weights), dict(state.refusals)
        return cls(plan, state, ledger, *kept, claims)

    def eligible(self, clients: Sequence[ClientId]) -> list[ClientId]:
        """Those who are asked; the ledger tells of the others."""
        most = self.plan.admission.max_refusals
        for client in clients:
            if self.refused.get(client, 0) >= most and client not in self.ledger.out:
                self.ledger.down[client] = 0
                self.ledger.refusals[client] = self.refused[client]
                self.ledger.failed[client] = (
                    f"left out: {self.refused[client]} of its updates were refused"
                )
                self.ledger.out.add(client)
        # Nobody takes an empty place, so that who else is drawn, and what a guarantee counts, stay
        # as the plan says.
        return [client for client in clients if client not in self.ledger.out]

    def miss(self, failure: Failure) -> None:
        """Note that a client has not replied. A silent one is asked nothing more in this round,
        which would otherwise wait for it again and again."""
        self.ledger.fail(failure.client, failure.reason)
        if not failure.answered:
            self.ledger.out.add(failure.client)

    def refuse(self, client: ClientId, reason: str) -> None:
        """Note that what came of this client is not what it must be; it is asked nothing more in
        this round."""
        self.ledger.fail(client, reason)
        self.ledger.out.add(client)
        self.refused[client] = self.ledger.refusals[client] = self.refused.get(client, 0) + 1

    def decode(self, ask: Ask, client: ClientId, payload: bytes) -> Message | None:
        """An answer's message, or None after noting why it is refused."""
        # An update may be rounded; a count, a score or a key must arrive as it was said.
        codec = self.plan.uplink if ask.updates else answer_codec(self.plan, ask.phase)
        try:
            round, view = ask.rounds.get(client, self.state.round), ask.views.get(client)
            how = uplink_coding(self.plan, round, client, view or EVERYTHING)
            expected = ask.expects(client)
            optional = self.plan.optional_groups(expected[DELTA]) if ask.updates else ()
            message = decode_answer(payload, codec, expected, how, ask.metrics, optional)
            if ask.updates:
                message = self._update(client, message)
            elif not all(finite(tensors) for tensors in message.tensors.values()):
                raise ValueError("it holds numbers that are not finite")
            ask.check(client, message)
        except (WireError, ValueError) as error:
            self.refuse(client, str(error) if ask.updates else f"{ask.phase}: {error}")
            return None
        return message

    def _update(self, client: ClientId, message: Message) -> Message:
        """An update as the stages let it in.

        Raises:
          WireError, ValueError: it is not what the plan asks for.
        """
        update = update_of(client, message)
        if self.plan.weighting == "uniform" and update.weight != 1:
            raise ValueError(
                f"it wants to count {update.weight:g}, and in this plan all count alike: 1"
            )
        if not finite(update.delta):
            raise ValueError("the delta is not finite")
        for check in self.checks:
            check(update, self.state, self.plan)
        # An update passed the stages one after another on its way, so the last one is undone first.
        for stage in reversed(self.plan.stages):
            update = stage.on_arrival(update)
        return message_of(update) if self.plan.stages else message

    def bounded(self, ask: Ask, answers: Iterable[Answer]) -> Iterator[Answer]:
        """Those that are not far longer than usual; see `within_usual`."""
        # Updates that all count alike claim nothing; other answers count whatever the weighting.
        claims = not ask.updates or self.plan.weighting != "uniform"
        if ask.weight is not None and self.claims and claims:
            answers = self._weighed(ask, answers)
        factor, length = self.plan.norm_bound, ask.length
        if length is None or factor == float("inf"):
            yield from answers
            return

        def refuse(answer: Answer, why: str) -> None:
            self.refuse(answer.client, f"its {'update' if ask.updates else ask.phase} is {why}")

        lengths = ((answer, length(answer.message)) for answer in answers)
        # Other answers have lengths of a kind of their own: they are held against each other alone.
        norms = self.norms if ask.updates else []
        yield from within_usual(lengths, factor, norms, refuse, "norm_factor")

    def _weighed(self, ask: Ask, answers: Iterable[Answer]) -> Iterator[Answer]:
        """Those that do not claim to count far more than is usual."""
        factor, weight = self.plan.admission.weight_factor, ask.weight
        if factor == float("inf") or weight is None:
            return iter(answers)
        what = "weight" if ask.updates else f"{ask.phase}'s weight"

        def refuse(answer: Answer, why: str) -> None:
            self.refuse(answer.client, f"its {what} is {why}")

        weights = ((answer, weight(answer.message)) for answer in answers)
        known = self.weights if ask.updates else []
        return within_usual(weights, factor, known, refuse, "weight_factor")

    def after(self, state: State) -> State:
        """The state with what admission has learnt of the clients."""
        return replace(
            state,
            norms=tuple(self.norms),
            weights=tuple(self.weights),
            refusals=dict(self.refused),
        )


def within_usual(
    things: Iterable[tuple[Thing, float]],
    factor: float,
    known: list[float],
    refuse: Callable[[Thing, str], None],
    key: str,
) -> Iterator[Thing]:
    """The things that are not far larger than the ones before, by their sizes; `known` learns of
    them.

    The first few of all are held against each other; without them, nothing is known of what is
    usual.

    Args:
      key: what the plan calls the factor, for the reason.
    """
    things = iter(things)
    # Without this a run's first round would be open, and one update of 1e9 can end a run.
    first = [] if known else list(islice(things, FEW))
    together = [size for _, size in first]
    for place, (thing, size) in enumerate(chain(first, things)):
        # A client that stood still, or has no example, says nothing of what is usual.
        others = [other for other in (together if place < len(first) else known) if other]
        middle = median(others) if others else size
        if size > factor * middle:
            refuse(thing, _too_large(size, len(others), middle, factor, key))
            continue
        known.append(size)
        del known[:-WINDOW]
        yield thing


def _too_large(size: float, others: int, middle: float, factor: float, key: str) -> str:
    what = f"{size:.4g} long" if key == "norm_factor" else f"{size:.4g}"
    return (
        f"{what}, the median of {others} is {middle:.4g}, and at most {factor:g} times that is let "
        f"in ({key})"
    )
