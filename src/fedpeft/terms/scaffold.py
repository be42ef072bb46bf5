"""SCAFFOLD, the client's half (Karimireddy et al., 2020, arXiv:1910.06378, Algorithm 1, option
II)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.tensors import prefixed, sub, under, zeros_like
from fedpeft.core.types import Tensors

SHARE = "c"


@dataclass(frozen=True)
class Scaffold:
    """g ← g − cᵢ + c, and after training cᵢ⁺ = cᵢ − c − Δ / path, of which Δcᵢ = cᵢ⁺ − cᵢ is sent.

    c comes as `c/<name>` and Δcᵢ goes the same way; cᵢ is this client's memory, zero at first.
    `path` is how far the
    steps carry a gradient that is always 1: K·η for K plain steps at a constant rate.
    Δ / path is a mean gradient only where steps are sums of gradients: a plan takes no optimizer
      but SGD beside this.
    """

    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.CONTROL, Fact.REMEMBERS})
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.KEEPS_CONTROL: "the clients' correction shares control variates, and the server keeps "
        'none: for SCAFFOLD set both local.correction and server to "scaffold"',
        Fact.PLAIN_STEPS: "SCAFFOLD's control variates are mean gradients, which it tells from "
        "what SGD's steps add up to; those of another optimizer are no sums of gradients: set "
        'local.optimizer to "sgd", or go without SCAFFOLD',
    }

    @property
    def shares(self) -> tuple[str, ...]:
        return (SHARE,)

    def begin(self, received: Tensors, memory: Tensors) -> Tensors:
        shared = under(SHARE, received)
        return {name: c - memory[name] if name in memory else c for name, c in shared.items()}

    def apply(self, gradient: Tensors, params: Tensors, held: Tensors) -> Tensors:
        return {name: g + held[name] for name, g in gradient.items()}

    def finish(
        self, delta: Tensors, received: Tensors, memory: Tensors, path: Tensor
    ) -> tuple[Tensors, Tensors]:
        shared, mine = under(SHARE, received), memory or zeros_like(delta)
        now = {name: mine[name] - shared[name] - d / path for name, d in delta.items()}
        return {**delta, **prefixed(SHARE, sub(now, mine))}, now
