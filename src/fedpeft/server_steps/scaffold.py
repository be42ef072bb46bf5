"""SCAFFOLD, the server's half (Karimireddy et al., 2020, arXiv:1910.06378, Algorithm 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import ServerOptimizer
from fedpeft.core.tensors import beside, map_tensors, prefixed, under, zeros_like
from fedpeft.core.types import Cohort, Tensors
from fedpeft.registry import part

SHARE = "c"


@dataclass(frozen=True)
class Scaffold:
    """c ← c + (|S| / N)·Δc for the |S| of N clients that answered; the parameters move by the inner
    optimizer.

    c is the mean of the clients' control variates, zero at first; it travels as `c/<name>`. It is
    exactly that mean with `weighting = "uniform"`; by examples, a client with more of them counts
    more in it, as in the model.

    Attributes:
      inner: the optimizer of the parameters.

    Raises:
      ValueError: the inner optimizer keeps a `c` of its own.
    """

    inner: ServerOptimizer = part("server", "average")
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.KEEPS_CONTROL})
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.CONTROL: "the server keeps control variates, and the clients' correction shares none: "
        'for SCAFFOLD set both local.correction and server to "scaffold"',
    }

    def __post_init__(self) -> None:
        if SHARE in self.inner.keeps:
            raise ValueError("inner must be another server optimizer than SCAFFOLD's")

    @property
    def keeps(self) -> tuple[str, ...]:
        return (SHARE, *self.inner.keeps)

    def init(self, params: Tensors) -> tuple[Tensors, Tensors]:
        begun, memory = self.inner.init(params)
        return {**begun, **prefixed(SHARE, zeros_like(params))}, memory

    def step(
        self, params: Tensors, memory: Tensors, delta: Tensors, cohort: Cohort
    ) -> tuple[Tensors, Tensors]:
        share = len(cohort.weights) / cohort.population
        control = map_tensors(
            lambda c, d: c.add(d, alpha=share), under(SHARE, params), under(SHARE, delta)
        )
        moved, memory = self.inner.step(
            beside((SHARE,), params), memory, beside((SHARE,), delta), cohort
        )
        return {**moved, **prefixed(SHARE, control)}, memory
