"""Local training as it is: FedAvg (McMahan et al., 2017, arXiv:1602.05629)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedpeft.core.types import Tensors


@dataclass(frozen=True)
class NoCorrection:
    """g stays g."""

    share: ClassVar[str] = ""

    def begin(self, received: Tensors, shared: Tensors, memory: Tensors) -> Tensors:
        return {}

    def apply(self, gradient: Tensors, params: Tensors, held: Tensors) -> Tensors:
        return gradient

    def finish(
        self, delta: Tensors, shared: Tensors, memory: Tensors, path: Tensor
    ) -> tuple[Tensors, Tensors]:
        return {}, {}
