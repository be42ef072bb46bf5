"""A plan's model on its device, tried with one batch of the data before any client trains."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from logging import getLogger

import torch
from torch import nn

from fedpeft.compute.checkpointing import enable_checkpointing
from fedpeft.compute.device_memory import (
    GIVEN_BACK,
    REUSED,
    give_back_freed,
    reuse_freed,
)
from fedpeft.compute.first_pass import check_pass
from fedpeft.compute.frozen_linear import gains_by_packing, prepare_frozen, slowed_by
from fedpeft.compute.trainable import is_statistic
from fedpeft.core.low_rank import is_factor
from fedpeft.core.tensors import bytes_moved, count, move_to
from fedpeft.core.types import Tensors
from fedpeft.errors import PlanError
from fedpeft.plan.plan import Plan
from fedpeft.plan.values import quantizes

TRIED = 2
"""Examples of the batch that is tried."""


def tune_heap(plan: Plan) -> None:
    """Let freed memory be kept for the next step, or given back where a plan spares memory."""
    if _spares_memory(plan):
        give_back_freed()
    else:
        reuse_freed()


def kept_below(plan: Plan) -> int:
    """The size in bytes below which a freed block of the plan's process is kept; larger ones go
    back to the system. It is glibc's, see `tune_heap`."""
    return GIVEN_BACK if _spares_memory(plan) else REUSED


def _spares_memory(plan: Plan) -> bool:
    return plan.compute.checkpointing or quantizes(plan.task)


def prepare_model(plan: Plan, classes: Sequence[str], rows: Tensors, device: str) -> nn.Module:
    """The plan's model with its frozen weights laid out; `rows` are a task's prepared examples.

    Raises:
      PlanError: the model cannot be made, the plan's routing names what it does not train, or the
        first examples do not go through it.
    """
    model = plan.model(classes).to(device)
    names = plan.method.names(model)
    check_trained(plan, names)
    prepare_compute(plan, model, names)
    if plan.compute.micro_batch:
        _check_parts(names)
    if rows and count(rows):
        few = bytes_moved({name: x[:TRIED] for name, x in rows.items()}, device)
        batch = move_to({**plan.task.batch(few, None), "mask": torch.ones(count(few))}, device)
        check_pass(plan.task, plan.method, model, batch)
        if plan.compute.checkpointing:
            example = getattr(plan.task, "example", None)  # as little as can be told by
            small = batch if example is None else move_to(example(), device)
            enable_checkpointing(plan.task, model, names, {"mask": torch.ones(1), **small})
    return model


def prepare_compute(plan: Plan, model: nn.Module, trained: Sequence[str]) -> None:
    """Prepare how frozen weights are multiplied, and say what is slow of it here."""
    how = plan.compute
    on_cpu = all(x.device.type == "cpu" for x in model.parameters())
    if on_cpu and (words := slowed_by(how.base_dtype)):
        getLogger("fedpeft").warning("%s", words)
    prepare_frozen(model, trained, how.base_dtype, how.pack and gains_by_packing(how.base_dtype))


def _check_parts(names: Sequence[str]) -> None:
    """Raises PlanError for statistics over a batch, which those of its parts are not."""
    if moving := [name for name in names if is_statistic(name)]:
        raise PlanError(
            f"compute.micro_batch: {moving[0]!r} is measured over a whole batch, and a part of it "
            "has other statistics: leave micro_batch out, or take a method that leaves them "
            'frozen, such as "lora"'
        )


def check_trained(plan: Plan, names: Sequence[str]) -> None:
    """Make sure that the plan's routing fits the names of what is trained.

    Raises:
      PlanError: it names what is not trained, or gives ranks to what has none.
    """
    _check_personal(plan, names)
    _check_ranks(plan, names)


def _check_personal(plan: Plan, names: Sequence[str]) -> None:
    for pattern in plan.personal:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise PlanError(
                f"personal = {pattern!r} matches no trained tensor; there are "
                f"{', '.join(names[:8])} ..."
            )


def _check_ranks(plan: Plan, names: Sequence[str]) -> None:
    factors = [name for name in names if is_factor(name)]
    if plan.ranks and not factors:
        raise PlanError(
            f"ranks = {list(plan.ranks)}: {type(plan.method).__name__} trains no low-rank factors"
        )
    if own := [name for name in factors if plan.ranks and plan.personal_of({name: torch.empty(0)})]:
        raise PlanError(
            f"personal: ranks are of factors that travel, and {own[0]!r} does not: choose one"
        )
