"""One small batch through a model before anybody trains: what it raises, and what its loss does not
depend on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.compute.further import losses_of
from fedpeft.compute.objective import forward_losses
from fedpeft.compute.reference import with_base
from fedpeft.compute.trainable import head_of, mark_new_layers, new_layers, within
from fedpeft.core.interfaces import Method, Task
from fedpeft.core.outputs import evaluation_mode
from fedpeft.core.seeds import seed_torch
from fedpeft.core.types import Batch
from fedpeft.errors import FedpeftError, PlanError

CHOSEN_BY_INPUT = "expert"
"""In the names of parameters that only some tokens reach: a small batch tells nothing of them."""


def check_pass(task: Task, method: Method, model: nn.Module, batch: Batch) -> None:
    """Let a batch through the model, in evaluation mode and without gradients.

    Raises:
      PlanError: what the task or the model raises, as one line with the method, the model and the
        shapes of the batch.
    """
    with torch.no_grad():
        losses = _losses(task, method, model, batch)
    if losses.shape != batch["mask"].shape:
        raise PlanError(
            f"the task gives losses of shape {list(losses.shape)} for {len(batch['mask'])} "
            "examples; it must give one for each"
        )


def leave_out_unreached(task: Task, method: Method, model: nn.Module) -> None:
    """Freeze what is marked to be trained and has no gradient, because the task's loss does not
    depend on it, such as the vision tower of a model that learns from texts; in place.

    One example of the task's own tells it (a method `example` of the task), so that every
    process leaves out the same. A task without one is passed over.

    Raises:
      PlanError: see `check_pass`; or the loss depends on nothing that the method adds.
    """
    example: Callable[[], Batch] | None = getattr(task, "example", None)
    marked = {name: x for name, x in model.named_parameters() if x.requires_grad}
    if example is None or not marked:
        return
    total = _losses(task, method, model, example()).sum()
    grads: tuple[Tensor | None, ...] = (None,) * len(marked)
    if total.requires_grad:
        grads = torch.autograd.grad(total, list(marked.values()), allow_unused=True)
    unreached = [
        name
        for name, grad in zip(marked, grads, strict=True)
        if grad is None and CHOSEN_BY_INPUT not in name
    ]
    _check_reached(model, method, list(marked), unreached)
    for name in unreached:
        marked[name].requires_grad_(False)
    mark_new_layers(model, unreached=tuple(unreached))


def notes_on(model: nn.Module) -> list[str]:
    """What a user should know of a model before it is trained: what is new in it, and what is left
    out."""
    noted, lines = new_layers(model), []
    if beside := _modules(noted.beside):
        lines.append(
            f"new layers, which the base's checkpoint never had, are trained with the head: "
            f"{_listed(beside)}"
        )
    if unreached := _modules(noted.unreached):
        lines.append(
            f"left out, since the task's loss does not depend on it: {_listed(unreached)} "
            f"({len(noted.unreached)} tensors)"
        )
    return lines


def _check_reached(
    model: nn.Module, method: Method, marked: list[str], unreached: list[str]
) -> None:
    own = [name for name in marked if not _beside(model, name)]
    if unreached and set(own or marked) <= set(unreached):
        raise PlanError(
            f"{_named(method, model)}: the task's loss depends on nothing of what this method "
            f"trains ({_listed(_modules(own or marked))}): set the method's key `target` to layers "
            "that the task uses, or take another method"
        )


def _beside(model: nn.Module, name: str) -> bool:
    """Whether a parameter is the head's or a new layer's, and not the method's own."""
    try:
        head = head_of(model)
    except PlanError:
        head = ""
    return (bool(head) and within(name, head)) or name in new_layers(model).beside


def _losses(task: Task, method: Method, model: nn.Module, batch: Batch) -> Tensor:
    try:
        with seed_torch(0), evaluation_mode(model):
            batch = with_base(task, model, batch)
            return losses_of(task, forward_losses(task)(model, batch), batch)
    except FedpeftError:
        raise
    except Exception as error:  # whatever a model raises
        words = str(error).strip().splitlines() or ["no reason given"]
        raise PlanError(
            f"{_named(method, model)}: a batch does not go through the model: {words[0]} "
            f"({type(error).__name__}; the batch has {_shapes(batch)}). Check that model, method "
            "and the data's shape fit together"
        ) from error


def _named(method: Any, model: nn.Module) -> str:
    return f"method {type(method).__name__} on {type(model).__name__}"


def _shapes(batch: Batch) -> str:
    return ", ".join(f"{name} {list(x.shape)}" for name, x in batch.items())


def _modules(names: tuple[str, ...] | list[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _listed(names: list[str], most: int = 4) -> str:
    further = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + further
