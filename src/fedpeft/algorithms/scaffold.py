"""SCAFFOLD: Stochastic Controlled Averaging for Federated Learning (Karimireddy et al., 2020,
arXiv:1910.06378, Algorithm 1, option II)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.tensors import Layout, layout, map_tensors, sub, zeros_like
from fedpeft.core.types import Cohort, Tensors


@dataclass(frozen=True)
class Scaffold:
    """On a client g ← g − cᵢ + c, and after training cᵢ⁺ = cᵢ − c − Δ / path, of which
    Δcᵢ = cᵢ⁺ − cᵢ is sent. On the server c ← c + (|S| / N)·Δc, with Δc the mean of what the |S|
    of N clients sent.

    c travels as the group "c"; cᵢ is this client's memory. Both are zero at first. `path` is how
    far the steps carry a gradient that is always 1: K·η for K plain steps at a constant rate. The
    quotient Δ / path is a mean gradient only where steps are sums of gradients. So a plan takes no
    optimizer but SGD beside this. The parameters move by the plan's own server optimizer.

    c is exactly the mean of the clients' control variates with `weighting = "uniform"`; by
    examples, a client with more of them counts more in it, as in the model.
    """

    share: ClassVar[str] = "c"
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.CONTROL, Fact.REMEMBERS})
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.PLAIN_STEPS: "SCAFFOLD's control variates are mean gradients, which it tells from "
        "what SGD's steps add up to; those of another optimizer are no sums of gradients: set "
        'local.optimizer to "sgd", or go without SCAFFOLD',
    }

    def begin(self, received: Tensors, shared: Tensors, memory: Tensors) -> Tensors:
        return {name: c - memory[name] if name in memory else c for name, c in shared.items()}

    def apply(self, gradient: Tensors, params: Tensors, held: Tensors) -> Tensors:
        return {name: g + held[name] for name, g in gradient.items()}

    def finish(
        self, delta: Tensors, shared: Tensors, memory: Tensors, path: Tensor
    ) -> tuple[Tensors, Tensors]:
        mine = memory or zeros_like(delta)
        now = {name: mine[name] - shared[name] - d / path for name, d in delta.items()}
        return sub(now, mine), now

    def shares(self, params: Tensors) -> Mapping[str, Layout]:
        return {self.share: layout(params)}

    def merge_share(self, shared: Tensors, change: Tensors, cohort: Cohort) -> Tensors:
        """c of the next round, from the mean change of those who answered."""
        answered = len(cohort.weights) / cohort.population
        moved = {name: shared[name] for name in change}
        return {**shared, **map_tensors(lambda c, d: c.add(d, alpha=answered), moved, change)}
