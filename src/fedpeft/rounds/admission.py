"""Admission: what is asked of an answer before any algorithm sees it.

An update must be what the plan sends (names, shapes, types, checksum) and finite. It may be as long
as what it changes, and beyond that `norm_factor` times the median of those let in before. What came
and is not so is refused: it costs its client that round, with a reason in the ledger, and after
`max_refusals` of them the client is asked no more.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from statistics import median
from typing import Any

from fedpeft.core.conversation import DELTA, PARAMS, Answer, Ask, Message
from fedpeft.core.rounds import update_length
from fedpeft.core.tensors import finite
from fedpeft.core.types import ClientId, Failure, State
from fedpeft.core.views import EVERYTHING
from fedpeft.errors import WireError
from fedpeft.plan.coding import answer_codec, uplink_coding
from fedpeft.plan.plan import Plan
from fedpeft.rounds.ledger import Ledger
from fedpeft.wire.payloads import decode_answer, message_of, update_of

FEW = 8
"""Updates of the first round that wait for each other, as there are none before them to be held
against."""
FEWEST = 3
"""Answers that must be there for any of them to change what is usual."""
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

    def decode(
        self, ask: Ask, client: ClientId, payload: bytes, sent: Message | None = None
    ) -> Message | None:
        """An answer's message, or None after noting why it is refused.

        Args:
          sent: what the client had received, for a codec that reads it.
        """
        # An update may be rounded; a count, a score or a key must arrive as it was said.
        codec = self.plan.uplink if ask.updates else answer_codec(self.plan, ask.phase)
        try:
            round, view = ask.rounds.get(client, self.state.round), ask.views.get(client)
            sent = sent if ask.updates else None
            how = uplink_coding(self.plan, round, client, view or EVERYTHING, sent)
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
        """Those that are not far longer than usual; see `UsualSize`."""
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
        norms, room = (self.norms, length_received) if ask.updates else ([], no_room)
        usual = UsualSize("norm_factor", factor, norms, refuse, self.ledger.report, room)
        yield from usual.let_in(lengths)

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
        usual = UsualSize("weight_factor", factor, known, refuse, self.ledger.report)
        return usual.let_in(weights)

    def after(self, state: State) -> State:
        """The state with what admission has learnt of the clients."""
        return replace(
            state,
            norms=tuple(self.norms),
            weights=tuple(self.weights),
            refusals=dict(self.refused),
        )


def no_room(answer: Answer) -> float:
    """Where the usual size alone says what is too large."""
    return 0.0


def length_received(answer: Answer) -> float:
    """How long the parameters are that a client was sent and changes.

    A change that is no longer than they are replaces them at most. It is far from what one length
    of 1e9 does, and honest ones differ by any factor: where B of LoRA is zero, A has no gradient in
    a client's first step, and has one in its second.
    """
    sent = answer.sent.tensors.get(PARAMS, {})
    changed = answer.message.tensors.get(DELTA, {})
    return update_length({name: sent[name] for name in changed if name in sent})


@dataclass(frozen=True)
class UsualSize:
    """How large what comes may be, beside what came before and what comes with it.

    Attributes:
      key: what the plan calls the factor, for the reason.
      factor: an answer may be so many times as large as the median of those let in before.
      known: sizes of those; it learns of new ones.
      refuse: takes an answer, and why it is not let in.
      report: takes a name, and what befell what is usual.
      room: how large an answer may be whatever is usual.
    """

    key: str
    factor: float
    known: list[float]
    refuse: Callable[[Answer, str], None]
    report: Callable[[str, str], None]
    room: Callable[[Answer], float] = no_room

    def let_in(self, answers: Iterable[tuple[Answer, float]]) -> Iterator[Answer]:
        """The answers that are not far larger than usual, by their sizes.

        The first few of all are held against each other; without them, nothing is known of what is
        usual. Those far above the usual wait until all have come, and come last if they are let in.
        """
        answers = iter(answers)
        # Without this a run's first round would be open, and one update of 1e9 can end a run.
        first = [] if self.known else list(islice(answers, FEW))
        together = [size for _, size in first]
        large: list[tuple[Answer, float, str]] = []
        usual = 0
        for place, (answer, size) in enumerate(chain(first, answers)):
            # A client that stood still, or has no example, says nothing of what is usual.
            others = [x for x in (together if place < len(first) else self.known) if x]
            middle = median(others) if others else size
            if size > self.factor * middle and size > self.room(answer):
                large.append((answer, size, self._too_large(size, len(others), middle)))
                continue
            usual += 1
            self._learn(size)
            yield answer
        yield from self._judge(large, usual + len(large))

    def _judge(self, large: list[tuple[Answer, float, str]], came: int) -> Iterator[Answer]:
        """Of those that are far above the usual, the ones that are let in after all.

        Where most of what came together is, it is the usual that has changed: a learning rate that
        rises from next to nothing, or a B that is zero in the first round alone, does that to all
        clients. They are then held against each other.
        """
        if len(large) < most_of(came):
            for answer, _, why in large:
                self.refuse(answer, why)
            return
        middle = median(size for _, size, _ in large)
        self.report(
            self.key,
            f"{len(large)} of {came} are more than {self.factor:g} times the usual "
            f"{median(self.known or [0.0]):.4g}: their own median, {middle:.4g}, is usual from "
            "now on",
        )
        self.known.clear()
        for answer, size, _ in large:
            if size > self.factor * middle:
                self.refuse(answer, self._too_large(size, len(large), middle))
                continue
            self._learn(size)
            yield answer

    def _learn(self, size: float) -> None:
        self.known.append(size)
        del self.known[:-WINDOW]

    def _too_large(self, size: float, others: int, middle: float) -> str:
        what = f"{size:.4g} long" if self.key == "norm_factor" else f"{size:.4g}"
        return (
            f"{what}, the median of {others} is {middle:.4g}, and at most {self.factor:g} times "
            f"that is let in ({self.key})"
        )


def most_of(came: int) -> int:
    """How many of those that came together can change what is usual: more than half, and a few at
    least, so that a small round with two liars in it cannot."""
    return max(came // 2 + 1, min(came, FEW // 2 + 1), FEWEST)
