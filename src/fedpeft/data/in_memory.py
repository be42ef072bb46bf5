"""Examples that are in memory already: what a Python program gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.types import Examples, Table
from fedpeft.data.splits import check_fraction, hold_out
from fedpeft.errors import DataError
from fedpeft.registry import unwritten

LABEL, NONE = "label", "none"


@dataclass(frozen=True, eq=False)
class Memory:
    """Columns of equal length, `label` among them; what the others are called is between them and
    the task.

    Such data cannot be named in a TOML file: build the plan in Python.

    Attributes:
      train: columns to train on: tensors (n, ...), or sequences of n texts or pictures. `label`
        holds integers (n,).
      test: columns held out; None for a part of `train`.
      classes: names of the labels 0, 1, ...; empty for the numbers themselves.
      test_fraction: how large that part is; 0 for none.
      seed: of that part.
      label: "none" for data without classes, which need no column `label`: numbers, say, that a
        task reads itself.

    Raises:
      ValueError: a value out of range.
      DataError: columns differ in length, or hold no labels, or others than the classes, or are not
        finite.
    """

    train: Mapping[str, Any] = field(repr=False)
    test: Mapping[str, Any] | None = field(default=None, repr=False)
    classes: tuple[str, ...] = ()
    test_fraction: float = 0.2
    seed: int = 1
    label: str = unwritten(LABEL)

    def __post_init__(self) -> None:
        check_fraction(self.test_fraction)
        if self.label not in (LABEL, NONE):
            raise ValueError(f'label must be "{LABEL}" or "{NONE}", got {self.label!r}')

    def load(self) -> Examples:
        if self.label == NONE:
            return self._load_unlabelled()
        train = _check_columns(self.train, "train")
        if self.test is None:
            halves = hold_out(train["label"], self.test_fraction, self.seed)
            train, test = ({name: _rows(x, half) for name, x in train.items()} for half in halves)
        else:
            test = _check_columns(self.test, "test")
        largest = int(torch.cat([train["label"], test["label"]]).max())
        classes = tuple(self.classes) or tuple(map(str, range(largest + 1)))
        if largest >= len(classes):
            raise DataError(
                f"there is a label {largest}, but only {len(classes)} classes, counted from 0"
            )
        return Examples(Table(train), Table(test), classes)

    def _load_unlabelled(self) -> Examples:
        train = _check_alike(self.train, "train")
        if self.test is None:
            alike = torch.zeros(len(Table(train)), dtype=torch.int64)  # no classes to balance
            halves = hold_out(alike, self.test_fraction, self.seed)
            train, test = ({name: _rows(x, half) for name, x in train.items()} for half in halves)
        else:
            test = _check_alike(self.test, "test")
        return Examples(Table(train), Table(test), ())


def _check_alike(columns: Mapping[str, Any], side: str) -> dict[str, Any]:
    """Columns of equal length and of finite numbers, whatever they are called."""
    if not columns:
        raise DataError(f"the {side} data have no columns")
    first = next(iter(columns))
    for name, x in columns.items():
        if len(x) != len(columns[first]):
            raise DataError(
                f"column {first!r} of the {side} data has {len(columns[first])} rows, and column "
                f"{name!r} has {len(x)}"
            )
    _check_finite(columns, side)
    return dict(columns)


def _check_columns(columns: Mapping[str, Any], side: str) -> dict[str, Any]:
    if "label" not in columns:
        raise DataError(
            f"the {side} data have no labels: there is no column 'label' among {', '.join(columns)}"
        )
    try:
        label = torch.as_tensor(columns["label"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"labels are integers from 0 in a tensor; the {side} data's are not: {error}"
        ) from None
    if label.ndim != 1 or label.is_floating_point() or not len(label) or int(label.min()) < 0:
        kind, least = (
            str(label.dtype).removeprefix("torch."),
            f", from {label.min().item()}" if label.numel() else "",
        )
        raise DataError(
            "labels are integers from 0 in a tensor of shape (n,); "
            f"the {side} data's are {kind} of shape {tuple(label.shape)}{least}"
        )
    for name, x in columns.items():
        if len(x) != len(label):
            raise DataError(
                f"the {side} data have {len(label)} labels, but column {name!r} has {len(x)} rows"
            )
    _check_finite(columns, side)
    return {**columns, "label": label.long()}


def _check_finite(columns: Mapping[str, Any], side: str) -> None:
    for name, x in columns.items():
        if isinstance(x, Tensor) and x.is_floating_point() and not bool(x.isfinite().all()):
            raise DataError(f"column {name!r} of the {side} data holds numbers that are not finite")


def _rows(x: Tensor | Sequence[Any], index: Tensor) -> Any:
    return x[index] if isinstance(x, Tensor) else [x[place] for place in index.tolist()]
