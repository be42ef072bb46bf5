"""Exits that learn from each other: ReeFL's distillation (Lee et al., 2024, arXiv:2405.14791), read
in the authors' code."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import LOGITS, ROUND, Outputs, further_logits
from fedpeft.core.types import Batch, Tensors
from fedpeft.errors import PlanError, unknown

BEST, LAST, ALL = "best", "last", "all"
STEEPNESS = 5.0


@dataclass(frozen=True)
class ExitDistillation:
    """weight · w_r · T² · Σ KL(p_t ‖ p_e) over the exits e, with p = softmax(z / T) of an exit's
    logits z and no gradient through the teacher t.

    The teacher is the exit with the least mean loss on the batch ("best"), the last one ("last"),
    or every other one, of which the mean counts ("all"). The losses of all exits are in the method;
    this is what comes on top. w_r = exp(−5·(1 − min(r, R) / R)²) in round r, from 0, so that
    exits learn from labels first. A client that holds one exit has nothing to add.

    The authors choose the best exit by a moving average of its losses over a client's steps, in
    which the batch counts 0.2; here the batch alone tells it.

    Attributes:
      weight: at 0 nothing is added.
      teacher: "best", "last" or "all".
      ramp: R, in rounds; 0 for w_r = 1 from the start.
      temperature: T.

    Raises:
      ValueError: a value out of range.
    """

    weight: float = 1.0
    teacher: str = BEST
    ramp: int = 300
    temperature: float = 1.0
    compares: ClassVar[tuple[str, ...]] = ()
    head: ClassVar[str | None] = None
    reads_round: ClassVar[bool] = True
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.SEVERAL_LOGITS: "exits teach each other, and this model has one: set method = "
        '{{ name = "early_exits", exits = [...] }}, or leave the term out',
    }
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.NO_LOGITS: "exits compare logits, and {other} {what}: leave it out",
    }

    def __post_init__(self) -> None:
        if not (self.weight >= 0 and isfinite(self.weight)):
            raise ValueError(f"weight must be at least 0 and finite, got {self.weight}")
        if not (self.temperature > 0 and isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if self.ramp < 0:
            raise ValueError(
                f"ramp is a number of rounds and must not be negative, got {self.ramp}"
            )
        if self.teacher not in (BEST, LAST, ALL):
            raise ValueError(unknown("teacher", self.teacher, (BEST, LAST, ALL)))

    @property
    def couples_examples(self) -> bool:
        """Whether a batch chooses its teacher together."""
        return self.teacher == BEST

    def loss(self, outputs: Outputs, batch: Batch, held: Tensors) -> Tensor:
        """Raises PlanError where examples have no class."""
        if "label" not in batch or outputs[LOGITS].ndim != 2:
            raise PlanError('the term "exits" is for examples with one class each: leave it out')
        every = [*further_logits(outputs).values(), outputs[LOGITS]]
        logits = torch.stack([one.float() for one in every])  # (exits, batch, classes)
        logs = (logits / self.temperature).log_softmax(-1)
        if self.teacher == ALL:
            pairs = _divergence(logs.detach()[:, None], logs[None])
            each = pairs.sum((0, 1)) / max(1, len(every) - 1)
        else:
            each = _divergence(self._taught_by(logits, logs.detach(), batch), logs).sum(0)
        return self._ramped(held) * self.temperature**2 * each

    def _taught_by(self, logits: Tensor, logs: Tensor, batch: Batch) -> Tensor:
        """The teacher's logarithms, (batch, classes)."""
        if self.teacher == LAST:
            return logs[-1]
        losses = [cross_entropy(one, batch["label"], reduction="none") for one in logits.detach()]
        means = (torch.stack(losses) * batch["mask"]).sum(1)  # by one number of examples for all
        return logs.index_select(0, means.argmin().view(1))[0]

    def _ramped(self, held: Tensors) -> Tensor | float:
        """w_r."""
        if not self.ramp:
            return 1.0
        left = 1 - held[ROUND].clamp_max(self.ramp) / self.ramp
        return torch.exp(-STEEPNESS * left.square())


def _divergence(theirs: Tensor, mine: Tensor) -> Tensor:
    """KL(theirs ‖ mine) of logarithms, over the last dimension."""
    return (theirs.exp() * (theirs - mine)).sum(-1)
