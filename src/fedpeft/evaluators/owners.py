"""Each client's own held-out examples are measured where they lie; counts and sums leave alone.

A client answers with its tally (`compute.tally`) and the sums of the task's metrics. Nothing of one
example leaves, but counts of few examples tell of them: of one it is its class and what the model
makes of it. So this is in `reveals`, and goes with no noise and no secure sum.
"""

from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fedpeft.compute.further import by_place
from fedpeft.compute.held_out import tells_classes
from fedpeft.compute.tally import (
    CONFIDENCE,
    CONFIDENT,
    CONFUSION,
    EXAMPLES,
    SCORES,
    counts_of,
    tally_layout,
)
from fedpeft.core.conversation import METRICS, Answer, Ask, Message
from fedpeft.core.facts import NOISE, Fact
from fedpeft.core.hooks import Handler
from fedpeft.core.rounds import Round
from fedpeft.core.types import ClientId, State, Tensors, Weighted
from fedpeft.evaluators.owner_table import tabulate

PHASE = "evaluate"
MOST = 2**40
"""Nobody has more examples; sums of as many counts as a tally has stay below 2^63."""
SLACK = 1e-6
"""Of a sum of floats."""
REMEDY = 'leave "owners" out of evaluate_at'


@dataclass(frozen=True)
class OwnerEvaluation:
    """All clients are asked how the round's model does on their own held-out examples.

    A client is measured with its own model where it has one: personal tensors, or that of Ditto.
    """

    told_as: ClassVar[str] = "owners"
    asks_everyone: ClassVar[frozenset[str]] = frozenset({PHASE})
    answers_with: ClassVar[Mapping[str, Any]] = {PHASE: {"name": "dense", "deflate": True}}
    reveals: ClassVar[frozenset[str]] = frozenset(
        {
            "how many held-out examples there are here; sums of the task's metrics over "
            "them; where they have classes, how many are of each, which classes the model takes "
            "them for and, if the plan's metrics need it, how many of its scores are how high"
        }
    )
    forbids: ClassVar[Mapping[Fact, str]] = {
        **{
            noise: "evaluate_at: counts of held-out examples come from the owners without noise, "
            f"and {{other}} promises that all is hidden: {REMEDY}"
            for noise in NOISE
        },
        Fact.SUM_ONLY: "evaluate_at: counts of held-out examples come from each owner by itself, "
        f"and {{other}} {{what}}: {REMEDY}",
        Fact.SEVERAL_MODELS: "evaluate_at: owners are sent one model, and {other} {what}: "
        f"{REMEDY}, or leave out {{other}}",
    }

    def handlers(self) -> Mapping[str, Handler]:
        return {PHASE: self._answer}

    def asks_when(self, plan: Any) -> Mapping[str, Collection[int]]:
        """The rounds in which the plan's server may ask, and once after the last."""
        due = [k for k in range(plan.rounds) if plan.is_evaluated(k + 1)]
        return {PHASE: frozenset([*due, plan.rounds])}

    def measure(
        self, state: State, round: Round
    ) -> Generator[Ask, Iterator[Answer], Mapping[str, Any]]:
        """Ask all clients, and give what they said as plain values; see `owner_table`."""
        task = round.plan.task
        classes = tuple(round.classes) if tells_classes(task) else ()
        layout = tally_layout(len(classes), round.plan.metrics_read)
        names = getattr(task, "measures", None)
        places = [place for told in round.plan.hooks("logits_at") for place in told]
        own_check = getattr(task, "check_sums", None)

        def check(client: ClientId, message: Message) -> None:
            _check_tally(message.tensors[PHASE], len(classes))
            _check_totals(message, names, places)
            if own_check is not None:
                own_check(message.values.get("metrics", {}), int(message.tensors[PHASE][EXAMPLES]))

        messages = round.messages(state, round.clients)
        most = max(METRICS, len(names or ()) * (1 + len(places)))
        answers = yield Ask(
            PHASE, messages, lambda _: {PHASE: layout}, check, metrics=most, weight=_examples
        )
        each = {
            answer.client: counts_of(
                answer.message.tensors[PHASE], _totals(answer.message), classes
            )
            for answer in answers
        }
        return tabulate(each, round.plan.metrics, task)

    def _answer(self, client: Any, message: Message) -> Message:
        """A client's counts and sums, of its own held-out examples; of none they are zero."""
        plan = client.site.plan
        classes = len(client.site.classes) if tells_classes(plan.task) else 0
        found = client.score_held_out(classes, plan.metrics_read)
        return Message({PHASE: found.tally}, {"metrics": found.totals})


