"""The model that every owner of a federation must have."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.core.types import Tensors
from fedpeft.evaluation.measure import without_method
from fedpeft.forecasts.blueprint import draw_blueprint
from fedpeft.plan.plan import Plan
from fedpeft.storage.locate import locate

WEIGHT_FILES = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Backbone:
    """The model that every owner must have.

    Attributes:
      name: as the plan calls it.
      parameters, trained: how many numbers it has, and how many the plan's method trains.
      disk: bytes of its weights' files, or of as many float32 numbers where they are not here.
      here: whether its weights are here.
    """

    name: str
    parameters: int
    trained: int
    disk: int
    here: bool


def describe_backbone(plan: Plan, classes: Sequence[str], params: Tensors) -> Backbone:
    """What is known of the plan's base: by its configuration, and by its files where they are here.

    Its numbers are those that full fine-tuning would train, as a run's summary counts them: with
    running statistics and a new head, and without what the plan's method puts in.
    """
    task: Any = plan.task
    name = str(getattr(task, "model", type(task).__name__))
    base = getattr(task, "base", name)
    numbers = _count_whole(without_method(plan), classes)
    folder = locate(str(base))
    files = _weight_files(folder) if folder is not None and folder.is_dir() else []
    disk = sum(file.stat().st_size for file in files)
    trained = sum(x.numel() for x in params.values())
    return Backbone(name, numbers, trained, disk or 4 * numbers, bool(disk))


def _count_whole(plan: Plan, classes: Sequence[str]) -> int:
    model = draw_blueprint(plan, classes).model
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return sum(every[name].numel() for name in plan.method.names(model))


def _weight_files(folder: Path) -> list[Path]:
    """Those of the first form that there are, of which the others are copies."""
    for pattern in WEIGHT_FILES:
        if found := sorted(folder.rglob(pattern)):
            return found
    return []
