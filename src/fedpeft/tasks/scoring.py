"""What every task that tells classes apart computes from logits, and how it asks for a column."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from fedpeft.core.outputs import LOGITS, Outputs
from fedpeft.core.types import Batch, Table
from fedpeft.errors import DataError


def losses(outputs: Outputs, batch: Batch) -> Tensor:
    """Cross entropy, one value an example: logits (n, classes), labels (n,)."""
    return cross_entropy(outputs[LOGITS], batch["label"], reduction="none")


def scores(outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
    """Accuracy (0 or 1) and loss, one value an example."""
    right = outputs[LOGITS].argmax(-1) == batch["label"]
    return {"accuracy": right.float(), "loss": losses(outputs, batch)}


def column(table: Table, name: str, task: str) -> Any:
    """The column that a task learns from.

    Raises:
      DataError: the data do not have it, or have no rows.
    """
    if name not in table.columns:
        hint = (
            f"; in a table, data.{name} says which it is"
            if name in ("image", "text", "label")
            else ""
        )
        raise DataError(
            f"{task} learns from a column {name!r}; the data have "
            f"{', '.join(sorted(table.columns))}{hint}"
        )
    if not len(table):
        raise DataError("the data have no rows")
    return table.columns[name]
