"""What every task that classifies computes from logits, and how it asks for a column.

Held-out metrics are sums over examples, so that parts of the data may be measured apart. Those that
are no mean, such as R², are concluded from sums whose names begin with `SUM`.
"""

from collections.abc import Mapping, Sequence
from math import nan, sqrt
from typing import Any

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fedpeft.core.outputs import LOGITS, Outputs
from fedpeft.core.types import Batch, Summed, Table, Weighted
from fedpeft.errors import DataError

SUM = "sum/"
"""What the names of sums begin with that are no metrics themselves."""
TARGET = "target"
"""The column of a batch with what is learned where that is no class: numbers (n,), or 0 and 1 for
each label (n, labels)."""


def losses(outputs: Outputs, batch: Batch) -> Tensor:
    """One value an example, of logits (n, outputs).

    Cross entropy of labels (n,). Of several labels, the mean over the labels of the binary cross
    entropy; of numbers the squared error of the only output.
    """
    if TARGET not in batch:
        return cross_entropy(outputs[LOGITS], batch["label"], reduction="none")
    logits, wanted = outputs[LOGITS].float(), batch[TARGET]
    if wanted.ndim == 1:
        return (logits[:, 0] - wanted).square()
    return binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)


SCORES = ("accuracy", "loss")
"""The names of what `scores` gives of classes."""
LABEL_SCORES = ("loss", "exact_match", "micro_f1")
"""Of several labels, beside a sum for each label."""
NUMBER_SCORES = ("loss", "mae", *(f"{SUM}{name}" for name in ("y", "yy", "x", "xx", "xy")))
"""Of numbers."""


def scores(outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
    """Accuracy (0 or 1) and loss, one value an example; of several labels and of numbers what
    `derive_metrics` needs beside the loss."""
    if TARGET not in batch:
        right = outputs[LOGITS].argmax(-1) == batch["label"]
        return {"accuracy": right.float(), "loss": losses(outputs, batch)}
    logits, wanted = outputs[LOGITS].float(), batch[TARGET]
    own = _label_scores(logits, wanted) if wanted.ndim == 2 else _moments(logits[:, 0], wanted)
    return {"loss": losses(outputs, batch), **own}


def _label_scores(logits: Tensor, wanted: Tensor) -> Mapping[str, Tensor | Summed]:
    """Whether all labels are right, and F1 = 2·TP / (2·TP + FP + FN), over all labels and of
    each."""
    told = (logits > 0).to(wanted.dtype)
    twice, both = 2 * told * wanted, told + wanted
    by_label = {f"{SUM}f1/{k}": Summed(twice[:, k], both[:, k]) for k in range(wanted.shape[1])}
    return {
        "exact_match": (told == wanted).all(1).float(),
        "micro_f1": Summed(twice.sum(1), both.sum(1)),
        **by_label,
    }


def _moments(told: Tensor, wanted: Tensor) -> Mapping[str, Tensor]:
    """The absolute error, and in float64 the products of which R² and Pearson's r are made."""
    x, y = told.double(), wanted.double()
    products = {"y": y, "yy": y * y, "x": x, "xx": x * x, "xy": x * y}
    return {"mae": (told - wanted).abs(), **{f"{SUM}{name}": v for name, v in products.items()}}


def derive_metrics(sums: Mapping[str, Weighted]) -> dict[str, float]:
    """The metrics as numbers, with those that are made of several sums.

    macro_f1  the mean of the labels' F1, without labels that no example has and none was given
    rmse      the root of the mean squared error, which is the loss
    r2        1 − Σ(x − y)² / Σ(y − mean(y))², not a number where all y are alike
    pearson   the correlation of x and y, not a number where all x or all y are alike
    """
    found = {name: one.value for name, one in sums.items() if not name.startswith(SUM)}
    by_label = [one for name, one in sums.items() if name.startswith(f"{SUM}f1/")]
    if by_label:
        seen = [one.value for one in by_label if one.weight]
        found["macro_f1"] = sum(seen) / len(seen) if seen else nan
    if f"{SUM}y" in sums:
        found |= _correlation(sums)
    return found


def _correlation(sums: Mapping[str, Weighted]) -> dict[str, float]:
    mean = {name: sums[f"{SUM}{name}"].value for name in ("x", "y", "xx", "yy", "xy")}
    squared = sums["loss"].value
    of_x, of_y = (_variance(mean[one], mean[one + one]) for one in "xy")
    both = mean["xy"] - mean["x"] * mean["y"]
    return {
        "rmse": sqrt(squared) if squared >= 0 else nan,
        "r2": 1 - squared / of_y if of_y else nan,
        "pearson": both / sqrt(of_x * of_y) if of_x and of_y else nan,
    }


def _variance(mean: float, square: float) -> float:
    """0 where what is left of the subtraction is rounding."""
    found = square - mean * mean
    return found if found > 1e-12 * square else 0.0


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


def read_texts(table: Table, name: str, task: str) -> Sequence[str]:
    """A column of texts.

    Raises:
      DataError: see `column`; or some rows have no text in it.
    """
    values: Sequence[Any] = column(table, name, task)
    if missing := sum(value is None for value in values):
        raise DataError(
            f"{missing} of {len(values)} examples have no {name!r}: leave them out with "
            f"data.where = \"{name} != ''\""
        )
    if wrong := next((value for value in values if not isinstance(value, str)), None):
        raise DataError(f"the column {name!r} holds {wrong!r}, which is no text: name another one")
    return values
