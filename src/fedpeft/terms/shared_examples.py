"""The task's loss on examples that the server makes and sends to all clients."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import LOSSES, Outputs
from fedpeft.core.tensors import take_prefix
from fedpeft.core.types import Batch, Tensors

OWNER = "shared_examples"
"""The owner under which an algorithm shares them, with their `mask`."""


@dataclass(frozen=True)
class SharedExamples:
    """weight · (the mean of the task's losses on the shared examples), in every step.

    An algorithm such as "fed_trend" makes the examples; as long as it has made none, the term is 0.
    The model sees them without dropout.

    Attributes:
      weight: at 0 nothing is added, and no pass is paid. With n own examples and m shared ones in
        each epoch, as where both lie in one data set, it would be m / n.

    Raises:
      ValueError: a value out of range.
    """

    weight: float = 1.0
    compares: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[str | None] = None
    given_by: ClassVar[str] = OWNER
    couples_examples: ClassVar[bool] = False
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.SHARES_EXAMPLES: "the term learns from examples that the server makes, and no "
        'algorithm makes some: set algorithms = ["fed_trend"], or leave the term out',
    }

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and isfinite(self.weight)):
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}")

    def examples(self, held: Tensors) -> Batch:
        return take_prefix(OWNER, held)

    def loss(self, outputs: Outputs, batch: Batch, held: Tensors) -> Tensor:
        mask = batch["mask"]
        return (outputs[LOSSES] * mask).sum() / mask.sum().clamp_min(1)
