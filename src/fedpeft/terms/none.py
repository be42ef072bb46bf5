"""Local training as it is: FedAvg (McMahan et al., 2017, arXiv:1602.05629)."""

from dataclasses import dataclass

from torch import Tensor

from fedpeft.core.types import Tensors


@dataclass(frozen=True)
class NoCorrection:
    @property
    def shares(self) -> tuple[str, ...]:
        return ()

    def begin(self, received: Tensors, memory: Tensors) -> Tensors:
        return {}

    def apply(self, gradient: Tensors, params: Tensors, held: Tensors) -> Tensors:
        return gradient

    def finish(
        self, delta: Tensors, received: Tensors, memory: Tensors, path: Tensor
    ) -> tuple[Tensors, Tensors]:
        return delta, {}
