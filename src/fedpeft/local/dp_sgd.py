"""Differentially private descent, DP-SGD (Abadi et al., 2016, arXiv:1607.00133, Algorithm 1)."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpeft.core.accounting import check_noise
from fedpeft.core.interfaces import Added, Augment, Data, LossFn, Optimizer, Term
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import (
    SMALLEST,
    add,
    add_prefix,
    drop_prefixes,
    map_tensors,
    shrink_factors,
    take_prefix,
)
from fedpeft.core.types import Batch, Carry, Context, Event, Tensors
from fedpeft.local.descent import Descent, changed
from fedpeft.registry import part, parts

NOISE = "noise"
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class DpSgd:
    """g = (Σ clip(∇ℓᵢ, C) + N(0, (z·C)²)) / B over the examples i of a Poisson draw, then a step of
    the optimizer.

    Each example is drawn for each step with probability q by itself; its gradient is clipped with
    all tensors as one vector; a gradient that is not finite, or more than 8e37 times too long,
    counts as zero. B, q and the number of steps are the plan's, the same for all clients: a
    client's size is as secret as its examples. So a client with more examples takes longer steps.

    Attributes:
      steps: in a round.
      rate: q.
      batch_size: B, what the noisy sum is divided by; the number of examples that a draw of a usual
        client has.
      clip_norm: C.
      noise_multiplier: z; left out, it follows from the plan's `target_epsilon`.
      chunk: how many gradients are held at a time.
      lr, schedule, warmup, precision, optimizer, terms, augments: as of `descent`; no float16,
        whose overflow would tell of an example, and no term or augment that couples examples.

    Raises:
      ValueError: a value out of range.
    """

    steps: int = 4
    rate: float = 0.25
    batch_size: int = 16
    clip_norm: float = 1.0
    noise_multiplier: float | None = None
    chunk: int = 32
    lr: float = 0.01
    schedule: str = "constant"
    warmup: float = 0.0
    precision: str = "float32"
    optimizer: Optimizer = part("optimizer", "sgd")
    terms: tuple[Term, ...] = parts("term", unwritten=True)
    augments: tuple[Augment, ...] = parts("augment", unwritten=True)
    _descent: Descent = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.chunk) < 1:
            raise ValueError(
                f"steps, batch_size and chunk must be at least 1, got {self.steps}, "
                f"{self.batch_size} and {self.chunk}"
            )
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is a probability and must be in (0, 1], got {self.rate}")
        check_noise(self.clip_norm, self.noise_multiplier)
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        descent = Descent(
            lr=self.lr,
            schedule=self.schedule,
            warmup=self.warmup,
            optimizer=self.optimizer,
            terms=self.terms,
        )
        object.__setattr__(self, "_descent", descent)

    @property
    def passes(self) -> float:
        return self.steps * self.rate

    @property
    def remembers(self) -> bool:
        """Whether a client keeps the model that it ended with, for a term."""
        return self._descent.remembers

    @property
    def event(self) -> Event | None:
        return Event("example", self.noise_multiplier, self.rate, self.steps)

    def steps_for(self, size: int) -> int:
        return self.steps

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        """Draws and noise. Whatever else is random in a batch must be as secret: of two data sets
        that differ in an example, the others' crops would otherwise tell which one it is."""
        assert context.secret is not None and self.noise_multiplier is not None
        draws = generator(context.secret.at("augmentation").seed)
        for step in range(self.steps):
            secret = context.secret.at("step", step)
            drawn = (secret.at("drawn").uniform(context.size) < self.rate).nonzero()[:, 0]
            # an empty draw is a step of noise alone: one example that does not count
            places = drawn if len(drawn) else torch.zeros(1, dtype=torch.long)
            [batch] = changed(self.augments, [data.chosen(context.client, places, draws)], draws)
            mask = torch.ones(len(drawn)) if len(drawn) else torch.zeros(1)
            std = self.noise_multiplier * self.clip_norm if self.noise_multiplier else 0.0
            noise = {
                name: (secret.at(NOISE, name).normal(x.shape) * std).to(x.dtype)
                for name, x in received.items()
            }
            yield {**batch, "mask": mask, **add_prefix(NOISE, noise)}

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        return self._descent.begin(received, memory, context)

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        return self._descent.step(
            carry, batch, Private(losses, self.clip_norm, self.batch_size, self.chunk)
        )

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        delta, memory, _ = self._descent.finish(carry, received, memory)
        return delta, memory, {}


@dataclass(frozen=True)
class Private:
    """A loss whose gradient is the noisy mean of clipped ones; what the losses are, it does not
    tell.

    Attributes:
      divisor: B.
    """

    losses: LossFn
    clip_norm: float
    divisor: float
    chunk: int

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        return self.losses(params, batch, added)

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        return self.losses.gradients(params, batch, added)

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        rows, mask = drop_prefixes((NOISE,), batch), batch["mask"]
        total: Tensors | None = None
        for start in range(0, len(mask), self.chunk):
            some = slice(start, start + self.chunk)
            chunk = {name: x[some] for name, x in rows.items()}
            each = self.losses.gradients(params, chunk, added)
            part_ = _clipped_sum(each, mask[some], self.clip_norm)
            total = part_ if total is None else add(total, part_)
        assert total is not None
        # rounded after the noise: a sum of 1,000 in float32 moved by 1.00005 of the clip norm
        mean = map_tensors(
            lambda g, noise: ((g + noise) / self.divisor).to(noise.dtype),
            total,
            take_prefix(NOISE, batch),
        )
        return mean, torch.zeros_like(mask), {}


def _clipped_sum(each: Tensors, mask: Tensor, limit: float) -> Tensors:
    """Σ mask·clip(g) over the first dimension, float64."""
    lengths = [
        torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1, dtype=torch.float64)
        for g in each.values()
    ]
    factor = shrink_factors(torch.stack(lengths).square().sum(0).sqrt(), limit)
    factor = torch.where(factor < SMALLEST, 0.0, factor) * mask

    def summed(g: Tensor) -> Tensor:
        by = factor.to(g.dtype).view(-1, *[1] * (g.ndim - 1))
        return torch.where(by > 0, g * by, 0.0).sum(0, dtype=torch.float64)

    return map_tensors(summed, each)
