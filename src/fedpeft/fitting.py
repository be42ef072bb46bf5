"""Which parts of a plan fit together; what does not is refused, with what to set instead."""

from collections.abc import Sequence

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


def check_pace(buffer: int | None, **settings: float | None) -> None:
    """Raises PlanError for asynchronous steps that cannot be taken, or settings of theirs without them."""
    given = {key: x for key, x in settings.items() if x is not None}
    if buffer is None and given:
        raise PlanError(f"{' and '.join(given)}: only asynchronous steps have it; set `buffer`, or leave it out")
    if buffer is not None and buffer < 1:
        raise PlanError(f"buffer must be at least 1, got {buffer}")
    for key, x in given.items():
        if not 0 <= x < float("inf"):
            raise PlanError(f"{key} must not be negative, and be finite, got {x}")


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
