"""RoLoRA: B and A trained in turn (Chen et al., 2025, arXiv:2502.01755)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedpeft.aggregators.factors import gathered
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class RoLoRA:
    """In rounds 1, 3, ... clients train B with one A for all, in rounds 2, 4, ... A with one B.
    Since Σ p·B_k·A is (Σ p·B_k)·A, the mean of what is trained is exact; only that goes up.

    Lower ranks are filled up with zeros, which is exact too.

    Raises:
      ValueError: no update, or a weight that is not positive.
    """

    plain: ClassVar[bool] = True
    still: ClassVar[tuple[str, ...]] = ("A", "B")

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        return gathered(updates, state, received).change({})
