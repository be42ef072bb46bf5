"""Further logits of the same examples: each is learned and measured as a task's own are."""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from fedpeft.core.interfaces import Task
from fedpeft.core.outputs import LOGITS, Outputs, further_logits
from fedpeft.core.types import Batch, Summed

Value = TypeVar("Value")
AT = "at "
"""What the names of metrics of further logits begin with, which no task's own metric does."""


def losses_of(task: Task, outputs: Outputs, batch: Batch) -> Tensor:
    """The task's losses, (batch,): the sum of those of all logits that the model gives."""
    losses = task.losses(outputs, batch)
    for logits in further_logits(outputs).values():
        losses = losses + task.losses({**outputs, LOGITS: logits}, batch)
    return losses


def metrics_of(task: Task, outputs: Outputs, batch: Batch) -> dict[str, Tensor | Summed]:
    """The task's metrics, and as `at <place>/<metric>` those of further logits."""
    found = dict(task.metrics(outputs, batch))
    for place, logits in further_logits(outputs).items():
        own = task.metrics({**outputs, LOGITS: logits}, batch)
        found |= {f"{AT}{place}/{name}": x for name, x in own.items()}
    return found


def by_place(values: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Such metrics by place and by their own names; the place of the task's is empty."""
    found: dict[str, dict[str, Value]] = {"": {}}
    for name, value in values.items():
        place, metric = "", name
        if name.startswith(AT):
            place, _, metric = name.removeprefix(AT).partition("/")
        found.setdefault(place, {})[metric] = value
    return found
