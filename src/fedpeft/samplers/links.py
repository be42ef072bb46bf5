"""Simulated radio links between clients and the server: how long a client takes for a round."""

from dataclasses import dataclass
from math import exp, log, log1p

import torch

from fedpeft.core.seeds import generator
from fedpeft.core.types import ClientId

DEEPEST_FADE = 1e-12


@dataclass(frozen=True)
class Links:
    """T = 8·(down + up) / R + pace, with the rate R = B·log2(1 + SNR·|h|²) in bits a second.

    A client's signal-to-noise ratio on a channel is drawn once, normal in decibels, and so is how
    long it computes, exp(σ·z) times the usual. The fading h is drawn for each round, and |h|²
    is exponential with the mean 1 (Rayleigh fading). All draws come from `seed`, so that samplers
    can be compared on the same links.

    Attributes:
      bandwidth: B, in hertz, of one client.
      snr, snr_spread: mean and standard deviation of a link's ratio, in decibels.
      pace: seconds that the usual client computes in a round; `pace_spread` is σ.
    """

    bandwidth: float
    snr: float
    snr_spread: float
    pace: float
    pace_spread: float
    seed: int

    def seconds(self, client: ClientId, channel: int, round: int, down: int, up: int) -> float:
        """What so many bytes take in one round, with the client's computing."""
        ratio = self.snr + self.snr_spread * self._normal("snr", channel, client)
        bits = rate(self.bandwidth, ratio, self._gain(client, channel, round))
        return 8 * (down + up) / bits + self.pace * exp(
            self.pace_spread * self._normal("pace", 0, client)
        )

    def _gain(self, client: ClientId, channel: int, round: int) -> float:
        """|h|² of one round."""
        draws = generator(self.seed, "link", "fading", round, channel, client)
        uniform = float(torch.rand((), generator=draws, dtype=torch.double))
        # A uniform number may be 0, with which nothing would ever arrive.
        return max(-log1p(-uniform), DEEPEST_FADE)

    def _normal(self, what: str, channel: int, client: ClientId) -> float:
        draws = generator(self.seed, "link", what, channel, client)
        return float(torch.randn((), generator=draws, dtype=torch.double))


def rate(bandwidth: float, decibels: float, gain: float) -> float:
    """B·log2(1 + SNR·|h|²), in bits a second, of a ratio in decibels (Shannon, 1948)."""
    # log1p: for a deep fade 1 + x is 1, and nothing would ever arrive.
    return bandwidth * log1p(10 ** (decibels / 10) * gain) / log(2)
