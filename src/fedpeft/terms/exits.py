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
from fedpeft.core.outputs import CARRIED, LOGITS, ROUND, Outputs, further_logits, note_mean
from fedpeft.core.types import Batch, Tensors
from fedpeft.errors import PlanError, unknown
from fedpeft.registry import unwritten

BEST, LAST, ALL = "best", "last", "all"
STEEPNESS = 5.0
MOST, QUALITY = 64, "exits/quality"
"""Of how many exits the losses are remembered, whichever a client holds, and their name."""


@dataclass(frozen=True)
class ExitDistillation:
    """weight · w_r · T² · Σ KL(p_t ‖ p_e) over the exits e, with p = softmax(z / T) of an exit's
    logits z and no gradient through the teacher t.

    The teacher is the exit with the least mean loss on the batch ("best"), the last one ("last"),
    or every other one, of which the mean counts ("all"). The losses of all exits are in the method;
    this is what comes on top. w_r = exp(−5·(1 − min(r, R) / R)²) in round r, from 0, so that
    exits learn from labels first. A client that holds one exit has nothing to add.

    With `decay` the best exit is that of a moving average over a client's steps of a round,
    a ← decay·a + (1 − decay)·(the mean loss of the batch), from 0, the present batch included. The
    authors have 0.8; at 0 the batch alone tells it.

    Attributes:
      weight: at 0 nothing is added.
      teacher: "best", "last" or "all".
      ramp: R, in rounds; 0 for w_r = 1 from the start.
      temperature: T.
      decay: of the moving average; for the teacher "best".

    Raises:
      ValueError: a value out of range.
    """

    weight: float = 1.0
    teacher: str = BEST
    ramp: int = 300
    temperature: float = 1.0
    decay: float = unwritten(0.0)
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
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay}")
        if self.decay and self.teacher != BEST:
            raise ValueError(
                f'decay = {self.decay} is of the losses that choose the teacher "{BEST}", and the '
                f"teacher is {self.teacher!r}: leave decay out"
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
        elif self.teacher == LAST:
            each = _divergence(logs[-1].detach(), logs).sum(0)
        else:
            losses = _losses(logits.detach(), batch["label"])
            best = self._quality(losses, batch["mask"], held).argmin()
            taught = logs.detach().index_select(0, best.view(1))[0]
            each = _divergence(taught, logs).sum(0)
        value = self._ramped(held) * self.temperature**2 * each
        if not self.decay:
            return value
        losses = _losses(logits.detach(), batch["label"])
        unused = losses.new_zeros(losses.shape[1], MOST - len(losses))
        return value + note_mean(held[f"{CARRIED}/{QUALITY}"], torch.cat([losses.T, unused], 1))

    def first_carried(self) -> Tensors:
        """The moving average of the losses of all exits that a model may have, (exits,)."""
        return {QUALITY: torch.zeros(MOST)} if self.decay else {}

    def carry(self, before: Tensors, noted: Tensors) -> Tensors:
        return {
            name: self.decay * x + (1 - self.decay) * noted[name] / self.weight
            for name, x in before.items()
        }

    def _quality(self, losses: Tensor, mask: Tensor, held: Tensors) -> Tensor:
        """By which the best exit is told, (exits,), of its losses (exits, batch).

        Raises:
          PlanError: there are more exits than are remembered.
        """
        total = (losses * mask).sum(1)
        if not self.decay:
            return total
        if len(losses) > MOST:
            raise PlanError(
                f'the term "exits" remembers {MOST} exits at most, and the model has '
                f"{len(losses)}: set decay = 0, or fewer method.exits"
            )
        before = held[f"{CARRIED}/{QUALITY}"].detach()[: len(losses)]
        return self.decay * before + (1 - self.decay) * total / mask.sum().clamp_min(1)

    def _ramped(self, held: Tensors) -> Tensor | float:
        """w_r."""
        if not self.ramp:
            return 1.0
        left = 1 - held[ROUND].clamp_max(self.ramp) / self.ramp
        return torch.exp(-STEEPNESS * left.square())


def _losses(logits: Tensor, label: Tensor) -> Tensor:
    """The cross-entropy of all exits, (exits, batch)."""
    return torch.stack([cross_entropy(one, label, reduction="none") for one in logits])


def _divergence(theirs: Tensor, mine: Tensor) -> Tensor:
    """KL(theirs ‖ mine) of logarithms, over the last dimension."""
    return (theirs.exp() * (theirs - mine)).sum(-1)
