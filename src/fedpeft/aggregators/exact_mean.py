"""The weighted mean from whole numbers, which no order of adding and no processor changes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregators.reduce import back, plus
from fedpeft.core.facts import Fact
from fedpeft.core.types import ClientId, State, Tensors, Update, Weighted

STEP = 40
"""Bits from the first of the two whole numbers of an entry to the second."""
FIRST, SECOND = 2.0**-20, 2.0**-60
"""What one counts in each of them."""
LARGEST = 2.0**42
"""The size of a sum below which it is exact."""
BLOCK = 1 << 14
"""Entries that are worked on at once: they stay in a processor's cache."""


@dataclass(frozen=True)
class ExactMean:
    """Σ w·Δ / Σ w with sums of integers, in any order the same bits.

    Each product w·Δ is rounded to a multiple of 2^-60, and what is rounded is added up exactly, up
    to 2^23 clients and sums of 2^42. A sum beyond that is a sum of floating-point numbers. Integer
    addition is associative, so that groups of clients may be added first. All else is one operation
    of IEEE 754 an entry, with one result on each processor. `mean` depends on both in its last
    bits.

    Raises:
      ValueError: no update, or a weight that is not positive.
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAIN_MEAN})

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        sums: dict[str, ExactSum] = {}
        weight, metrics = Fraction(), dict[str, Weighted]()
        for update in updates:
            if not update.weight > 0:
                raise ValueError(f"weight must be positive, got {update.weight}")
            weight += Fraction(update.weight)
            metrics = plus(metrics, update.metrics)
            for name, x in update.delta.items():
                sums.setdefault(name, ExactSum.of(x)).add(x, update.weight)
        if not weight:
            raise ValueError("no update arrived")
        delta = {name: each.mean() for name, each in sums.items()}
        return Update("", delta, float(weight), metrics)


@dataclass
class ExactSum:
    """Σ w·x of tensors of one shape.

    Attributes:
      like: what they look like, and in which type the mean is given back; without numbers.
      rough: the sum in float64, for entries that are too large to be exact; (numbers,).
      first, second: the integers of each entry; (numbers,) each.
      weight: the sum of all weights.
    """

    like: Tensor
    rough: Tensor
    first: Tensor
    second: Tensor
    weight: Fraction = field(default_factory=Fraction)

    @classmethod
    def of(cls, x: Tensor) -> "ExactSum":
        """Begin an empty sum for tensors such as `x`."""
        first, second = (torch.zeros(x.numel(), dtype=torch.int64) for _ in range(2))
        return cls(x.to("meta"), torch.zeros(x.numel(), dtype=torch.float64), first, second)

    def add(self, x: Tensor, weight: float) -> None:
        """Add one more.

        Raises:
          ValueError: it has another shape.
        """
        if x.shape != self.like.shape:
            raise ValueError(f"a tensor of {tuple(x.shape)} comes to {tuple(self.like.shape)}")
        self.weight += Fraction(weight)
        lying = (x.detach().reshape(-1), self.rough, self.first, self.second)
        for each, rough, first, second in zip(*(torch.split(y, BLOCK) for y in lying), strict=True):
            product = each.double() * weight
            rough += product
            # What is too large is not cut into whole numbers, as integers would overflow.
            product = torch.where(product.abs() < LARGEST, product, 0.0)
            count = (product / FIRST).round_()
            first += count.long()
            second += product.sub_(count, alpha=FIRST).div_(SECOND).round_().long()

    def join(self, other: "ExactSum") -> None:
        """Add a sum of others."""
        self.weight += other.weight
        self.rough += other.rough
        self.first += other.first
        self.second += other.second

    def mean(self) -> Tensor:
        # Equal sums get equal integers, however they came about: the second ones are below 2^40.
        carry = (self.second + (1 << (STEP - 1))) >> STEP
        first, second = self.first + carry, self.second - (carry << STEP)
        total = first.double() * FIRST + second.double() * SECOND
        total = torch.where(self.rough.abs() < LARGEST, total, self.rough)
        return back(total / float(self.weight), self.like.dtype).reshape(self.like.shape)
