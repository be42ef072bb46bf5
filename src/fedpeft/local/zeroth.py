"""Local training without gradients, along few seeded directions (after FedKSeed: Federated
Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 Kilobytes;
Qin et al., 2024, arXiv:2312.06353)."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.compute.trainable import is_statistic
from fedpeft.core.interfaces import Data, LossFn
from fedpeft.core.projections import PROJECTED, block_sizes, combine, draw_directions
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import add_prefix, drop_prefixes, sub, take_prefix
from fedpeft.core.types import Batch, Carry, Context, Event, Tensors
from fedpeft.errors import PlanError

DIRECTION = "direction"


@dataclass(frozen=True, kw_only=True)
class Zeroth:
    """ρ = (ℓ(θ + ε·z) − ℓ(θ − ε·z)) / 2ε for the mean loss ℓ of a batch, then θ ← θ − lr·ρ·z, with
    z = Σ ξ_k·v_k of the K directions v_k of the client's seed in this round, ξ_k standard normal.

    Two forward passes a step, no backward pass, and no memory of activations. The change lies in
    the K directions, which are those of the codec `ferret` at the same density: as uplink it sends
    K small numbers and loses nothing but their rounding. FedKSeed has Gaussian directions, takes
    one of them in each step, and rebuilds the model from all scalars of all rounds. Here they are
    orthogonal, new in each round, and mixed. z is about √K long, so that `lr` must be about K
    times smaller than that of descent. Dropout differs between the two passes: leave it out.

    Attributes:
      epochs: passes over the client's examples in a round.
      batch_size: examples of a step.
      lr: the length of a step, in units of ρ.
      density: K by the number of entries; that of the uplink `ferret`.
      epsilon: ε.

    Raises:
      ValueError: a value out of range.
    """

    epochs: int = 1
    batch_size: int = 32
    lr: float = 1e-4
    epsilon: float = 1e-3
    density: float = 1 / 16
    precision: ClassVar[str] = "float32"
    event: ClassVar[Event | None] = None
    trains_alone: ClassVar[str] = "Zeroth moves each client along directions of its own"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}"
            )
        for key in ("lr", "epsilon"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ValueError(f"{key} must be positive and finite, got {getattr(self, key)}")
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")

    @property
    def passes(self) -> float:
        return 2.0 * self.epochs

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where there is a tensor that no step may move at random."""
        for name, x in params.items():
            if is_statistic(name) or x.dtype not in PROJECTED:
                raise PlanError(
                    f"{name!r} cannot be trained without gradients: it is a running statistic, or "
                    'of a narrower type than float32: set local = "descent"'
                )

    def steps_for(self, size: int) -> int:
        return self.epochs * ceil(size / self.batch_size)

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        draws = generator(context.seed, "batches")
        rows = data.batches(context.client, self.batch_size, self.epochs, draws)
        n = sum(x.numel() for x in received.values())
        blocks = list(draw_directions(block_sizes(n), self.density * context.budget, context.seed))
        mixing = generator(context.seed, "zeroth")
        for batch in rows:
            parts = [
                combine(torch.randn(len(kept), generator=mixing), size, signs, kept)
                for size, signs, kept in blocks
            ]
            left = n - sum(map(len, parts))
            whole = torch.cat([*parts, torch.randn(left, generator=mixing)])
            yield {**batch, **add_prefix(DIRECTION, _as_tensors(whole, received))}

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        device = next(iter(received.values())).device
        totals = {name: torch.zeros((), device=device) for name in ("loss", "examples")}
        return {"params": received, "totals": totals}

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        params, totals = carry["params"], carry["totals"]
        z, rows = take_prefix(DIRECTION, batch), drop_prefixes((DIRECTION,), batch)
        with torch.no_grad():
            ahead, behind = (
                losses({n: x + side * self.epsilon * z[n] for n, x in params.items()}, rows)
                for side in (1, -1)
            )
            mask = batch["mask"]
            slope = ((ahead - behind) * mask).sum() / mask.sum() / (2 * self.epsilon)
            moved = {n: x - (self.lr * slope * z[n]).to(x.dtype) for n, x in params.items()}
            loss = ((ahead + behind) / 2 * mask).sum()
        counted = {"loss": totals["loss"] + loss, "examples": totals["examples"] + mask.sum()}
        return {**carry, "params": moved, "totals": counted}

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        return sub(carry["params"], received), {}, carry["totals"]


def _as_tensors(whole: Tensor, like: Tensors) -> dict[str, Tensor]:
    """A vector as tensors of these names, shapes and types."""
    ends = torch.split(whole, [x.numel() for x in like.values()])
    return {
        name: part.reshape(x.shape).to(x.dtype)
        for (name, x), part in zip(like.items(), ends, strict=True)
    }
