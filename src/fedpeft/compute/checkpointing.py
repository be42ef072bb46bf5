"""Activation checkpointing: blocks of a model compute their insides twice (Chen et al.,
2016, arXiv:1604.06174): memory of a step for a third more of its time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedpeft.compute.objective import Objective
from fedpeft.compute.trainable import read
from fedpeft.core.interfaces import Task
from fedpeft.core.seeds import seed_torch
from fedpeft.core.types import Batch, Tensors
from fedpeft.errors import PlanError

MOST_APART = 1e-3
"""How far a gradient may be from the one without it, over its largest entry: kernels may differ,
and what a block was not given again differs by far more."""


def enable_checkpointing(task: Task, model: nn.Module, names: Sequence[str], batch: Batch) -> None:
    """Let the blocks of a `transformers` model compute again what a backward pass needs; in place.

    One batch is tried with and without: `transformers` passes over what comes to a block beside its
    input, such as the keys and values of a prefix.

    Raises:
      PlanError: the model has no such blocks, or another gradient with them.
    """
    without = _gradient(task, model, names, batch)
    try:
        _switch(model)({"use_reentrant": False})
    except (AttributeError, ValueError, NotImplementedError) as error:
        raise PlanError(
            f"compute.checkpointing: {type(model).__name__} has no blocks that can be computed "
            f"again ({str(error).splitlines()[0]}): leave it out, and set compute.micro_batch to "
            "spare memory"
        ) from None
    config: Any = getattr(model, "config", None)
    if hasattr(config, "use_cache"):  # else it says at the first step that it keeps none
        config.use_cache = False
    if not _same_gradient(task, model, names, batch, without):
        raise PlanError(
            "compute.checkpointing changes the gradient, as something comes to the blocks of "
            f"{type(model).__name__} beside their input, e.g. a prefix: leave it out, and set "
            "compute.micro_batch to spare memory"
        )


def _same_gradient(
    task: Task, model: nn.Module, names: Sequence[str], batch: Batch, wanted: Tensors
) -> bool:
    try:
        found = _gradient(task, model, names, batch)
    except RuntimeError:  # torch's word for shapes that do not fit without what was passed over
        return False
    return all(_apart(x, wanted[name]) <= MOST_APART for name, x in found.items())


def _switch(model: nn.Module) -> Callable[[Mapping[str, bool]], None]:
    """What switches it on, by its name of today or by that of `transformers` before 5.20."""
    today: Any = getattr(model, "activation_checkpointing_enable", None)
    return today if today is not None else model.gradient_checkpointing_enable  # type: ignore[return-value]


def _gradient(task: Task, model: nn.Module, names: Sequence[str], batch: Batch) -> Tensors:
    """The gradient of a batch in training, with the same draws each time."""
    params = {name: x.to(batch["mask"].device) for name, x in read(model, names).items()}
    was = model.training
    model.train()
    try:
        with seed_torch(0):
            return Objective(model, task).gradient(params, batch)[0]
    finally:
        model.train(was)


def _apart(x: torch.Tensor, other: torch.Tensor) -> float:
    largest = max(float(x.abs().max()), float(other.abs().max())) if x.numel() else 0.0
    return float((x - other).abs().max()) / largest if largest else 0.0
