"""The numbers of a row of a table, or of an array, that a model reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from math import isfinite

import torch
from torch import Tensor

from fedpeft.core.numbers import read_numbers
from fedpeft.core.types import Table, Tensors
from fedpeft.errors import DataError
from fedpeft.tasks import scoring

ARRAY = "x"
"""The column that holds all features of an example where they come as an array."""
LEAVE_OUT, MEAN = "leave_out", "mean"
FAR = 100.0
"""Features of this size are told: steps that suit them suit no others."""


@dataclass(frozen=True)
class RowFeatures:
    """What a model reads of an example, as a task's keys say it.

    Attributes:
      features: the columns, in the order of the model's inputs; or how many numbers the array `x`
        has.
      mean, std: of each feature, by which all sites scale it alike, (x − mean) / std; none for
        features as they are.
      missing: "leave_out" for examples without one of their numbers, or "mean" to put `mean` in
        its place.

    Raises:
      ValueError: a value out of range, or values that do not fit together.
    """

    features: int | tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    missing: str

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(
                'features names the columns that a model reads, such as ["age", "size"], or says '
                f"how many numbers the array {ARRAY!r} has; got {self.features!r}"
            )
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"features must differ from each other, got {list(self.names)}")
        self._check_scale()
        if self.missing not in (LEAVE_OUT, MEAN):
            raise ValueError(f'missing must be "{LEAVE_OUT}" or "{MEAN}", got {self.missing!r}')
        if self.missing == MEAN and not self.mean:
            raise ValueError(
                f'missing = "{MEAN}" puts a feature\'s mean in the place of a missing number, and '
                "the plan has no mean: set it, as all sites must agree on it"
            )

    def _check_scale(self) -> None:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.width:
                raise ValueError(
                    f"{key} has {len(values)} numbers and there are {self.width} features: give "
                    "one for each, or leave it out"
                )
        if not all(0 < value < float("inf") for value in self.std):
            raise ValueError(f"std must be positive and finite, got {list(self.std)}")
        if not all(map(isfinite, self.mean)):
            raise ValueError(f"mean must be finite, got {list(self.mean)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The columns; none where the features come as an array."""
        return () if isinstance(self.features, int) else self.features

    @property
    def width(self) -> int:
        """How many numbers a model reads."""
        return self.features if isinstance(self.features, int) else len(self.features)

    def unfit(self, table: Table, task: str) -> dict[str, Tensor]:
        """By reason which examples, bool (n,), lack a number that they must have.

        Raises:
          DataError: see `read`.
        """
        if self.missing == MEAN:
            return {}
        gaps = self._columns(table, task).isnan()
        names = self.names or [f"{ARRAY}[{k}]" for k in range(self.width)]
        return {f"rows without {name!r}": gaps[:, k] for k, name in enumerate(names)}

    def read(self, table: Table, task: str) -> Tensor:
        """The features (n, width) in float32, scaled.

        Args:
          task: what learns, for errors.

        Raises:
          DataError: a column is not there or holds no numbers, or the array is of another shape.
        """
        found = self._columns(table, task)
        gaps = found.isnan()
        if self.mean:
            found = found - torch.tensor(self.mean, dtype=torch.float64)
        if self.std:
            found = found / torch.tensor(self.std, dtype=torch.float64)
        if self.missing == MEAN:
            _tell_filled(gaps, task)
            found = found.masked_fill(gaps, 0.0)
        _tell_far(found, self.names, task)
        return found.float()

    def _columns(self, table: Table, task: str) -> Tensor:
        """The features as they are, (n, width) in float64; NaN where nobody measured."""
        if self.names:
            return torch.stack([read_column(table, name, task) for name in self.names], 1)
        x = scoring.column(table, ARRAY, task)
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != self.width:
            came = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise DataError(
                f"{task} reads an array {ARRAY!r} of shape (n, {self.width}), as task.features "
                f"says; the data's is {came}: set task.features to the number of its columns, or "
                "to the names of columns of a table"
            )
        x = x.double()
        return x.masked_fill(~x.isfinite(), float("nan"))


def read_column(table: Table, name: str, task: str) -> Tensor:
    """A column of numbers, (n,) in float64; NaN where nobody measured.

    Raises:
      DataError: it is not there, or it holds something else.
    """
    if name not in table.columns and table.labels is not None:
        raise DataError(
            f"{task} reads the column {name!r}, and the data have "
            f"{', '.join(sorted(table.columns))}. One column became classes, `label`: set "
            'data.label = "none" where it is the one'
        )
    values = scoring.column(table, name, task)
    if values is table.labels:
        raise DataError(
            f"{task} reads the column {name!r} itself, and the data number its values as classes: "
            'set data.label = "none", or to another column'
        )
    plain = values.tolist() if isinstance(values, Tensor) else list(values)
    remedy = "write 3.5, write NA where nobody measured, and number categories, such as 0 and 1"
    return read_numbers(plain, f"the column {name!r}", remedy, "example")


def check_measured(rows: Tensors, task: str) -> None:
    """Raises DataError where a number is missing that nobody left out, as of examples that were not
    read by the plan."""
    for name, x in rows.items():
        whole = x.reshape(len(x), -1).isfinite().all(1)
        if lacking := int((~whole).sum()):
            raise DataError(f"{task}: {lacking} of {len(x)} examples lack a number in {name!r}")


def first_reasons(found: Mapping[str, Tensor]) -> dict[str, Sequence[int]]:
    """By reason the rows that it rules out; a row that several rule out is of the first of them, so
    that counts add up to rows."""

    def each() -> Iterator[tuple[str, Sequence[int]]]:
        gone: Tensor | bool = False
        for why, rows in found.items():
            yield why, (rows & ~gone if isinstance(gone, Tensor) else rows).nonzero()[:, 0].tolist()
            gone = rows | gone

    return {why: rows for why, rows in each() if rows}


def _tell_filled(gaps: Tensor, task: str) -> None:
    """Say how many numbers were put in; a row is no less a row for them."""
    if filled := int(gaps.sum()):
        getLogger("fedpeft").warning(
            "%s: task.mean stands in the place of %s missing numbers of %s, in %s of %s rows",
            task, f"{filled:,}", f"{gaps.numel():,}", f"{int(gaps.any(1).sum()):,}",
            f"{len(gaps):,}",
        )  # fmt: skip


def _tell_far(found: Tensor, names: Sequence[str], task: str) -> None:
    """Say which features are far from those of usual size. Not how far: that is an example's."""
    far = (found.nan_to_num().abs() > FAR).any(0).nonzero()[:, 0].tolist()
    if far:
        first = names[far[0]] if names else f"{ARRAY}[{far[0]}]"
        getLogger("fedpeft").warning(
            "%s: %s of %s features have numbers beyond %g, first %r: set task.mean and task.std, "
            "so that all are of one size",
            task, len(far), found.shape[1], FAR, first,
        )  # fmt: skip