def _examples(message: Message) -> float:
    return float(message.tensors[PHASE][EXAMPLES])


def _totals(message: Message) -> dict[str, Weighted]:
    """The sums of the task's metrics; that a mean is geometric does not travel."""
    found: Mapping[str, Weighted] = message.values.get("metrics", {})
    return {
        name: Weighted(one.total, one.weight, name == "perplexity") for name, one in found.items()
    }


def _check_tally(tally: Tensors, classes: int) -> None:
    """Raises ValueError for counts that no examples have."""
    examples = int(tally[EXAMPLES])
    if not 0 <= examples <= MOST:
        raise ValueError(f"it counts {examples:,} examples; 0 to {MOST:,} are taken")
    if not classes:
        return
    for name in (CONFUSION, SCORES, CONFIDENT):
        if name in tally:
            _check_entries(name, tally[name], examples)
    of_class, right = tally[CONFUSION].sum(1), int(tally[CONFUSION].diagonal().sum())
    fits = {CONFUSION: int(of_class.sum()) == examples}
    if SCORES in tally:
        positives, negatives = tally[SCORES].sum(-1).unbind(1)
        told = positives.tolist(), negatives.tolist()
        fits[SCORES] = told == (of_class.tolist(), (examples - of_class).tolist())
    if CONFIDENT in tally:
        fits[CONFIDENT] = tally[CONFIDENT].sum(0).tolist() == [right, examples - right]
    for name, fit in fits.items():
        if not fit:
            raise ValueError(f"its counts {name!r} are not of the {examples:,} examples it tells")
    if CONFIDENT in tally:
        _check_confidence(tally[CONFIDENCE], tally[CONFIDENT].sum(1))


def _check_entries(name: str, counts: Tensor, examples: int) -> None:
    """Raises ValueError for a count below 0 or above all examples."""
    low, high = int(counts.min()), int(counts.max())
    if low < 0 or high > examples:
        raise ValueError(
            f"its counts {name!r} go from {low:,} to {high:,}, and it has {examples:,} examples"
        )


def _check_confidence(sums: Tensor, counts: Tensor) -> None:
    """Raises ValueError for sums of probabilities that do not lie in their bins."""
    bins = len(sums)
    for place, (total, count) in enumerate(zip(sums.tolist(), counts.tolist(), strict=True)):
        slack = SLACK * max(1, count)
        if not count * place / bins - slack <= total <= count * (place + 1) / bins + slack:
            raise ValueError(
                f"its probabilities in bin {place} sum to {total:g}, which {count:,} between "
                f"{place / bins:.2g} and {(place + 1) / bins:.2g} cannot"
            )


def _check_totals(message: Message, names: Collection[str] | None, places: Collection[str]) -> None:
    """Raises ValueError for metrics that are not the task's, or not of the examples.

    Args:
      places: of further logits, some of which an owner may have.
    """
    tally, totals = message.tensors[PHASE], message.values.get("metrics", {})
    examples = int(tally[EXAMPLES])
    if not examples and totals:
        raise ValueError(f"it tells {', '.join(totals)[:80]} of no examples")
    if examples and names is not None:
        _check_names(totals, names, places)
    if "accuracy" in totals and CONFUSION in tally:
        _check_accuracy(totals["accuracy"], int(tally[CONFUSION].diagonal().sum()), examples)


def _check_names(
    totals: Mapping[str, Weighted], names: Collection[str], places: Collection[str]
) -> None:
    """Raises ValueError where not just the task's metrics are told, at places that there are."""
    for place, some in by_place(totals).items():
        if set(some) != set(names) or place not in ("", *places):
            told = ", ".join(sorted(totals))[:80] or "nothing"
            raise ValueError(f"it tells {told}; this task's metrics are {', '.join(sorted(names))}")


def _check_accuracy(told: Weighted, right: int, examples: int) -> None:
    """Raises ValueError for an accuracy that is not the confusion matrix's."""
    if abs(told.total - right) > 0.5 or abs(told.weight - examples) > 0.5:
        raise ValueError(
            f"its accuracy is {told.total:g} of {told.weight:g}, and by its confusion matrix "
            f"{right:,} of {examples:,}"
        )
