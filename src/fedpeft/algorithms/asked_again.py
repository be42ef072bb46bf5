"""A merge that needs one more answer from each client that trained: a question after the training,
and the round told again with the merge in the place of each update."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from fedpeft.core.conversation import (
    DELTA,
    PARAMS,
    Answer,
    Ask,
    Check,
    Flow,
    Message,
    record,
    replay,
)
from fedpeft.core.hooks import Inner
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, State, Tensors

Merge: TypeAlias = Callable[[Sequence[Tensors], Sequence[Tensors], Sequence[float]], Tensors]
"""The merged change, of the clients' changes, what each told of them, and what each counts."""

Length: TypeAlias = Callable[[Message], float]


def merge_anew(
    flow: tuple[Inner, State, Round],
    phase: str,
    expects: Callable[[Tensors], Layout],
    check: Check,
    merge: Merge,
    length: Length | None = None,
    weight: Length | None = None,
) -> Flow:
    """The inner algorithm's round, merged again with what its clients then tell of what they
    trained, which they get back.

    Without answers to that the inner algorithm's own merge stands.

    Args:
      expects: the layout of an answer, by the client's change.
      length: how long an answer is, where answers that are far longer than usual are refused.
      weight: how much an answer claims to count, where claims far above the usual are refused.
    """
    inner, state, round = flow
    heard: list[tuple[Ask, Sequence[Answer]]] = []
    own = yield from record(inner(state, round), heard)
    came = [answer for ask, answers in heard if ask.updates for answer in answers]
    if own.params is state.params or not came:  # nothing changed
        return own
    answers = yield replace(_ask(came, phase, expects, check), length=length, weight=weight)
    merged = _merged(came, {one.client: one.message.tensors[phase] for one in answers}, merge)
    if not merged:
        return own
    again = [(ask, [_with(merged, one) for one in answers]) for ask, answers in heard]
    return replay(inner(state, round.silent()), again)


def _ask(
    came: Sequence[Answer],
    phase: str,
    expects: Callable[[Tensors], Layout],
    check: Check,
) -> Ask:
    """What each client trained, back to it."""
    layouts = {answer.client: expects(answer.message.tensors[DELTA]) for answer in came}
    to = {answer.client: _trained(answer) for answer in came}
    return Ask(phase, to, lambda client: {phase: layouts[client]}, check)


def _merged(came: Sequence[Answer], told: Mapping[ClientId, Tensors], merge: Merge) -> Tensors:
    """The merged change of those who told; empty if nobody did."""
    sure = [answer for answer in came if answer.client in told]
    if not sure:
        return {}
    changes = [answer.message.tensors[DELTA] for answer in sure]
    weights = [float(answer.message.values.get("weight", 1.0)) for answer in sure]
    return merge(changes, [told[answer.client] for answer in sure], weights)


def _trained(answer: Answer) -> Message:
    """What a client trained, as a message to it."""
    sent, delta = answer.sent.tensors, answer.message.tensors[DELTA]
    params = {n: x + delta[n] if n in delta else x for n, x in sent[PARAMS].items()}
    return Message({**sent, PARAMS: params})


def _with(merged: Tensors, answer: Answer) -> Answer:
    if DELTA not in answer.message.tensors:
        return answer
    tensors = {**answer.message.tensors, DELTA: merged}
    return replace(answer, message=replace(answer.message, tensors=tensors))
