"""What a plan's own values must be, whichever parts it has."""

from collections.abc import Sequence
from typing import Any

from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.interfaces import Stage
from fedpeft.core.types import Event
from fedpeft.errors import PlanError, unknown
from fedpeft.plan.tables import Privacy
from fedpeft.registry import names

WEIGHTINGS = ("examples", "uniform", "batches")


def check_values(plan: Any) -> None:
    """Raises PlanError for a value out of range."""
    _check_counts(plan)
    if not 0 <= plan.seed < 2**63:
        raise PlanError(f"seed must be at least 0 and below 2^63, got {plan.seed}")
    if plan.admission.min_replies > plan.cohort and not plan.asynchronous:
        raise PlanError(
            f"admission.min_replies = {plan.admission.min_replies} is more than the cohort = "
            f"{plan.cohort} that is asked in a round, so that no round could change anything: "
            "lower one, or raise the other"
        )
    if plan.compute.micro_batch:
        _check_uncoupled(plan)
    for key, known in (("weighting", WEIGHTINGS), ("engine", names("engine"))):
        if getattr(plan, key) not in known:
            raise PlanError(unknown(key, getattr(plan, key), known))


def _check_uncoupled(plan: Any) -> None:
    """Raises PlanError for what a part of a batch does not have, or is not made of examples."""
    coupled = [term for term in getattr(plan.local, "terms", ()) if term.couples_examples]
    if getattr(plan.task, "couples_examples", False):
        coupled.append(plan.task)
    if coupled:
        raise PlanError(
            f"compute.micro_batch: {type(coupled[0]).__name__} lets the examples of a batch change "
            "each other's loss, and a part of the batch has other examples: leave one of them out"
        )
    if Fact.PACKED in offered_by(plan.task) or hasattr(plan.task, "compares_with_base"):
        raise PlanError(
            f"compute.micro_batch: the rows of a batch of {type(plan.task).__name__} are not its "
            "examples here (packed, or pairs), so that a part of it cannot be cut off: leave out "
            "micro_batch, or task.packing, and set a smaller local.batch_size"
        )


def _check_counts(plan: Any) -> None:
    """Raises PlanError for too few rounds, clients or evaluations."""
    for key in ("rounds", "cohort", "evaluate_every"):
        least = 0 if key == "rounds" else 1
        if getattr(plan, key) < least:
            raise PlanError(f"{key} must be at least {least}, got {getattr(plan, key)}")
    if not plan.rounds:
        _check_no_rounds(plan)
    if plan.patience < 0 or (plan.patience and not plan.select):
        raise PlanError(
            f"patience = {plan.patience}: it is a number of evaluations without a better one, 0 "
            'for never, and select says by which metric, e.g. select = "accuracy"'
        )


def _check_no_rounds(plan: Any) -> None:
    """Raises PlanError where a plan that trains nobody has nothing to do, or an algorithm that
    needs rounds beside one that does not."""
    begins = [one for one in plan.algorithms if hasattr(one, "before_rounds")]
    if not begins and not plan.asking:
        raise PlanError(
            "rounds must be at least 1, got 0: without them nobody trains, which is for a head "
            'from sums of features, e.g. algorithms = ["class_means"], or to measure a model, '
            'evaluate_at = ["owners"]'
        )
    others = [type(one).__name__ for one in plan.algorithms if one not in begins]
    if begins and others:
        raise PlanError(
            f"rounds = 0 trains nobody, and {others[0]} is about training: leave it out, or "
            "algorithms = [] to measure a model as it is"
        )


def check_codecs(plan: Any) -> None:
    """Raises PlanError for a downlink that drops entries that may not be zero, or a stage with
    another codec than the uplink's."""
    if getattr(plan.uplink, "follows", False):
        raise PlanError(
            f"uplink = {plan.uplink}: what goes up is a change already: set the codec in it as the "
            'uplink, with stages = ["error_feedback"]'
        )
    if getattr(plan.downlink, "reads_sent", False):
        raise PlanError(
            f"downlink = {plan.downlink}: what goes down are weights already: set the codec in it "
            "as the downlink"
        )
    if Fact.SPARSE in offered_by(plan.downlink):
        _check_sparse_downlink(plan)
    for i, stage in enumerate(plan.stages):
        codec = getattr(stage, "codec", plan.uplink)
        if codec is not plan.uplink and codec != plan.uplink:
            raise PlanError(
                f"stages[{i}].codec = {codec} is not the uplink's {plan.uplink}: what "
                f"{type(stage).__name__} keeps for the next round must be what the uplink drops. "
                "Give both the same codec, or leave out the stage's in the plan's file"
            )


