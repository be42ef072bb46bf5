"""The head's rows, each as its class's examples say: who holds none of a class has no say in its
row.

Row c of the head's weight, and of its bias, moves by Σ n_kc·Δ_kc / Σ n_kc for n_kc examples of
class c at client k. Under label skew a client learns about a class it does not hold only that
nothing is of it; in a plain mean that may outweigh the few who hold it. A row of a class that
nobody in the cohort holds stays. Counts travel with the update.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpeft.aggregators.reduce import back, wide
from fedpeft.compute.trainable import linear_head
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Aggregator
from fedpeft.core.types import ClientId, State, Tensors, Update
from fedpeft.registry import part

COUNTS = "class_counts"
MOST = 2**53
"""No count is above it: up to here a float holds each."""


@dataclass(frozen=True)
class ClassRows:
    """The inner aggregator's result, with the rows of the head as their classes' examples say.

    Attributes:
      inner: the aggregator of all other tensors, a kind of mean.
      head: the name of the head's module; "auto" finds the usual ones.
    """

    inner: Aggregator = part("aggregator", "mean")
    head: str = "auto"
    weights_rows: ClassVar[bool] = True
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.COMPARES: "class_rows takes a mean of rows, past what {other} keeps out: leave it "
        'out, or take a mean, such as inner = "mean"',
    }
    reveals: ClassVar[frozenset[str]] = frozenset({COUNTS})

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where there is no linear head that is trained and shared."""
        self._weight(params)

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        """Updates without counts have a say in no row of their own: the inner result stays."""
        updates = iter(updates)
        first = next(updates, None)
        if first is None or COUNTS not in first.told:
            return self.inner(chain(() if first is None else (first,), updates), state, received)
        rows = _Rows.of(self._weight(state.params), state.params)
        every = rows.passing(chain([first], updates))
        return rows.instead(self.inner(every, state, received))

    def tell(self, client: Any) -> Mapping[str, Any]:
        """How many examples of each class a client trains on."""
        classes = len(client.received[self._weight(client.received)])
        return {COUNTS: client.class_counts(classes)}

    def check_update(self, update: Update, state: State, plan: Any) -> None:
        """Raises ValueError for counts that are not as the plan asks for, or not of the examples
        that the client counts."""
        classes = len(state.params[self._weight(state.params)])
        counts = update.told.get(COUNTS, ())
        whole = isinstance(counts, (list, tuple)) and all(
            type(x) is int and 0 <= x <= MOST for x in counts
        )
        if not whole:
            raise ValueError("its class counts are no numbers of examples")
        if len(counts) != classes:
            raise ValueError(
                f"it tells {len(counts)} class counts, and the plan asks for {classes}"
            )
        if plan.weighting == "examples" and sum(counts) != update.weight:
            raise ValueError(
                f"its class counts are of {sum(counts)} examples, and it counts for "
                f"{update.weight:g} of them"
            )

    def _weight(self, params: Tensors) -> str:
        return linear_head(params, self.head, "class_rows")


@dataclass
class _Rows:
    """The mean of the head's rows, made while an aggregator reads the updates.

    Attributes:
      names: of the head's weight and bias, as far as they are shared.
      counts: examples so far, (classes,).
    """

    names: tuple[str, ...]
    counts: Tensor
    mean: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, weight: str, params: Tensors) -> "_Rows":
        bias = f"{weight.removesuffix('.weight')}.bias"
        names = (weight, bias) if bias in params else (weight,)
        return cls(names, torch.zeros(len(params[weight])))

    def passing(self, updates: Iterable[Update]) -> Iterator[Update]:
        """The updates, each looked at as it passes."""
        for update in updates:
            own = torch.tensor(update.told[COUNTS], dtype=torch.float64)
            self.counts = self.counts + own
            # towards each update as the mean of all: see `Mean`
            share = own / self.counts.clamp_min(1)
            for name in self.names:
                x = wide(update.delta[name])
                by = share.to(x).reshape(-1, *[1] * (x.ndim - 1))
                self.mean[name] = torch.lerp(self.mean.get(name, torch.zeros_like(x)), x, by)
            yield update

    def instead(self, merged: Update) -> Update:
        """The cohort's update with these rows in the place of the aggregator's."""
        own = {name: back(x, merged.delta[name].dtype) for name, x in self.mean.items()}
        return replace(merged, delta={**merged.delta, **own})
