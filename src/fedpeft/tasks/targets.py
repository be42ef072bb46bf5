"""What a classifier learns of each example: its class, several labels, or a number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from re import split
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.types import Table
from fedpeft.errors import DataError, unknown
from fedpeft.tasks import scoring
from fedpeft.tasks.loader import Loader

ONE, SEVERAL, NUMBER = (
    *("single_label_classification", "multi_label_classification", "regression"),
)
"""As `transformers` calls them, in a configuration's `problem_type`."""
PROBLEMS = (ONE, SEVERAL, NUMBER)
LEARNED = ("label", scoring.TARGET)
"""The columns of a batch that hold what is learned: one of them."""
USAGE: Mapping[str, str] = {
    SEVERAL: "print(model(**inputs).logits.sigmoid() > 0.5)"
    "  # a column a label, as in model.config.id2label",
    NUMBER: "print(model(**inputs).logits[:, 0])",
}
"""The line of a model card that tells what the model says."""


@dataclass(frozen=True)
class Target:
    """What is learned, as a task's keys say it.

    Attributes:
      problem_type: one of `PROBLEMS`.
      labels: the names of the labels of which an example may have several.
      column: where labels or numbers stand.

    Raises:
      ValueError: an unknown problem, or labels that do not fit it.
    """

    problem_type: str
    labels: tuple[str, ...]
    column: str

    def __post_init__(self) -> None:
        if self.problem_type not in PROBLEMS:
            raise ValueError(unknown("problem_type", self.problem_type, PROBLEMS))
        several = self.problem_type == SEVERAL
        if self.labels and not several:
            raise ValueError(
                f'labels are for problem_type = "{SEVERAL}", got {list(self.labels)} for '
                f"{self.problem_type!r}: leave them out"
            )
        if several and not self.labels:
            raise ValueError(
                f'problem_type = "{SEVERAL}" needs labels, the names that all sites agree on, such '
                'as labels = ["toxic", "insult"]'
            )
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must differ from each other, got {list(self.labels)}")

    @property
    def offers(self) -> frozenset[Fact]:
        """Only classes of which one is right have logits that a softmax is taken of."""
        return frozenset() if self.problem_type == ONE else frozenset({Fact.NO_LOGITS})

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the metrics of held-out examples, as `scoring.scores` gives them."""
        if self.problem_type == ONE:
            return scoring.SCORES
        if self.problem_type == NUMBER:
            return scoring.NUMBER_SCORES
        by_label = (f"{scoring.SUM}f1/{k}" for k in range(len(self.labels)))
        return (*scoring.LABEL_SCORES, *by_label)

    @property
    def configured(self) -> str:
        """What the model's configuration is to say; nothing where it says so by itself."""
        return "" if self.problem_type == ONE else self.problem_type

    def names(self, classes: Sequence[str]) -> Sequence[str]:
        """What the rows of the head are called."""
        if self.problem_type == ONE:
            return classes
        return self.labels if self.problem_type == SEVERAL else (self.column,)

    def loader(self, of: Loader) -> Loader:
        """The loader of a task that learns this, given that for classes."""
        if self.problem_type == ONE:
            return of
        usage = (*of.usage[:-1], USAGE[self.problem_type])
        return replace(of, outputs=tuple(self.names(())), usage=usage)

    def read(self, table: Table, task: str) -> dict[str, Tensor]:
        """`label`, int64 (n,); or `target`, float32: (n, labels) of 0 and 1, or numbers (n,).

        Args:
          task: what learns, for errors.

        Raises:
          DataError: there is no such column, or it holds something else.
        """
        if self.problem_type == ONE:
            return {"label": scoring.column(table, "label", task)}
        apart = self.column not in table.columns and set(self.labels) <= table.columns.keys()
        if self.problem_type == SEVERAL and apart:
            return {"target": self._read_columns(table)}
        values = scoring.column(table, self.column, task)
        if values is table.labels:
            raise DataError(
                f"{task} with problem_type = {self.problem_type!r} reads the column "
                f"{self.column!r} itself, and the data number its values as classes: set "
                'data.label = "none", or to another column'
            )
        if self.problem_type == NUMBER:
            return {"target": torch.tensor(_numbers(values, self.column), dtype=torch.float32)}
        return {"target": self._read_sets(values)}

    def empty(self) -> dict[str, Tensor]:
        """What one example has that has no label, or the number 0."""
        if self.problem_type == ONE:
            return {"label": torch.zeros(1, dtype=torch.int64)}
        return {"target": torch.zeros((1, *[len(self.labels)] * (self.problem_type == SEVERAL)))}

    def _read_columns(self, table: Table) -> Tensor:
        """A column of 0 and 1 for each label."""
        columns = [_numbers(table.columns[label], label) for label in self.labels]
        for label, column in zip(self.labels, columns, strict=True):
            if wrong := [value for value in column if value not in (0, 1)]:
                raise DataError(
                    f"{len(wrong)} of {len(column)} values of the column {label!r} are neither 0 "
                    f"nor 1, first {wrong[0]:g}: leave these examples out with data.where"
                )
        return torch.tensor(columns, dtype=torch.float32).T.contiguous()

    def _read_sets(self, values: Sequence[Any]) -> Tensor:
        """A list of labels for each example, or a text that holds them."""
        places = {label: k for k, label in enumerate(self.labels)}
        found = torch.zeros(len(values), len(self.labels))
        for row, value in enumerate(values):
            for label in _labels(value, places):
                if label not in places:
                    raise DataError(
                        f"the column {self.column!r} of example {row}: "
                        + unknown("label", label, self.labels)
                    )
                found[row, places[label]] = 1
        return found


def _labels(value: Any, known: Mapping[str, int]) -> Iterator[str]:
    """The labels of one example: of a list its entries; of a text that is no label itself what
    stands between `|`, `;` or `,`."""
    if value is None or value == "":
        return
    if isinstance(value, str) and value not in known:
        value = [part.strip() for part in split(r"[|;,]", value) if part.strip()]
    for one in [value] if isinstance(value, str | int | float) else value:
        yield str(one)


def _numbers(values: Any, column: str) -> list[float]:
    """Raises DataError for what is no number, or for a gap."""
    plain = values.tolist() if isinstance(values, Tensor) else list(values)
    if missing := sum(value is None for value in plain):
        raise DataError(
            f"{missing} of {len(plain)} examples have no number in the column {column!r}: leave "
            f"them out with data.where = \"{column} != ''\""
        )
    found = []
    for value in plain:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not isfinite(number):
            raise DataError(
                f"the column {column!r} holds {value!r}, which is no finite number: name another "
                "column, or leave such examples out with data.where"
            )
        found.append(number)
    return found
