"""Over the air: all clients send at once, and the server hears their sum through a channel that
fades and is noisy, as in personalized federated learning over the air (arXiv:2302.12509).

With h the fading of a client's channel in a round and ξ the noise, the server takes its step along
(Σ w·h·Δ) / Σ w + ξ. That is the weighted mean of h·Δ + ξ, for the same ξ in all, so that any plain
mean takes it; without fading and noise it is that mean, to the bit.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from math import pi, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpeft.compute.trainable import is_statistic
from fedpeft.core.conversation import DELTA, Answer, Ask
from fedpeft.core.facts import Fact
from fedpeft.core.rounds import Round
from fedpeft.core.seeds import generator
from fedpeft.core.types import ClientId, Tensors

NAME = "over_the_air"


@dataclass(frozen=True)
class OverTheAir:
    """A channel for simulations. Its noise hides nobody and is accounted as nothing.

    The channel is simulated where updates have come in, so that bytes are counted as if each client
    sent alone, and admission sees updates before the channel. Counts and BatchNorm's running
    statistics, which are measured and not learned, come as they are.

    Attributes:
      fading: whether h is of a Rayleigh distribution with the mean 1, a new one for each client and
        round; else it is 1.
      scale: of the noise, in units of an entry of the update; 0 for none.
      alpha: α of the symmetric α-stable noise, above 1: at 2 it is normal with the variance
        2·scale², below it has heavy tails and no variance.

    Raises:
      ValueError: a value out of range.
    """

    fading: bool = True
    scale: float = 0.0
    alpha: float = 2.0
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SUM_ONLY, Fact.SIMULATES})
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.PLAIN_MEAN: "the air adds up what clients send, and {aggregator} needs more than a "
        'sum: set aggregator = "mean", or exchange = "plain"',
    }
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.CONTROL: "{other} {what}, which the channel would change too: leave SCAFFOLD out, or "
        'set exchange = "plain"',
        Fact.SERVER_NOISE: "{other} adds noise for a mean of bounded updates, and fading can make "
        'them longer: leave it out, or set exchange = "plain"',
    }

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"scale must be at least 0 and finite, got {self.scale}")
        if not 1 < self.alpha <= 2:
            raise ValueError(f"alpha must be above 1 and at most 2, got {self.alpha}")

    @property
    def sums(self) -> bool:
        """No: the simulation has each update on its wire, and the owner reads that."""
        return False

    @property
    def signers(self) -> Mapping[ClientId, str]:
        return {}

    def collect(self, ask: Ask, round: Round) -> Generator[Ask, Iterator[Answer], Iterator[Answer]]:
        heard = yield ask
        return map(self._channel(round), heard)

    def seal(self, client: Any, packed: bytes) -> bytes:
        return packed

    def _channel(self, round: Round) -> Callable[[Answer], Answer]:
        """What becomes of each answer of a round."""
        noise: dict[str, Tensor] = {}

        def changed(name: str, x: Tensor, strength: float) -> Tensor:
            if not x.is_floating_point() or is_statistic(name):
                return x
            faded = x * strength if strength != 1 else x
            if not self.scale:
                return faded
            if name not in noise:
                # A stream for each tensor and none for clients: the air adds its noise once,
                # whoever answers and in whatever order.
                draws = generator(round.seed, NAME, "noise", name)
                noise[name] = self.scale * stable(x.shape, self.alpha, draws)
            return (faded + noise[name]).to(x.dtype)

        def channel(answer: Answer) -> Answer:
            delta: Tensors = answer.message.tensors[DELTA]
            strength = self._strength(round.seed, answer.client)
            came = {name: changed(name, x, strength) for name, x in delta.items()}
            tensors = {**answer.message.tensors, DELTA: came}
            return replace(answer, message=replace(answer.message, tensors=tensors))

        return channel

    def _strength(self, seed: int, client: ClientId) -> float:
        """h of a client's channel: the length of two normal numbers, by its mean √(π / 2)."""
        if not self.fading:
            return 1.0
        pair = torch.randn(2, generator=generator(seed, NAME, "fading", client), dtype=torch.double)
        return float(pair.norm()) / sqrt(pi / 2)


def stable(shape: torch.Size, alpha: float, draws: torch.Generator) -> Tensor:
    """Symmetric α-stable numbers, float64, of scale 1."""
    angle = pi * (torch.rand(shape, generator=draws, dtype=torch.double) - 0.5)
    # A uniform number may be 0 and never 1, so that this logarithm is finite.
    wait = -torch.log1p(-torch.rand(shape, generator=draws, dtype=torch.double))
    return stable_of(angle, wait, alpha)


def stable_of(angle: Tensor, wait: Tensor, alpha: float) -> Tensor:
    """An α-stable number of an angle that is uniform in (−π/2, π/2) and a standard exponential time
    (Chambers, Mallows and Stuck, 1976, equation 2.3 with β = 0)."""
    first = (alpha * angle).sin() / angle.cos() ** (1 / alpha)
    return first * (((1 - alpha) * angle).cos() / wait) ** ((1 - alpha) / alpha)
