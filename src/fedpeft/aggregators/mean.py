"""The weighted mean (McMahan et al., 2017, arXiv:1602.05629)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregators.reduce import back, plus, wide
from fedpeft.core.facts import Fact
from fedpeft.core.tensors import layout, map_tensors, together, vector
from fedpeft.core.types import ClientId, State, Tensors, Update, Weighted


@dataclass(frozen=True)
class Mean:
    """Σ w·Δ / Σ w in float32 or wider, holding one running mean however large the cohort.

    The mean moves by w / Σ w towards each update, the sum running to and with it. Unlike a sum of
    w·Δ it is no larger than the updates are, and of one update, or of equal ones, it is that one to
    the bit. Updates of opposite sign near the end of their type still overflow, in the step from
    one to the other; the loop keeps its state then.

    Raises:
      ValueError: no update, or a weight that is not positive.
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAIN_MEAN})

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        mean = _RunningMean()
        metrics: Mapping[str, Weighted] = {}
        for update in updates:
            mean.add(update)
            metrics = plus(metrics, update.metrics)
        if not mean.weight:
            raise ValueError("no update arrived")
        return Update("", mean.result(), mean.weight, metrics)


@dataclass
class _RunningMean:
    """The mean of the updates so far, of each tensor over those that have it.

    Attributes:
      weight: the sum of all weights.
      each: by tensor the sum of the weights of those who sent it; empty while all have sent all.
      dtypes: the type in which a tensor came.
    """

    mean: dict[str, Tensor] = field(default_factory=dict)
    weight: float = 0.0
    each: dict[str, float] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    def add(self, update: Update) -> None:
        """Move towards one more update.

        Raises:
          ValueError: its weight is not positive.
        """
        if not update.weight > 0:
            raise ValueError(f"weight must be positive, got {update.weight}")
        delta, before = update.delta, self.weight
        self.weight += update.weight
        if not before:
            self.mean = together(map_tensors(wide, delta))
            self.dtypes = {name: x.dtype for name, x in delta.items()}
        elif not self.each and delta.keys() == self.mean.keys():
            _move(self.mean, delta, update.weight / self.weight)
        else:
            self.each = self.each or dict.fromkeys(self.mean, before)
            for name, x in delta.items():
                self._add_one(name, x, update.weight)

    def _add_one(self, name: str, x: Tensor, weight: float) -> None:
        self.each[name] = self.each.get(name, 0.0) + weight
        if name in self.mean:
            self.mean[name].lerp_(wide(x), weight / self.each[name])
        else:
            self.mean[name], self.dtypes[name] = wide(x).clone(), x.dtype

    def result(self) -> dict[str, Tensor]:
        """In the types in which the tensors came."""
        return {name: back(x, self.dtypes[name]) for name, x in self.mean.items()}


def _move(mean: Tensors, delta: Tensors, by: float) -> None:
    """That much of the way to the update, in place; at once, where both lie alike in vectors."""
    one, other = vector(mean), vector(delta)
    if one is None or other is None or layout(mean) != layout(delta):
        map_tensors(lambda m, d: m.lerp_(wide(d), by), mean, delta)
    else:
        one.detach().lerp_(other.detach(), by)
