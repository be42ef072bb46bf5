"""Factorization machines: a class of two from categories and numbers, whose pairs count too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.catalogue import CATALOGUE
from fedpeft.core.outputs import LOGITS, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors
from fedpeft.errors import DataError, PlanError
from fedpeft.registry import describe
from fedpeft.tasks import scoring
from fedpeft.tasks.row_features import check_measured, first_reasons, read_column

TASK = "a factorization machine"
WHOLE = ("full", "scratch", "named")
"""The methods that train weights that belong to no layer."""


class FactorizationMachine(nn.Module):
    """ŷ = b + Σᵢ wᵢ·xᵢ + ½·Σ_f [(Σᵢ v_if·xᵢ)² − Σᵢ v_if²·xᵢ²] (Rendle, 2010, equations 1 and 5).

    With `own`, one feature more is 1 in every row: its weights are those of the client, as a user's
    are, and they are tensors of their own that need not travel.

    Args:
      features: how many x has.
      factors: how many numbers v a feature has.
      spread: the standard deviation of v at first; b and w begin at 0.
    """

    def __init__(self, features: int, factors: int, spread: float, own: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.linear = nn.Parameter(torch.zeros(features))
        self.factors = nn.Parameter(spread * torch.randn(features, factors))
        self.own_bias = nn.Parameter(torch.zeros(1)) if own else None
        self.own_factors = nn.Parameter(spread * torch.randn(factors)) if own else None

    def forward(self, x: Tensor) -> Tensor:
        """From (n, features) to (n,)."""
        sums = x @ self.factors
        pairs = (sums.square() - x.square() @ self.factors.square()).sum(-1) / 2
        told: Tensor = self.bias + x @ self.linear + pairs
        if self.own_bias is not None and self.own_factors is not None:
            told = told + self.own_bias + sums @ self.own_factors
        return told


@dataclass(frozen=True)
class Factorization:
    """The log loss of a factorization machine on columns of a table. The data must have two
    classes; the log-odds of the second are ŷ, and those of the first are 0.

    A row becomes a vector with a place for each category of each column. So it can be mixed with
    another row (`local.augments = [{ name = "mixup", fold = true }]`), and a category that both
    have is there once, with the sum of its shares: a row that is mixed with itself is itself.
    The vector is dense, which suits some ten thousand categories and not millions.

    Attributes:
      columns: the columns that the model reads. Categories are numbered from 0.
      sizes: how many categories each column has, on which all sites must agree; 1 for a column of
        numbers, which are read as they are. Rows with a category beyond that, or without a value,
        are left out and counted.
      factors: how many numbers describe a category.
      own: whether a client has factors and a bias of its own, where it stands for one user. Keep
        them there with routing = [{ name = "personal", patterns = ["own_*"] }].
      spread: the standard deviation of the factors at first.

    Raises:
      ValueError: a value out of range.
    """

    columns: tuple[str, ...]
    sizes: tuple[int, ...]
    factors: int = 8
    own: bool = False
    spread: float = 0.1

    def __post_init__(self) -> None:
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns must be names that differ, got {list(self.columns)}")
        if len(self.sizes) != len(self.columns) or min(self.sizes) < 1:
            raise ValueError(
                "sizes holds for each column how many categories it has, or 1 for numbers, got "
                f"{list(self.sizes)} for {len(self.columns)} columns"
            )
        if self.factors < 1 or not 0 < self.spread < float("inf"):
            raise ValueError(
                "factors must be at least 1 and spread positive and finite, got "
                f"{self.factors} and {self.spread}"
            )

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for a method that trains layers, of which there are none here."""
        method = str(describe("method", plan.method)["name"])
        if method in CATALOGUE["method"] and method not in WHOLE:
            raise PlanError(
                f'method = "{method}" trains layers, and a factorization machine has none: use '
                f'method = "{WHOLE[0]}"'
            )

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """Random weights in any case.

        Raises:
          PlanError: the data have more or fewer classes than two.
        """
        if classes and len(classes) != 2:
            raise PlanError(
                f"{TASK} tells two classes apart, and the data have {len(classes)}: set data.label "
                "to a column of two values"
            )
        return FactorizationMachine(sum(self.sizes), self.factors, self.spread, self.own)

    def unfit(self, table: Table) -> Mapping[str, Sequence[int]]:
        """The rows that lack a value, or have a category beyond those that all sites know.

        Raises:
          DataError: see `prepare`.
        """
        if not len(table):
            return {}
        gaps = {}
        for name, size in zip(self.columns, self.sizes, strict=True):
            x = read_column(table, name, TASK)
            gaps[f"rows without {name!r}"] = x.isnan()
            if size > 1:
                gaps[f"rows with a {name!r} that is none of 0 to {size - 1}"] = (
                    (x < 0) | (x >= size) | (x != x.round())
                ) & ~x.isnan()
        return first_reasons(gaps)

    def prepare(self, table: Table) -> Tensors:
        """`place` (n, columns), where in the vector each column's value lies, `value` (n, columns),
        and `label` (n,).

        Raises:
          DataError: a column is not there or holds no numbers, or rows have no class.
        """
        if table.labels is None:
            raise DataError(f"{TASK} learns from two classes: set data.label to their column")
        read = {"columns": torch.stack([read_column(table, n, TASK) for n in self.columns], 1)}
        check_measured(read, TASK)
        x, sizes = read["columns"], torch.tensor(self.sizes)
        number = torch.where(sizes > 1, x, 0.0).long()
        if ((number < 0) | (number >= sizes)).any():
            raise DataError(f"{TASK}: some rows have categories beyond task.sizes = {self.sizes}")
        value = torch.where(sizes > 1, 1.0, x).float()
        return {"place": number + sizes.cumsum(0) - sizes, "value": value, "label": table.labels}

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """`x` (batch, all categories) and `label`."""
        x = torch.zeros(len(rows["value"]), sum(self.sizes))
        return {"x": x.scatter_add(1, rows["place"], rows["value"]), "label": rows["label"]}

    def example(self) -> Batch:
        """One row of ones."""
        label = torch.zeros(1, dtype=torch.int64)
        return {"x": torch.ones(1, sum(self.sizes)), "label": label, "mask": torch.ones(1)}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            told = model(batch["x"])
        return {LOGITS: torch.stack([torch.zeros_like(told), told], -1), **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return scoring.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
        return scoring.scores(outputs, batch)
