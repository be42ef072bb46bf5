"""What a plan trains and on what: the task's model with the method in it, of which only what the
loss depends on is trained; and those of the data's examples that the task learns from."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from fedpeft.compute.batch_statistics import freeze_statistics
from fedpeft.compute.first_pass import leave_out_unreached
from fedpeft.compute.frozen_encoder import still_encoder
from fedpeft.compute.tied_weights import check_tied, tied_to
from fedpeft.compute.trainable import mark_new_layers, new_layers
from fedpeft.core.seeds import fold, seed_torch
from fedpeft.core.types import Examples
from fedpeft.data.fitting import leave_out_unfit
from fedpeft.errors import PlanError
from fedpeft.plan.values import quantizes


def load_examples(data: Any, task: Any) -> Examples:
    """All of a source but what the task names as unfit, which is counted and told.

    Raises:
      DataError: the data cannot be read, or nothing is left of it to train on.
    """
    return leave_out_unfit(data.load(), task)


def build_model(plan: Any, classes: Sequence[str]) -> nn.Module:
    """The same weights on the server and on every client, frozen ones included.

    Layers that the base's checkpoint never had are trained beside the head, whatever the method.
    What the task's loss does not depend on is left out. A frozen encoder before them draws no
    dropout.

    Raises:
      PlanError: the model cannot be made, the method does not fit it, or nothing would be learned.
    """
    with seed_torch(fold(plan.seed, "model")):
        model: nn.Module = plan.task.build(classes, plan.method.pretrained)
        # Everything is frozen first: a method then marks what it trains.
        model.requires_grad_(False)
        noted = new_layers(model)
        beside = [x for name, x in model.named_parameters() if name in set(noted.beside)]
        # By identity, as methods may give the base's parameters other names.
        halves = {id(x) for x in model.parameters() if x.dtype == torch.bfloat16}
        tied = tied_to(model, plan.method)
        try:
            model = plan.method.inject(model)
        except RuntimeError as error:  # torch's word for codes that are asked for a gradient
            if not quantizes(plan.task):
                raise
            raise PlanError(
                f"{type(plan.method).__name__} cannot train what is quantized: leave out "
                f'task.quantize, or the method, e.g. for "lora" ({error})'
            ) from None
    check_tied(model, plan.method, tied)
    if halves:
        _widen_added(model, halves, type(plan.method).__name__)
    # a wrapper, such as a prefix needs, is another module
    mark_new_layers(model, head=noted.head, beside=noted.beside, headless=noted.headless)
    if getattr(plan.method, "head", "auto") != "":
        for parameter in beside:
            parameter.requires_grad_(True)
    leave_out_unreached(plan.task, plan.method, model)
    names = plan.method.names(model)
    _freeze_batchnorm(model, names, private=plan.local.event is not None)
    still_encoder(model, names, getattr(plan.method, "head", "auto") or "auto")
    return model


def _widen_added(model: nn.Module, base: Collection[int], method: str) -> None:
    """Let what a method added to a base in bfloat16 be float32; in place.

    Args:
      base: the identities of the base's parameters that are held in bfloat16.

    Raises:
      PlanError: the method trains one of these.
    """
    for name, parameter in model.named_parameters():
        if id(parameter) in base and parameter.requires_grad:
            raise PlanError(
                f"{method} cannot train {name!r}, which is held in bfloat16, where small steps "
                "are rounded away: leave out task.quantize, or take a method that adds tensors "
                'of its own, e.g. "lora"'
            )
    for x in (*model.parameters(), *model.buffers()):
        if x.dtype == torch.bfloat16 and id(x) not in base:
            x.data = x.data.float()


def _freeze_batchnorm(model: nn.Module, names: Sequence[str], private: bool) -> None:
    """Raises PlanError for statistics over a batch under `private`, where no example has a gradient
    of its own."""
    moving = freeze_statistics(model, set(names))
    if private and moving:
        raise PlanError(
            f"{moving[0]!r} is a BatchNorm: it computes with all examples of a batch, "
            "so that none has a gradient of its own to clip. Use a method that leaves its "
            'statistics frozen, such as "lora", "bias" or "head", a model with LayerNorm or '
            'GroupNorm, or stages = ["client_dp"]'
        )
