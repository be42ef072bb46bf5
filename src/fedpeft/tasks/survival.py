"""Survival: how soon an event comes, learned from times of which some are censored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from logging import getLogger
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import PREDICTION, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors, Weighted
from fedpeft.errors import DataError, say_count, unknown
from fedpeft.tasks.perceptron import Perceptron, check_method, check_widths
from fedpeft.tasks.row_features import (
    LEAVE_OUT,
    RowFeatures,
    check_measured,
    first_reasons,
    read_column,
)
from fedpeft.tasks.survival_times import concordance, cox_losses, expected_times, hazard_losses

TASK = "survival"
COX, DISCRETE = "cox", "discrete"


@dataclass(frozen=True)
class Survival:
    """A risk learned from the numbers of a row, on columns of a table or on an array `x`.

    `loss = "cox"` is −log of Cox's partial likelihood with Efron's ties, a mean over all examples.
    Each event is compared with the examples of its batch that were still seen then, so that
    examples change each other's loss: larger batches say more, and DP-SGD is ruled out. A client
    compares its own examples alone, which is the Cox model stratified by client (each has a
    baseline hazard of its own).
    `loss = "discrete"` learns the hazard of each interval between `cuts` (Gensheimer and
    Narasimhan, 2019, arXiv:1805.00917). Each example has a loss of its own, so that it suits small
    batches and DP-SGD.

    Measured are `loss` and `c_index`, Harrell's concordance: of all comparable pairs of held-out
    examples of one owner the share in which the higher risk had its event first. The risk of the
    discrete model is the negative mean time until the event or the last cut.

    Attributes:
      features: the columns that a model reads, in this order; or how many numbers `x` has.
      time: the column of times, at least 0.
      status: the column of 1 for an event at that time and 0 for a censored example.
      loss: "cox" or "discrete".
      cuts: of "discrete", the upper ends of the intervals, rising, of which the first begins at 0.
      hidden: the widths of the hidden layers; [] for the linear model.
      mean, std: of each feature, which becomes (x − mean) / std; left out: features as they are.
      missing: "leave_out" for examples without one of their features, or "mean" to put `mean`
        there. Examples without a time or an event are left out.

    Raises:
      ValueError: a value out of range.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "c_index")
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_LOGITS})
    reads_classes: ClassVar[bool] = False
    compares_examples: ClassVar[bool] = True
    features: int | tuple[str, ...]
    time: str = "time"
    status: str = "event"
    loss: str = COX
    cuts: tuple[float, ...] = ()
    hidden: tuple[int, ...] = (32,)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    missing: str = LEAVE_OUT

    def __post_init__(self) -> None:
        check_widths(self.hidden)
        if self.loss not in (COX, DISCRETE):
            raise ValueError(unknown("loss", self.loss, (COX, DISCRETE)))
        if {self.time, self.status} & set(self.inputs.names) or self.time == self.status:
            raise ValueError(
                f"features, time and status must be different columns, got {self.time!r}, "
                f"{self.status!r} and {list(self.inputs.names)}"
            )
        if self.loss == COX and self.cuts:
            raise ValueError(f'cuts are for loss = "{DISCRETE}": leave them out')
        if self.loss == DISCRETE:
            _check_cuts(self.cuts)

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for a method that has nothing to train here."""
        check_method(plan, self.hidden)

    @property
    def couples_examples(self) -> bool:
        """Whether a loss compares the examples of a batch."""
        return self.loss == COX

    @property
    def inputs(self) -> RowFeatures:
        """What the model reads."""
        return RowFeatures(self.features, self.mean, self.std, self.missing)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """Random weights in any case; classes of the data are no matter of the model's."""
        outputs = max(1, len(self.cuts))
        return Perceptron(self.inputs.width, self.hidden, outputs, bias=self.loss != COX)

    def unfit(self, table: Table) -> Mapping[str, Sequence[int]]:
        """The examples without a time, an event or a feature that they must have.

        Raises:
          DataError: see `prepare`.
        """
        if not len(table):
            return {}
        gaps = {
            f"rows without {name!r}": read_column(table, name, TASK).isnan()
            for name in (self.time, self.status)
        }
        return first_reasons({**gaps, **self.inputs.unfit(table, TASK)})

    def prepare(self, table: Table) -> Tensors:
        """`x` (n, features), scaled, and `time` and `event` (n,).

        Times stay in float64: float32 would make two late ones equal.

        Raises:
          DataError: a column is not there or holds no numbers, a time is negative, or an event is
            neither 0 nor 1.
        """
        time, event = (read_column(table, name, TASK) for name in (self.time, self.status))
        if negative := int((time < 0).sum()):
            raise DataError(
                f"{TASK}: {negative} of {len(time)} times in the column {self.time!r} are "
                "negative: count time from when an example was first seen, or leave these out"
            )
        known = event[~event.isnan()]
        if other := int(((known != 0) & (known != 1)).sum()):
            raise DataError(
                f"{TASK}: {other} of {len(event)} values in the column {self.status!r} are neither "
                "0 nor 1: write 1 where the event came at that time, and 0 where the example was "
                "only seen until then"
            )
        x = self.inputs.read(table, TASK)
        found = {"x": x, "time": time, "event": event.float()}
        check_measured(found, TASK)
        if self.loss == COX and len(event) and not bool((event == 1).any()):
            getLogger("fedpeft").warning(
                "%s: none of %s has an event, so that Cox's loss learns nothing of them",
                TASK, say_count(len(event), "examples"),
            )  # fmt: skip
        return found

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return dict(rows)

    def example(self) -> Batch:
        """Two examples, of which the first has an event while the other is still seen."""
        x = torch.linspace(-1, 1, 2 * self.inputs.width).view(2, -1)
        time = torch.tensor([1.0, 2.0], dtype=torch.float64)
        return {"x": x, "time": time, "event": torch.tensor([1.0, 0.0]), "mask": torch.ones(2)}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        """`prediction` (batch, 1), the log of the relative hazard; or (batch, intervals), the
        log-odds of each interval's hazard."""
        with head_input(model, head) as seen:
            told = model(batch["x"])
        return {PREDICTION: told, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        told, time, event = outputs[PREDICTION].float(), batch["time"], batch["event"]
        if self.loss == COX:
            return cox_losses(told[:, 0], time, event, _mask(batch))
        return hazard_losses(told, time, event, time.new_tensor(self.cuts))

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
        """The loss and the pairs of all examples that are given; see `compares_examples`."""
        told = outputs[PREDICTION].float()
        risk = told[:, 0]
        if self.loss == DISCRETE:
            risk = -expected_times(told, batch["time"].new_tensor(self.cuts))
        pairs = concordance(risk, batch["time"], batch["event"], _mask(batch))
        return {"loss": self.losses(outputs, batch), "c_index": pairs}

    def check_sums(self, sums: Mapping[str, Weighted], examples: int) -> None:
        """Raises ValueError for more pairs than so many examples make, or more in order than
        there are."""
        told = sums.get("c_index", Weighted(0.0, 0.0))
        most = examples * (examples - 1) / 2
        if not 0 <= told.total <= told.weight <= most:
            raise ValueError(
                f"its c_index counts {told.total:g} pairs in order of {told.weight:g}, and "
                f"{examples:,} examples make at most {most:g}"
            )


def _mask(batch: Batch) -> Tensor:
    """Which examples count; all where the batch does not say."""
    mask = batch.get("mask")
    return torch.ones_like(batch["event"]) if mask is None else mask


def _check_cuts(cuts: Sequence[float]) -> None:
    rising = all(one < other for one, other in pairwise((0.0, *cuts)))
    if not cuts or not rising or not isfinite(cuts[-1]):
        raise ValueError(
            f'loss = "{DISCRETE}" needs cuts, the ends of its intervals in units of time, rising '
            f"from above 0 and finite, such as [30, 90, 365]; got {list(cuts)}"
        )
