"""The loss of a model before a client trains it, as clients measure and tell it."""

from collections.abc import Iterable, Sequence
from math import isfinite

from fedpeft.compute.further import losses_of
from fedpeft.core.interfaces import Task
from fedpeft.core.outputs import Outputs
from fedpeft.core.types import Batch, Update

LOSS = "received_loss"
"""The name under which a client tells it beside its update."""


def mean_loss(task: Task, outputs: Iterable[tuple[Batch, Outputs]]) -> float:
    """The mean loss over examples, maybe infinite or no number; a row that fills up a batch is no
    example."""
    total, examples = 0.0, 0.0
    for batch, found in outputs:
        losses, mask = losses_of(task, found, batch).float(), batch["mask"]
        total, examples = total + float((losses * mask).sum()), examples + float(mask.sum())
    return total / examples


def loss_of(task: Task, outputs: Iterable[tuple[Batch, Outputs]]) -> float:
    """The same of a model that must have one.

    Raises:
      ArithmeticError: it is not finite.
    """
    loss = mean_loss(task, outputs)
    if not isfinite(loss):
        raise ArithmeticError(f"its loss is {loss} before it trains: lower local.lr")
    return loss


def told_loss(update: Update) -> float:
    """The loss that came with an update.

    Raises:
      ValueError: none came, or what came is no loss.
    """
    loss = update.told.get(LOSS)
    if type(loss) is not float or not 0 <= loss < float("inf"):
        raise ValueError("it tells no loss of what it received: a number of 0 or more is asked")
    return loss


def least(losses: Sequence[float]) -> int:
    """The place of the least loss, of equals the first; a value that is not a number never is.

    Raises:
      ArithmeticError: none is finite.
    """
    finite = [place for place, loss in enumerate(losses) if isfinite(loss)]
    if not finite:
        raise ArithmeticError("of several models none has a finite loss: lower local.lr")
    return min(finite, key=losses.__getitem__)
