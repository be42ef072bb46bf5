"""Distillation from the received model: FedGKD (Yao et al., 2021, arXiv:2107.00051)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import COUNTED, LOGITS, Outputs
from fedpeft.core.types import Batch, Tensors


@dataclass(frozen=True)
class Distillation:
    """weight · T² · KL(q ‖ p), with q = softmax(u / T) of the received model's logits u and
    p = softmax(z / T) of the logits z of the model in training.

    With T = 1 and weight γ / 2 this is FedGKD with the last global model alone in its buffer; its
    authors take γ = 0.2. T² keeps the gradient as long as it is without T (Hinton et al., 2015,
    arXiv:1503.02531). Of a language model it is the mean over the tokens that the loss counts.

    Attributes:
      weight: at 0 nothing is added.
      temperature: T.

    Raises:
      ValueError: a value out of range.
    """

    weight: float = 0.1
    temperature: float = 1.0
    compares: ClassVar[tuple[str, ...]] = ("received",)
    head: ClassVar[str | None] = None
    couples_examples: ClassVar[bool] = False
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.NO_LOGITS: "distillation compares logits, and {other} {what}: leave it out",
        Fact.PACKED: "distillation is a mean for each example, and {other} {what}: leave out one",
    }

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and isfinite(self.weight)):
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}")
        if not (self.temperature > 0 and isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")

    def loss(self, outputs: Outputs, batch: Batch, held: Tensors) -> Tensor:
        theirs, mine = (
            (logits.float() / self.temperature).log_softmax(-1)
            for logits in (held[f"received/{LOGITS}"], outputs[LOGITS])
        )
        each = self.temperature**2 * (theirs.exp() * (theirs - mine)).sum(-1)
        if COUNTED not in outputs:
            return each
        counted = outputs[COUNTED].to(each.dtype)
        return (each * counted).sum(1) / counted.sum(1).clamp_min(1)
