"""Distillation of what is not true: FedNTD (Lee et al., 2022, arXiv:2106.03097)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import LOGITS, Outputs
from fedpeft.core.types import Batch, Tensors
from fedpeft.errors import PlanError


@dataclass(frozen=True)
class NotTrueDistillation:
    """weight · Σ_{c ≠ y} q_c · log(q_c / p_c), with q and p the softmax at temperature τ over all
    classes but the true one y, of the received model and of the model in training.

    So a client learns its own classes freely, and keeps what the received model knows of all
    others. The weight is β of the paper, and there is no factor τ².

    Attributes:
      weight: β; at 0 nothing is added.
      temperature: τ; the authors' code takes 3 where nothing is said.

    Raises:
      ValueError: a value out of range.
    """

    weight: float = 1.0
    temperature: float = 1.0
    compares: ClassVar[tuple[str, ...]] = ("received",)
    head: ClassVar[str | None] = None
    couples_examples: ClassVar[bool] = False
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.NO_LOGITS: "not-true distillation compares logits, and {other} {what}: leave it out"
    }

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and isfinite(self.weight)):
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}")
        if not (self.temperature > 0 and isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")

    def loss(self, outputs: Outputs, batch: Batch, held: Tensors) -> Tensor:
        """Raises PlanError where examples have no class."""
        logits = outputs[LOGITS]
        if "label" not in batch or logits.ndim != 2:
            raise PlanError(
                'the term "not_true" is for examples with one class each; for texts take '
                '"distillation"'
            )
        true = batch["label"][:, None] == torch.arange(logits.shape[1], device=logits.device)
        theirs, mine = (
            (x.float() / self.temperature).masked_fill(true, float("-inf")).log_softmax(-1)
            for x in (held[f"received/{LOGITS}"], logits)
        )
        # log(q / p) of the true class would be ∞ − ∞, and its gradient not a number
        apart = theirs.masked_fill(true, 0.0) - mine.masked_fill(true, 0.0)
        return (theirs.exp() * apart).sum(-1)
