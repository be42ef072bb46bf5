"""A plan's model as shapes and names alone, on PyTorch's meta device: a base of any size takes no
memory, and its configuration is enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.compute.device_memory import available
from fedpeft.compute.trainable import is_statistic
from fedpeft.core.outputs import Outputs
from fedpeft.core.seeds import generator, seed_torch
from fedpeft.core.tensors import move_to
from fedpeft.core.types import Batch
from fedpeft.errors import FedpeftError, PlanError
from fedpeft.forecasts.step_cost import Live
from fedpeft.plan.models import build_model
from fedpeft.plan.plan import Plan

META, CPU = "meta", "cpu"
MOST_OF_MEMORY = 0.25
"""The share of the free memory that a model with numbers may take in a forecast."""
SPREAD = 0.02
"""The standard deviation of the numbers that stand in for what is trained."""


@dataclass(frozen=True)
class Blueprint:
    """A model on the meta device.

    Attributes:
      weights: whether the names were compared with those of the base's weights; without weights,
        layers that its checkpoint lacks are taken to be there.
      looks: whether a batch does not go through shapes alone, since the model looks at values.
    """

    model: nn.Module
    weights: bool
    looks: bool = False


@dataclass(frozen=True)
class MetaTask:
    """A task whose model and example lie on the meta device; all else is as the task has it.

    Attributes:
      weights: whether the names of the base's weights are read.
      device: where the model is instead, with numbers drawn at random.
    """

    task: Any
    weights: bool
    device: str = META

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        with torch.device(self.device):
            model: nn.Module = self.task.build(classes, pretrained and self.weights)
        return model.to(self.device)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with Live():
            outputs: Outputs = self.task.forward(model, batch, head)
        return outputs

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        with Live():
            losses: Tensor = self.task.losses(outputs, batch)
        return losses

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.task, name)
        return (lambda: move_to(value(), self.device)) if name == "example" else value


@dataclass(frozen=True)
class MetaMethod:
    """A method that is injected on the meta device; all else is as the method has it."""

    method: Any
    device: str = META

    def inject(self, model: nn.Module) -> nn.Module:
        with torch.device(self.device):
            model = self.method.inject(model)
        return model.to(self.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)


@dataclass(frozen=True)
class MetaPlan:
    """What of a plan the making of its model looks at."""

    task: MetaTask
    method: MetaMethod
    local: Any
    seed: int


def draw_blueprint(plan: Plan, classes: Sequence[str]) -> Blueprint:
    """The plan's model on the meta device, its weights compared by name if they are here.

    A quantized base is drawn as it was before: the names of what is trained are the same. A model
    that looks at values is drawn with numbers first, where memory has room for them.

    Raises:
      PlanError: the model cannot be made of its configuration, or the method does not fit it.
    """
    for weights in (True, False):
        try:
            return Blueprint(build_model(_meta_plan(plan, weights, META), classes), weights)
        except Exception as error:  # what libraries raise of a device without numbers
            first = error
    if not _has_room(plan, classes):
        raise _as_plan_error(first) from first
    try:
        real, here = draw_with_numbers(plan, classes)
    except FedpeftError:
        raise
    except Exception:  # numbers are not what was missing
        raise _as_plan_error(first) from first
    return Blueprint(real.to(META), here, looks=True)


def _has_room(plan: Plan, classes: Sequence[str]) -> bool:
    """Whether the free memory has room for the weights of the base, which the device meta draws."""
    try:
        model = MetaTask(plan.unquantized.task, False).build(classes, False)
    except Exception:  # what was raised before says more
        return False
    size = sum(x.numel() * x.element_size() for x in model.parameters())
    return size <= MOST_OF_MEMORY * available("cpu")


def _as_plan_error(error: Exception) -> FedpeftError:
    if isinstance(error, FedpeftError):
        return error
    words = (str(error).strip().splitlines() or ["no reason given"])[0]
    return PlanError(
        f"the model cannot be drawn without its numbers: {words} ({type(error).__name__})"
    )


def draw_with_numbers(plan: Plan, classes: Sequence[str]) -> tuple[nn.Module, bool]:
    """The plan's model with weights, and whether they are the base's own, or random.

    Raises:
      PlanError: see `draw_blueprint`.
    """
    try:
        return plan.model(classes), True
    except FedpeftError:
        with seed_torch(plan.seed):
            return build_model(_meta_plan(plan, False, CPU), classes), False


def _meta_plan(plan: Plan, weights: bool, device: str) -> MetaPlan:
    task = MetaTask(plan.unquantized.task, weights, device)
    return MetaPlan(task, MetaMethod(plan.method, device), plan.local, plan.seed)


def fill_trained(model: nn.Module, names: Sequence[str], seed: int) -> nn.Module:
    """Give what is trained numbers, drawn at random; in place. The frozen rest stays as shapes.

    Args:
      seed: of the draws.
    """
    draws = generator(seed, "forecast")
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    drawn = {name: _stand_in(name, every[name], draws) for name in names}
    model.load_state_dict(drawn, strict=False, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in drawn)
    return model


def _stand_in(name: str, like: Tensor, draws: torch.Generator) -> Tensor:
    if is_statistic(name) or not like.is_floating_point():
        return torch.ones(like.shape, dtype=like.dtype)
    return (torch.randn(like.shape, generator=draws) * SPREAD).to(like.dtype)
