"""The head's rows, each as its class's examples say: who holds none of a class has no say in its
row.

Row c of the head's weight, and of its bias, moves by Σ n_kc·Δ_kc / Σ n_kc for n_kc examples of
class c at client k. Under label skew a client learns about a class it does not hold only that
nothing is of it; in a plain mean that may outweigh the few who hold it. A row of a class that
nobody in the cohort holds stays. Counts travel with the update.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedpeft.aggregators.gathering import back, wide
from fedpeft.core.interfaces import Data
from fedpeft.core.trainable import HEADS
from fedpeft.core.types import ClientId, Tensors, Update
from fedpeft.errors import PlanError
from fedpeft.plan import Plan


def head_weight(plan: Plan, params: Tensors, key: str) -> str:
    """The name of the head's weight (classes, features) among what is shared; `key` of the plan
    asks for it.

    Raises:
      PlanError: there is none.
    """
    head = getattr(plan.method, "head", "auto")
    for name, x in params.items():
        module = name.removesuffix(".weight")
        if (
            x.ndim == 2
            and name != module
            and (module in HEADS if head == "auto" else module == head)
        ):
            return name
    raise PlanError(
        f'{key} = "{getattr(plan, key)}" needs a linear head that is trained and shared, and there '
        "is none"
    )


def rows_told(plan: Plan, params: Tensors) -> int:
    """Of how many classes a client tells how many examples it has.

    Raises:
      PlanError: the plan asks for them, and there is no head with a row for each.
    """
    return len(params[head_weight(plan, params, "head_rows")]) if plan.head_rows else 0


def class_counts(data: Data, client: ClientId, classes: int) -> tuple[int, ...]:
    """How many examples of each class a client trains on.

    Raises:
      PlanError: its examples have no labels.
    """
    counts = torch.zeros(classes, dtype=torch.int64)
    for batch in data.held_out(client) if classes else ():
        if "label" not in batch:
            raise PlanError("head_rows is for examples with labels: leave it out")
        counts += torch.bincount(batch["label"].cpu()[batch["mask"].cpu() > 0], minlength=classes)
    return tuple(counts.tolist()) if classes else ()


def check_counts(plan: Plan, update: Update, classes: int) -> None:
    """Raises ValueError for counts that are not as the plan asks for, or not of the examples that
    the client counts."""
    if len(update.counts) != classes:
        raise ValueError(
            f"it tells {len(update.counts)} class counts, and the plan asks for {classes}"
        )
    if classes and plan.weighting == "examples" and sum(update.counts) != update.weight:
        raise ValueError(
            f"its class counts are of {sum(update.counts)} examples, and it counts for "
            f"{update.weight:g} of them"
        )


@dataclass
class Rows:
    """The mean of the head's rows, made while an aggregator reads the updates.

    Attributes:
      names: of the head's weight and bias, as far as they are shared.
      counts: examples so far, (classes,).
    """

    names: tuple[str, ...]
    counts: Tensor
    mean: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, params: Tensors) -> "Rows":
        weight = head_weight(plan, params, "head_rows")
        bias = f"{weight.removesuffix('.weight')}.bias"
        return cls(
            (weight, bias) if bias in params else (weight,), torch.zeros(len(params[weight]))
        )

    def passing(self, updates: Iterable[Update]) -> Iterator[Update]:
        """The updates, each looked at as it passes."""
        for update in updates:
            own = torch.tensor(update.counts, dtype=torch.float64)
            self.counts = self.counts + own
            share = own / self.counts.clamp_min(
                1
            )  # towards each update as the mean of all: see `Mean`
            for name in self.names:
                x = wide(update.delta[name])
                by = share.to(x).reshape(-1, *[1] * (x.ndim - 1))
                self.mean[name] = torch.lerp(self.mean.get(name, torch.zeros_like(x)), x, by)
            yield update

    def instead(self, merged: Update) -> Update:
        """The cohort's update with these rows in the place of the aggregator's."""
        own = {name: back(x, merged.delta[name].dtype) for name, x in self.mean.items()}
        return replace(merged, delta={**merged.delta, **own})
