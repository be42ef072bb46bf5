"""Clients drawn as the arms of a bandit, so that rounds over simulated radio links are short.

It follows low-latency federated learning over wireless channels with differential privacy
(arXiv:2106.13039). Rewards count by upper confidence bounds, and a virtual queue keeps a share of
the rounds for each client. Clients retire when their privacy budget is spent, and may be matched to
channels. There is no published code, so that the reward and the links are a reading of the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.seeds import generator as stream
from fedpeft.core.types import ClientId, Tensors
from fedpeft.errors import PlanError
from fedpeft.samplers.links import Links
from fedpeft.samplers.matching import Scores, match

ARMS, QUEUE, CLOCK = "arms", "queue", "clock"
"""What it remembers: of a client it has drawn, `arms/<client>` with plays and sum of rewards by
channel, shape (channels, 2), and `queue/<client>` with the queue and the rounds done when it was
that long; the seconds of all rounds."""
MOST = {"reward_weight": 1e9, "snr_spread": 100, "pace": 1e9, "pace_spread": 10, "channels": 1000}
"""Beyond these, numbers of a simulation leave what a float holds."""


@dataclass(frozen=True)
class Bandit:
    """It draws the clients of the largest V·(r̄ + √(2·ln t / n)) + Q, after t rounds.

    r̄ is the mean reward of a client's n rounds; who was never drawn comes first, and ties are
    drawn. A reward is min(1, reference / T), where T is the seconds of the round by the client's
    bytes and a simulated link (`samplers.links.Links`); it is 0 where the update did not count. Q
    is a virtual queue: it grows by `fair_share` in each round, falls by 1 in those that the client
    is drawn for, and is never below 0.

    A client retires after `visits` rounds that it was drawn for, whether it answered or not. Rounds
    then have fewer clients, and at last none. Privacy is accounted for so many releases of one
    client and claims nothing for the draw.

    `rounds.jsonl` has `reports.bandit`: the `seconds` of each client, those of the slowest as
    `round_seconds`, their sum so far as `run_seconds`, and how many have `retired`. Bytes of
    evaluations at the clients count too; who failed counts with the bytes that it sent.

    Attributes:
      policy: "ucb", or "uniform", which draws as the sampler of that name does among those who have
        not retired, for a comparison in seconds.
      reward_weight: V, what rewards count beside queues.
      fair_share: ρ, the share of all rounds that each client is to take part in.
      reference: seconds of a round with the full reward.
      visits: rounds that one client takes part in at most; left out, all.
      channels: at 0 each client has one link. Otherwise it has one on each of so many channels, as
        many as the cohort has clients, each client gets one of them, and pairs are the arms.
      matching: how: "max_min" makes the smallest score largest, "sum" the sum.
      bandwidth: hertz of each client's channel.
      snr, snr_spread: mean and spread of the links' signal-to-noise ratios, in decibels.
      pace, pace_spread: seconds that the usual client computes, and the spread σ of exp(σ·z).
      seed: of the links.

    Raises:
      ValueError: a value out of range.
    """

    policy: Literal["ucb", "uniform"] = "ucb"
    reward_weight: float = 1.0
    fair_share: float = 0.0
    reference: float = 1.0
    visits: int | None = None
    channels: int = 0
    matching: Literal["max_min", "sum"] = "max_min"
    bandwidth: float = 1e6
    snr: float = 10.0
    snr_spread: float = 6.0
    pace: float = 1.0
    pace_spread: float = 0.5
    seed: int = 0
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SIMULATES})
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.ASYNCHRONOUS: "a bandit learns from whole rounds, and {other} {what}: leave out one "
        "of them"
    }

    def __post_init__(self) -> None:
        for key in ("bandwidth", "reference"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ValueError(f"{key} must be above 0 and finite, got {getattr(self, key)}")
        for key, most in MOST.items():
            if not 0 <= getattr(self, key) <= most:
                raise ValueError(f"{key} must be 0 to {most:g}, got {getattr(self, key)}")
        if not abs(self.snr) <= 100:
            raise ValueError(f"snr is in decibels, -100 to 100, got {self.snr}")
        if not 0 <= self.fair_share <= 1:
            raise ValueError(f"fair_share is a share of all rounds, 0 to 1, got {self.fair_share}")
        if self.visits is not None and self.visits < 1:
            raise ValueError(f"visits must be at least 1, or left out, got {self.visits}")

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError where clients and channels of a round are not as many."""
        if self.channels and self.channels != plan.cohort:
            raise PlanError(
                f"sampler.channels = {self.channels} and cohort = {plan.cohort}: each client of a "
                "round has a channel of its own, so set both alike, or channels = 0"
            )

    @property
    def links(self) -> Links:
        return Links(
            self.bandwidth, self.snr, self.snr_spread, self.pace, self.pace_spread, self.seed
        )

    def choose(
        self,
        clients: Sequence[ClientId],
        cohort: int,
        generator: torch.Generator,
        round: int,
        memory: Tensors,
    ) -> list[ClientId]:
        left = [client for client in clients if not self._has_retired(memory, client)]
        order = torch.randperm(len(left), generator=generator).tolist()
        drawn = [left[i] for i in order]  # the order in which ties are broken
        if self.policy == "uniform" or not drawn:
            return drawn[:cohort]
        scores = self._scores(drawn, memory, round)
        if self.channels:
            return [drawn[i] for i, _ in match(scores, self.matching)]
        best = np.argsort(-scores[:, 0], kind="stable")
        return [drawn[i] for i in best[:cohort].tolist()]

    def learn(self, memory: Tensors, ledger: Any) -> Tensors:
        """What it remembers after a round, whose seconds it tells the ledger."""
        links, done = self.links, ledger.round + 1
        after, seconds = dict(memory), dict[ClientId, float]()
        assigned = self._assign(sorted(ledger.cohort), memory, ledger.round)
        for client, channel in assigned.items():
            reward = 0.0
            if client in ledger.down:
                down, up = ledger.down[client], ledger.up.get(client, 0)
                took = links.seconds(client, channel, ledger.round, down, up)
                seconds[client] = took
                reward = min(1.0, self.reference / took) if client in ledger.weights else 0.0
            arms = self._arms(memory, client).clone()
            arms[channel] += torch.tensor([1.0, reward], dtype=torch.double)
            after[f"{ARMS}/{client}"] = arms
            queue = max(self._queue(memory, client, ledger.round) + self.fair_share - 1, 0.0)
            after[f"{QUEUE}/{client}"] = torch.tensor([queue, done], dtype=torch.double)
        slowest = max(seconds.values(), default=0.0)
        after[CLOCK] = memory.get(CLOCK, torch.zeros((), dtype=torch.double)) + slowest
        self._tell(ledger, after, seconds, assigned)
        return after

    def most(self, rounds: int, cohort: int, clients: int) -> int:
        return rounds if self.visits is None else min(rounds, self.visits)

    def _tell(
        self,
        ledger: Any,
        memory: Tensors,
        seconds: Mapping[ClientId, float],
        assigned: Mapping[ClientId, int],
    ) -> None:
        known = [name.removeprefix(f"{ARMS}/") for name in memory if name.startswith(f"{ARMS}/")]
        told: dict[str, Any] = {
            "seconds": dict(seconds),
            "round_seconds": max(seconds.values(), default=0.0),
            "run_seconds": float(memory[CLOCK]),
            "retired": sum(self._has_retired(memory, client) for client in known),
        }
        ledger.report("bandit", {**told, "channels": assigned} if self.channels else told)

    def _assign(
        self, drawn: Sequence[ClientId], memory: Tensors, round: int
    ) -> dict[ClientId, int]:
        """The channel of each client of a round.

        It is matched again for those who were drawn, with the scores by which they were: a best
        matching of all clients is a best one of these too.
        """
        if not self.channels or not drawn:
            return dict.fromkeys(drawn, 0)
        if self.policy == "uniform":
            draws = stream(self.seed, "channels", round)
            order = torch.randperm(self.channels, generator=draws).tolist()
            return dict(zip(drawn, order, strict=False))
        pairs = match(self._scores(drawn, memory, round), self.matching)
        return {drawn[i]: channel for i, channel in pairs}

    def _scores(self, clients: Sequence[ClientId], memory: Tensors, round: int) -> Scores:
        """V·(r̄ + √(2·ln t / n)) + Q, shape (clients, channels)."""
        arms = torch.stack([self._arms(memory, client) for client in clients]).numpy()
        queues = np.array([self._queue(memory, client, round) for client in clients])
        bounds = upper_bounds(arms[..., 0], arms[..., 1], round)
        # At V = 0 an infinite bound must stay one, and 0 · ∞ is no number.
        weighted = np.where(np.isfinite(bounds), bounds, 0) * self.reward_weight + queues[:, None]
        return np.where(np.isfinite(bounds), weighted, np.inf)

    def _arms(self, memory: Tensors, client: ClientId) -> Tensor:
        nothing = torch.zeros(max(1, self.channels), 2, dtype=torch.double)
        return memory.get(f"{ARMS}/{client}", nothing)

    def _queue(self, memory: Tensors, client: ClientId, round: int) -> float:
        """Q before a round. It is written when a client is drawn and grows evenly since."""
        length, at = memory.get(f"{QUEUE}/{client}", torch.zeros(2)).tolist()
        return float(length + self.fair_share * (round - at))

    def _has_retired(self, memory: Tensors, client: ClientId) -> bool:
        if self.visits is None:
            return False
        return float(self._arms(memory, client)[:, 0].sum()) >= self.visits


def upper_bounds(plays: Scores, rewards: Scores, rounds: int) -> Scores:
    """r̄ + √(2·ln t / n), infinite where n is 0 (UCB1: Auer, Cesa-Bianchi and Fischer, 2002).

    Args:
      plays: n; rewards: their sums; rounds: t.
    """
    once = np.maximum(plays, 1)
    bounds = rewards / once + np.sqrt(2 * log(max(rounds, 1)) / once)
    return np.where(plays > 0, bounds, np.inf)
