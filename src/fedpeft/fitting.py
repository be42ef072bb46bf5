"""Which parts of a plan fit together; what does not is refused, with what to set instead."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedpeft.core.interfaces import Codec, Local, ServerOptimizer, Stage
from fedpeft.errors import PlanError
from fedpeft.registry import find


def shares(local: Local) -> tuple[str, ...]:
    """Prefixes of what a client's correction shares beside the method's tensors."""
    correction = getattr(local, "correction", None)
    return correction.shares if correction is not None else ()


def check_scaffold(local: Local, server: ServerOptimizer) -> None:
    """Raises PlanError where only one side has control variates, or the optimizer makes them meaningless."""
    held, kept = shares(local), server.keeps
    if set(held) != set(kept):
        raise PlanError(
            f"the clients' correction shares {list(held)} beside the trained tensors, the server keeps "
            f'{list(kept)}: for SCAFFOLD set both local.correction and server to "scaffold"'
        )
    optimizer = getattr(local, "optimizer", None)
    if held and optimizer is not None and not isinstance(optimizer, find("optimizer", "sgd")):
        raise PlanError(
            "SCAFFOLD's control variates are mean gradients, which it tells from what SGD's steps add up to; "
            f'those of {type(optimizer).__name__} are no sums of gradients: set local.optimizer to "sgd", or go '
            "without SCAFFOLD"
        )


def check_codecs(stages: Sequence[Stage], uplink: Codec, downlink: Codec) -> None:
    """Raises PlanError for a downlink that drops entries, or a stage with another codec than the uplink's."""
    if getattr(downlink, "sparse", False):
        raise PlanError(
            f"downlink = {downlink}: what goes down are the parameters themselves, not their changes, and "
            "clients would receive most of them as zero. Use a codec that keeps every entry, such as "
            '"dense", "float16", "bfloat16" or "int8"'
        )
    for i, stage in enumerate(stages):
        codec = getattr(stage, "codec", uplink)
        if codec is not uplink and codec != uplink:
            raise PlanError(
                f"stages[{i}].codec = {codec} is not the uplink's {uplink}: what {type(stage).__name__} "
                "keeps for the next round must be what the uplink drops. Give both the same codec, or leave out "
                "the stage's in the plan's file"
            )


def check_batchnorm(model: nn.Module, trained: Sequence[str], private: bool) -> None:
    """Raises PlanError for statistics over a batch that do not travel, or under `private`, where none has a gradient
    of its own."""
    for name, module in model.named_modules():
        if private and isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise PlanError(
                f"{name!r} is a BatchNorm: it computes with all examples of a batch, so that none has a gradient of "
                'its own to clip. Use a model with LayerNorm or GroupNorm, or stages = ["client_dp"]'
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.running_mean" not in trained:
            raise PlanError(
                f"{name!r} is a BatchNorm: its running statistics change in training but do not travel with this "
                'method. Use method = "full" or "scratch", or a model with LayerNorm or GroupNorm'
            )


def check_sum(plan: Any) -> None:
    """Raises PlanError for what a server that sees the sum of the updates alone cannot do."""
    if not plan.exchange.sums:
        return
    if not isinstance(plan.aggregator, find("aggregator", "mean")):
        raise PlanError(
            f"{type(plan.aggregator).__name__} compares the clients' updates, and secure aggregation shows their sum "
            'alone: set aggregator = "mean", or exchange = "fit"'
        )
    if plan.norm_factor not in (None, float("inf")):
        raise PlanError(
            f"norm_factor = {plan.norm_factor}: how long an update is cannot be seen in a sum: leave it out, and set "
            "exchange.max_norm, which honest clients hold themselves to"
        )
    if not isinstance(plan.uplink, find("codec", "dense")):
        raise PlanError(
            f"uplink = {plan.uplink}: masked integers are as random as noise, and only a lossless codec keeps them; "
            'they are rounded already, to exchange.bits: set uplink = "dense"'
        )
    for stage in plan.stages:
        if not isinstance(stage, find("stage", "local_dp")):
            raise PlanError(
                f"{type(stage).__name__} has work to do where each update arrives, or with what the codec drops, and "
                'secure aggregation leaves neither: leave it out, or exchange = "fit"'
            )
    if plan.local_shares:
        raise PlanError(f"{list(plan.local_shares)} are not of the updates' size: leave SCAFFOLD out of a secure sum")
    _check_crowd(plan)


def _check_crowd(plan: Any) -> None:
    """Raises PlanError for a threshold below which two crowds could be told different things, or weights too large."""
    exchange = plan.exchange
    if not plan.cohort < 2 * exchange.threshold <= 2 * plan.cohort:
        raise PlanError(
            f"exchange.threshold = {exchange.threshold} must be more than half of cohort = {plan.cohort}, so that no "
            "two groups of clients can be told different things, and at most all; two thirds are usual"
        )
    if plan.weighting != "uniform" and exchange.max_weight == 1:
        raise PlanError(
            f'weighting = "{plan.weighting}": set exchange.max_weight to the most examples that a client has, from '
            'which the rounding follows, or weighting = "uniform"'
        )
    if exchange.shift(plan.cohort) < 8:
        raise PlanError(
            f"exchange.bits = {exchange.bits} cannot hold {plan.cohort} updates of limit * max_weight = "
            f"{exchange.limit * exchange.max_weight:g}: set bits = 64, or a smaller limit"
        )
