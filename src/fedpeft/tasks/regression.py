"""A number learned from the numbers of a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import LOGITS, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors, Weighted
from fedpeft.tasks import scoring
from fedpeft.tasks.perceptron import Perceptron, check_method, check_widths
from fedpeft.tasks.row_features import (
    LEAVE_OUT,
    RowFeatures,
    check_measured,
    first_reasons,
    read_column,
)

TASK = "regression"


@dataclass(frozen=True)
class Regression:
    """The squared error of (y − target_mean) / target_std, on columns of a table or on an array
    `x`.

    `loss` and what clients descend on are on that scale; `mae` and `rmse` are in units of the data.
    `r2` is 1 − Σ(x − y)² / Σ(y − mean(y))² over all held-out examples together, and `pearson` the
    correlation. Means and deviations are the plan's, as all sites must scale alike.

    Attributes:
      features: the columns that a model reads, in this order; or how many numbers `x` has.
      target: the column of y.
      hidden: the widths of the hidden layers; [] for the linear model.
      mean, std: of each feature, which becomes (x − mean) / std; left out: features as they are.
      missing: "leave_out" for examples without one of their features, or "mean" to put `mean`
        there. Examples without a target are left out.
      target_mean, target_std: of y.

    Raises:
      ValueError: a value out of range.
    """

    measures: ClassVar[tuple[str, ...]] = scoring.NUMBER_SCORES
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_LOGITS})
    reads_classes: ClassVar[bool] = False
    features: int | tuple[str, ...]
    target: str = scoring.TARGET
    hidden: tuple[int, ...] = (32,)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    missing: str = LEAVE_OUT
    target_mean: float = 0.0
    target_std: float = 1.0

    def __post_init__(self) -> None:
        check_widths(self.hidden)
        if self.target in self.inputs.names:
            raise ValueError(f"{self.target!r} is a feature and the target: leave one of them out")
        if not isfinite(self.target_mean) or not 0 < self.target_std < float("inf"):
            raise ValueError(
                "target_mean must be finite and target_std positive and finite, got "
                f"{self.target_mean} and {self.target_std}"
            )

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for a method that has nothing to train here."""
        check_method(plan, self.hidden)

    @property
    def inputs(self) -> RowFeatures:
        """What the model reads."""
        return RowFeatures(self.features, self.mean, self.std, self.missing)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """Random weights in any case; classes of the data are no matter of the model's."""
        return Perceptron(self.inputs.width, self.hidden, 1)

    def unfit(self, table: Table) -> Mapping[str, Sequence[int]]:
        """The examples without a target, and those without a feature that they must have.

        Raises:
          DataError: see `prepare`.
        """
        if not len(table):
            return {}
        gaps = {f"rows without {self.target!r}": read_column(table, self.target, TASK).isnan()}
        return first_reasons({**gaps, **self.inputs.unfit(table, TASK)})

    def prepare(self, table: Table) -> Tensors:
        """`x` (n, features) and `target` (n,), both scaled.

        Raises:
          DataError: a column is not there or holds no numbers.
        """
        y = (read_column(table, self.target, TASK) - self.target_mean) / self.target_std
        found = {"x": self.inputs.read(table, TASK), scoring.TARGET: y.float()}
        check_measured(found, TASK)
        return found

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return dict(rows)

    def example(self) -> Batch:
        """One example of zeros."""
        x = torch.zeros(1, self.inputs.width)
        return {"x": x, scoring.TARGET: torch.zeros(1), "mask": torch.ones(1)}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            told = model(batch["x"])
        return {LOGITS: told, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return scoring.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
        return scoring.scores(outputs, batch)

    def conclude(self, sums: Mapping[str, Weighted]) -> dict[str, float]:
        """The metrics as numbers, errors in units of the data; see `scoring.derive_metrics`."""
        found = scoring.derive_metrics(sums)
        return {n: x * self.target_std if n in ("mae", "rmse") else x for n, x in found.items()}
