"""Which parts and settings of a plan fit together: one checker that reads their facts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedpeft.core.facts import NOISE, Fact, forbidden_by, needed_by, offered_by
from fedpeft.errors import PlanError

RULES: Mapping[Fact, Mapping[Fact, str]] = {
    **{
        noise: {
            Fact.WEIGHTS_BY_SIZE: 'weighting = "examples" tells how many examples a client has, '
            "and lets one count more than the noise is made for: with differential privacy set "
            'weighting = "uniform"',
            Fact.REVEALS: "{other} {what}, without noise: leave it out of a private plan",
        }
        for noise in NOISE
    }
}
"""What goes with no noise, whichever part adds it."""
EXAMPLES: Mapping[Fact, str] = {
    Fact.COUPLES_EXAMPLES: "{other} {what}, so that none has a gradient of its own to clip: leave "
    'it out, or hide clients instead, with stages = ["client_dp"]',
    Fact.PACKED: "{other} {what}, so that none has a gradient of its own to clip: leave out "
    "task.packing",
}
"""What goes with no noise that hides examples."""
CLIENTS: Mapping[Fact, str] = {
    Fact.PERSONAL: "personal tensors have no noise, and rounds.jsonl would tell how well each "
    "client's own model does: leave {other} out of a plan with client-level privacy",
    Fact.SENDS_LATER: "{other} sends later what the clipping cut off now, for ever: leave it out "
    "of a plan with client-level privacy",
}
"""What goes with no noise that hides clients."""
CENTRAL: Mapping[Fact, str] = {
    Fact.CONTROL: "{other} shares control variates beside the update, scaled by how many "
    "answered, which the noise is not made for: set local.correction to something else than "
    '"scaffold"',
    Fact.MIXED_TENSORS: "{other} {what}, so that the mean of a tensor is over fewer clients than "
    'the noise is made for: set by = "round" and one count, or leave it out',
    Fact.GIVES_UP: "min_replies: a round that is given up for want of one reply tells of that "
    "client. Set it to 1",
    Fact.LENGTH_TELLS: "{other} {what}, and rounds.jsonl has the bytes of each client, without "
    'noise: use a codec whose length follows from the plan, such as "int8", "sign" or "topk"',
    Fact.JUDGES_LENGTH: "norm_factor: whether a client is let in would depend on the others, which "
    "the noise is not made for, and the clipping bounds the length already: leave it out",
}
"""What goes with no noise that the server adds."""


@dataclass(frozen=True)
class Holder:
    """A part or a setting, with its facts.

    Attributes:
      name: what people call it.
    """

    name: str
    offers: frozenset[Fact]
    needs: Mapping[Fact, str]
    forbids: Mapping[Fact, str]


def check_fit(plan: Any) -> None:
    """Raises PlanError, with a remedy, for the first two parts of a plan that do not fit."""
    check_holders(list(_holders(plan)), type(plan.aggregator).__name__)


def check_holders(holders: Sequence[Holder], aggregator: str = "the aggregator") -> None:
    """Raises PlanError for the first two that do not fit, or for one that lacks another.

    Args:
      aggregator: what people call it; what a part needs is mostly another one.
    """
    for one in holders:
        for other in holders:  # both orders, as either may be the one that forbids
            if other is not one:
                _check_pair(one, other)
    for one in holders:
        for fact, words in one.needs.items():
            if not any(fact in other.offers for other in holders if other is not one):
                raise PlanError(words.format(one=one.name, aggregator=aggregator))


def refuse(plan: Any, forbids: Mapping[Fact, str]) -> None:
    """Raises PlanError where a setting, such as one file for each client, has no place for a fact.

    Args:
      forbids: by fact why it has none, and what to do.
    """
    setting = Holder("this", frozenset(), {}, forbids)
    for holder in _holders(plan):
        _check_pair(setting, holder)


def offers(plan: Any) -> frozenset[Fact]:
    """All that is true of a plan's parts and settings."""
    return frozenset(fact for holder in _holders(plan) for fact in holder.offers)


def reads_classes(task: Any) -> bool:
    """Whether a task learns the classes of the data: so its loader says, or where it has none its
    own attribute `reads_classes`, which is true where it is not there."""
    loader = getattr(task, "loader", None)
    return bool(getattr(task if loader is None else loader, "reads_classes", True))


def _check_pair(one: Holder, other: Holder) -> None:
    for fact, words in one.forbids.items():
        if fact in other.offers:
            raise PlanError(words.format(one=one.name, other=other.name, what=fact.value))


def _holders(plan: Any) -> Iterator[Holder]:
    for part in plan.parts:
        holder = holder_of(part)
        down = (plan.downlink, getattr(plan.downlink, "codec", None))
        if any(part is one for one in down) and part is not plan.uplink:
            facts = holder.offers - {Fact.LOSSY}  # the server knows what became of what it sent
            holder = replace(holder, offers=facts)
        if part is plan.local and plan.rounds == 1:
            facts = holder.offers - {Fact.REMEMBERS}  # there is no other round to remember it for
            holder = replace(holder, offers=facts)
        yield holder
    for name, set_ in _settings(plan):
        yield Holder(name, frozenset(set_), {}, {})


def holder_of(part: Any) -> Holder:
    """A part's facts, with the rules that follow from them."""
    facts = offered_by(part)
    forbids = {**forbidden_by(part)}
    for fact in facts:
        forbids |= RULES.get(fact, {})
    if Fact.EXAMPLE_NOISE in facts:
        forbids |= EXAMPLES
    if facts & {Fact.CLIENT_NOISE, Fact.SERVER_NOISE}:
        forbids |= CLIENTS
    if Fact.SERVER_NOISE in facts:
        forbids |= CENTRAL
    return Holder(type(part).__name__, facts, needed_by(part), forbids)


def _settings(plan: Any) -> Iterator[tuple[str, Sequence[Fact]]]:
    """What is true of the plan's own keys."""
    yield "weighting", [Fact.WEIGHTS_BY_SIZE] * (plan.weighting != "uniform")
    yield "cohort", [Fact.MANY_AT_A_TIME] * (plan.cohort != 1)
    yield "engine", [Fact.MANY_PROCESSES] * (plan.engine != "inprocess")
    yield "min_replies", [Fact.GIVES_UP] * (plan.admission.min_replies > 1)
    yield "norm_factor", [Fact.JUDGES_LENGTH] * (plan.norm_bound != float("inf"))
    yield "schedule", [Fact.SPANS_ROUNDS] * bool(plan.schedule)
    quantized = getattr(plan.task, "quantize", None) is not None
    yield "task.quantize", [Fact.QUANTIZED] * quantized
