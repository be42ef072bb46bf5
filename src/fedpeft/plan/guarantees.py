"""What a plan must be for its noise to mean what it says; everything else is refused, with what to
set instead."""

from collections.abc import Sequence
from typing import Any

from fedpeft.core.interfaces import Aggregator, Local, ServerOptimizer, Stage
from fedpeft.core.types import Event
from fedpeft.errors import PlanError
from fedpeft.plan.tables import Privacy
from fedpeft.registry import find


def private_part(local: Local, stages: Sequence[Stage]) -> Local | Stage | None:
    """The one part that adds noise, if any.

    Raises:
      PlanError: there are several.
    """
    parts: list[Local | Stage] = [local, *stages]
    found = [part for part in parts if part.event is not None]
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


def check_calibration(plan: Any, event: Event | None) -> None:
    """Raises PlanError for parts that break what the noise is calibrated to."""
    if event is None or not event.accounted:
        return
    if plan.weighting != "uniform":
        raise PlanError(
            'weighting = "examples" tells how many examples a client has, and lets one count more '
            "than the noise is "
            'made for: with differential privacy set weighting = "uniform"'
        )
    if event.unit == "client":
        if plan.personal:
            raise PlanError(
                f"personal = {list(plan.personal)}: those tensors have no noise, and rounds.jsonl "
                "would tell how well "
                "each client's own model does: leave it out of a plan with client-level privacy"
            )
        _check_order(plan.stages)
    if event.central:
        _check_mean(plan.aggregator, plan.server, plan.admission.min_replies)
        if plan.norm_bound != float("inf"):
            raise PlanError(
                f"norm_factor = {plan.admission.norm_factor}: whether a client is let in would depend on the "
                "others, which the "
                "noise is not made for, and the clipping bounds the length already: leave it out"
            )


def _check_order(stages: Sequence[Stage]) -> None:
    if stages[-1].event is None:
        raise PlanError(
            f"{type(stages[-1]).__name__} comes after the noise or the clipping: put that stage "
            "last"
        )
    for stage in stages:
        if stage.remembers:
            raise PlanError(
                f"{type(stage).__name__} sends later what the clipping cut off now, for ever: "
                "leave it out of a plan "
                "with client-level privacy"
            )


def _check_mean(aggregator: Aggregator, server: ServerOptimizer, min_replies: int) -> None:
    if server.keeps:
        raise PlanError(
            f"{type(server).__name__} shares {list(server.keeps)} beside the update, scaled by how "
            "many answered, "
            "which the noise is not made for: set server and local.correction to something else "
            'than "scaffold"'
        )
    if not isinstance(aggregator, find("aggregator", "mean")):
        raise PlanError(
            "the noise is made for a mean: one client moves the result of "
            f"{type(aggregator).__name__} by more than "
            'clip_norm / clients. Set aggregator = "mean"'
        )
    if min_replies != 1:
        raise PlanError(
            f"min_replies = {min_replies}: a round that is given up for want of one reply tells of "
            "that client. Set it "
            "to 1"
        )