def _check_sparse_downlink(plan: Any) -> None:
    """Raises PlanError for a downlink that drops entries, unless they are of low-rank factors: a
    zero in one only makes the adapter smaller (FLASC, arXiv:2406.05233)."""
    neutral = Fact.LOW_RANK in offered_by(plan.method)
    if not neutral or Fact.MIXES_ENTRIES in offered_by(plan.downlink):
        raise PlanError(
            f"downlink = {plan.downlink}: what goes down are the parameters themselves, not their "
            "changes, and clients would receive most of them as zero. Use a codec that keeps every "
            'entry, such as "dense", "float16", "bfloat16" or "int8"; or "topk" with method = '
            '"lora", whose factors may have zeros'
        )
    if Fact.FACTORS in offered_by(plan.aggregator):
        raise PlanError(
            f"downlink = {plan.downlink}: {type(plan.aggregator).__name__} merges the factors that "
            "clients trained, which have zeros in other places than the server's: set aggregator "
            '= "mean"'
        )


def check_order(stages: Sequence[Stage]) -> None:
    """Raises PlanError for a stage after the noise or the clipping that hides clients."""
    # What changes an update after it was clipped could make it longer than its noise is made for.
    hiding = [stage for stage in stages if stage.event is not None and stage.event.unit == "client"]
    if hiding and stages[-1].event is None:
        raise PlanError(
            f"{type(stages[-1]).__name__} comes after the noise or the clipping: put "
            f"{type(hiding[0]).__name__} last"
        )


def shares_optimizer_state(plan: Any) -> bool:
    """Whether what a client's optimizer remembers goes over to the next client, and to the next
    round."""
    return bool(getattr(plan.local, "as_published", False))


def remembers(plan: Any) -> bool:
    """Whether clients keep something between rounds or messages."""
    return remembers_training(plan) or bool(getattr(plan.exchange, "remembers_clients", False))


def remembers_training(plan: Any) -> bool:
    """Whether clients keep something of each round in which they train: an exchange keeps what is
    its own, such as keys, apart from that."""
    kept = plan.local_shares or plan.personal
    several = plan.rounds > 1 and getattr(plan.local, "remembers", False)
    staged = any(stage.remembers for stage in plan.stages)
    others = (one for one in plan.parts if one is not plan.exchange)
    told = any(getattr(one, "remembers_clients", False) for one in others)
    return bool(kept or several or staged or told)


def quantizes(task: Any) -> bool:
    """Whether the base's weights are codes."""
    return getattr(task, "quantize", None) is not None


def private_part(parts: Sequence[Any]) -> Any:
    """The one part that adds noise, if any.

    Raises:
      PlanError: there are several.
    """
    found = [part for part in parts if getattr(part, "event", None) is not None]
    if len(found) > 1:
        listed = " and ".join(type(part).__name__ for part in found)
        raise PlanError(
            f"{listed} each give a guarantee of their own, and a run reports one: choose one of "
            "them"
        )
    return found[0] if found else None


def check_budget(event: Event | None, privacy: Privacy) -> None:
    """Raises PlanError where ε, δ or the noise is missing, out of range, or means nothing."""
    target, delta = privacy.target_epsilon, privacy.delta
    if event is None or not event.accounted:
        given = [key for key, x in (("target_epsilon", target), ("delta", delta)) if x]
        if given:
            raise PlanError(
                f"{' and '.join(given)}: nothing in this plan gives a guarantee. For one example's "
                'privacy set local = "dp_sgd"; for a client\'s, stages = ["client_dp"] or '
                '["local_dp"]'
            )
        return
    if delta is None or not 0 < delta < 1:
        raise PlanError(
            "a private plan needs delta, the probability with which the guarantee may fail, "
            f"between 0 and 1; got {delta}. Well below 1 / the number of {event.unit}s is usual"
        )
    if target is not None and not 0 < target < float("inf"):
        raise PlanError(f"target_epsilon must be positive and finite, got {target}")
    if target is None and event.noise_multiplier is None:
        raise PlanError(
            "a private plan needs target_epsilon, from which the noise follows, or a "
            "noise_multiplier"
        )
