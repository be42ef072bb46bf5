"""FedProx: stay near what was received (Li et al., 2020, arXiv:1812.06127)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedpeft.core.types import Tensors


@dataclass(frozen=True)
class Prox:
    """g ← g + μ·(θ − θ_received), the gradient of (μ / 2)·‖θ − θ_received‖².

    Attributes:
      mu: μ; at 0 this is FedAvg, to the bit.

    Raises:
      ValueError: `mu` is negative or not finite.
    """

    mu: float = 0.01
    share: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not 0 <= self.mu < float("inf"):
            raise ValueError(f"mu must be at least 0 and finite, got {self.mu}")

    def begin(self, received: Tensors, shared: Tensors, memory: Tensors) -> Tensors:
        return dict(received) if self.mu else {}

    def apply(self, gradient: Tensors, params: Tensors, held: Tensors) -> Tensors:
        if not self.mu:
            return gradient
        return {
            name: g.add(params[name] - held[name], alpha=self.mu) for name, g in gradient.items()
        }

    def finish(
        self, delta: Tensors, shared: Tensors, memory: Tensors, path: Tensor
    ) -> tuple[Tensors, Tensors]:
        return {}, {}
