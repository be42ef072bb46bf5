"""The model of a plan: the task's, with the method in it, and only what the loss depends on
trained."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from fedpeft.compute.batch_statistics import freeze_statistics
from fedpeft.compute.first_pass import leave_out_unreached
from fedpeft.compute.trainable import mark_new_layers, new_layers
from fedpeft.core.seeds import fold, seed_torch
from fedpeft.errors import PlanError
from fedpeft.plan.values import quantizes


def build_model(plan: Any, classes: Sequence[str]) -> nn.Module:
    """The same weights on the server and on every client, frozen ones included.

    Layers that the base's checkpoint never had are trained beside the head, whatever the method.
    What the task's loss does not depend on is left out.

    Raises:
      PlanError: the model cannot be made, the method does not fit it, or nothing would be learned.
    """
    with seed_torch(fold(plan.seed, "model")):
        model: nn.Module = plan.task.build(classes, plan.method.pretrained)
        model.requires_grad_(False)
        noted = new_layers(model)
        beside = [x for name, x in model.named_parameters() if name in set(noted.beside)]
        halves = {id(x) for x in model.parameters() if x.dtype == torch.bfloat16}
        try:
            model = plan.method.inject(model)
        except RuntimeError as error:  # torch's word for codes that are asked for a gradient
            if not quantizes(plan.task):
                raise
            raise PlanError(
                f"{type(plan.method).__name__} cannot train what is quantized: leave out "
                f'task.quantize, or the method, e.g. for "lora" ({error})'
            ) from None
    if halves:
        _widen_added(model, halves, type(plan.method).__name__)
    # a wrapper, such as a prefix needs, is another module
    mark_new_layers(model, head=noted.head, beside=noted.beside, headless=noted.headless)
    if getattr(plan.method, "head", "auto") != "":
        for parameter in beside:
            parameter.requires_grad_(True)
    leave_out_unreached(plan.task, plan.method, model)
    _freeze_batchnorm(model, plan.method.names(model), private=plan.local.event is not None)
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
