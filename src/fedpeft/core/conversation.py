"""A round is a conversation: the server asks, clients answer, and the next state follows.

The server's half of a round is a generator. It yields an `Ask`, is sent the `Answer`s, and returns
the next `State`; it knows nothing of engines, bytes or networks. `httpx` writes authentication of
several messages so. An algorithm wraps another one by passing its questions on.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.core.views import View

PARAMS, DELTA = "params", "delta"
"""The main group of a message, on the way down and on the way up."""
MAIN = (PARAMS, DELTA)
METRICS = 64
"""Of an answer, where the question does not say."""


@dataclass(frozen=True)
class Message:
    """What crosses between the server and one client, in either direction.

    Attributes:
      tensors: by group, e.g. "params" on the way down and "delta" on the way up.
      values: plain JSON values by name; "weight" is a number and "metrics" holds `Weighted` values.
    """

    tensors: Mapping[str, Tensors] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


Expected: TypeAlias = Mapping[str, Layout]
"""By group, the layout that a message's tensors must have."""
Check: TypeAlias = Callable[[ClientId, Message], None]
"""It raises ValueError for an answer that an honest client cannot have given."""


def accept(client: ClientId, message: Message) -> None:
    """The check that takes every answer whose layout fits."""


@dataclass(frozen=True)
class Ask:
    """One question to some clients. Clients that get the same `Message` object get the same bytes.

    Attributes:
      phase: the name by which a client finds its handler.
      expects: the layout of a client's answer.
      check: what an answer must be beside that.
      length: how long an answer is; answers far longer than usual are refused (`norm_factor`).
      weight: how much an answer claims to count; claims far above the usual are refused
        (`weight_factor`).
      updates: whether the answers are updates, to which stages and the norm bound of all rounds
        apply.
      rounds: the round for which a client answers, where it is another than the present one.
      views: what each client sees, for what is asked to "fit".
      metrics: how many an answer may hold at most.
    """

    phase: str
    to: Mapping[ClientId, Message]
    expects: Callable[[ClientId], Expected]
    check: Check = accept
    length: Callable[[Message], float] | None = None
    updates: bool = False
    rounds: Mapping[ClientId, int] = field(default_factory=dict)
    views: Mapping[ClientId, View] = field(default_factory=dict)
    metrics: int = METRICS
    weight: Callable[[Message], float] | None = None


@dataclass(frozen=True)
class Answer:
    """What one client said, decoded and admitted.

    Attributes:
      client: who it is from; empty for a sum of several clients.
      sent: what the client had received, as the downlink's codec leaves it.
      members: of a sum, those who are in it.
    """

    client: ClientId
    message: Message
    sent: Message = field(default_factory=Message)
    members: tuple[ClientId, ...] = ()


Flow: TypeAlias = Generator[Ask, Iterator[Answer], State]
"""The server's half of a round."""


def converse(flow: Flow, post: Callable[[Ask], Iterator[Answer]]) -> State:
    """Carry each question of a round to its clients and the answers back, until the state comes."""
    answers: Iterator[Answer] | None = None
    while True:
        try:
            ask = next(flow) if answers is None else flow.send(answers)
        except StopIteration as end:
            state: State = end.value
            return state
        answers = post(ask)


def record(flow: Flow, heard: list[tuple[Ask, Sequence[Answer]]]) -> Flow:
    """Pass a conversation on to who asks, and remember it in `heard`."""
    answers: Iterator[Answer] | None = None
    while True:
        try:
            ask = next(flow) if answers is None else flow.send(answers)
        except StopIteration as end:
            state: State = end.value
            return state
        # Answers come lazily and can be read once; here the flow reads them, and a replay does
        # again.
        came = list((yield ask))
        heard.append((ask, came))
        answers = iter(came)


def changed_answers(flow: Flow, change: Callable[[Answer], Answer]) -> Flow:
    """Pass a conversation on, with each update that comes in changed."""
    answers: Iterator[Answer] | None = None
    while True:
        try:
            ask = next(flow) if answers is None else flow.send(answers)
        except StopIteration as end:
            state: State = end.value
            return state
        came = yield ask
        # Lazily, so that the updates of a whole cohort are never in memory at once.
        answers = map(change, came) if ask.updates else came


def replay(flow: Flow, heard: Sequence[tuple[Ask, Sequence[Answer]]]) -> State:
    """The state to which a conversation leads with remembered answers; nobody is asked.

    Raises:
      ValueError: the flow asks for another phase than was asked then, or for more.
    """
    left = iter(heard)

    def answered(ask: Ask) -> Iterator[Answer]:
        was, came = next(left, (None, ()))
        if was is None or was.phase != ask.phase:
            raise ValueError(f"{ask.phase!r} was not asked in the conversation that is replayed")
        return iter(came)

    return converse(flow, answered)
