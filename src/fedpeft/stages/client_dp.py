"""Differential privacy for whole clients (McMahan et al., 2018, arXiv:1710.06963, Algorithm 1)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.core.accounting import check_noise
from fedpeft.core.facts import Fact
from fedpeft.core.tensors import clip_length, map_tensors
from fedpeft.core.types import Cohort, Context, Event, Tensors, Update


@dataclass(frozen=True)
class ClientDp:
    """Δ = (Σ clip(Δₖ, C) + N(0, (z·C)²)) / m, where m is the number of clients asked, however many
    answer.

    A client's update is clipped with all its tensors as one vector, by the client and again where
    it arrives, as the client may not have done it or a codec may have made it longer. Every client
    counts once. Whether one answers or not, the sum moves by at most C and m stays, so that no
    drop-out weakens the guarantee. What clients measured stays with them. The server sees the
    updates and adds the noise: it is trusted; who sees its states is not.

    The updates are summed up as float64. In float32 the sum of 5,000 clients moved by up to
    1.0003·C, for which the noise is not made. The result is float32: rounding what has its noise
    already tells nothing more.

    Attributes:
      clip_norm: C.
      noise_multiplier: z; left out, it follows from the plan's `target_epsilon`.

    Raises:
      ValueError: a value out of range.
    """

    clip_norm: float = 1.0
    noise_multiplier: float | None = None
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.PLAIN_MEAN: "the noise is made for a mean: one client moves the result of "
        '{aggregator} by more than clip_norm / clients. Set aggregator = "mean"',
    }

    def __post_init__(self) -> None:
        check_noise(self.clip_norm, self.noise_multiplier)

    @property
    def remembers(self) -> bool:
        return False

    @property
    def event(self) -> Event | None:
        return Event("client", self.noise_multiplier, central=True)

    def on_client(
        self, update: Update, memory: Tensors, context: Context
    ) -> tuple[Update, Tensors]:
        return limit_update(update, self.clip_norm), {}

    def on_arrival(self, update: Update) -> Update:
        short = limit_update(update, self.clip_norm)
        return replace(short, delta=map_tensors(Tensor.double, short.delta))

    def on_server(self, update: Update, cohort: Cohort) -> Update:
        assert cohort.secret is not None and self.noise_multiplier is not None, "not calibrated"
        share = len(cohort.weights) / cohort.planned
        std = (
            self.noise_multiplier * self.clip_norm / cohort.planned
            if self.noise_multiplier
            else 0.0
        )
        secret = cohort.secret.bound(update.delta)
        noisy = {
            name: (x.double() * share + secret.at(name).normal(x.shape).to(x.device) * std).float()
            for name, x in update.delta.items()
        }
        return replace(update, delta=noisy)


def limit_update(update: Update, clip_norm: float) -> Update:
    """Clipped, counting once, without metrics.

    Raises:
      ValueError: a tensor whose type would round away from what was clipped.
    """
    for name, x in update.delta.items():
        if x.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name!r} is {x.dtype}: the sensitivity is that of float32, so train in that"
            )
    return replace(update, delta=clip_length(update.delta, clip_norm), weight=1.0, metrics={})
