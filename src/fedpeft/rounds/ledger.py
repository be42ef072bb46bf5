"""The account of one round: what it cost, who took part, and what became of the others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpeft.core.types import ClientId, Weighted


@dataclass
class Ledger:
    """What one round cost and who took part; bytes are counted on the payloads, never computed.

    Attributes:
      cohort: who was drawn, whether they were asked, and answered, or not.
      down, up: bytes by client, frames and headers included.
      up_headers: the part of `up` that is frames and headers rather than tensors, over all clients.
      weights: by client how much its update counts in the mean.
      failed: by client, why its reply was not counted.
      out: who is asked nothing more in this round.
      refusals: how often so far, by client, of those whose update was refused in this round or who
        were left out.
      metrics: what the clients measured while they trained.
      note: what befell the round.
      privacy: what the run has cost up to here, as rounds.jsonl tells it; None where nothing is
        private.
      reports: what algorithms told of the round, by name, as plain values.

    >>> ledger = Ledger(1, down={"a": 10, "b": 20}, up={"a": 7}, failed={"b": "no answer"})
    >>> ledger.bytes_down, ledger.bytes_up
    (30, 7)
    """

    round: int
    down: dict[ClientId, int] = field(default_factory=dict)
    up: dict[ClientId, int] = field(default_factory=dict)
    up_headers: int = 0
    weights: dict[ClientId, float] = field(default_factory=dict)
    failed: dict[ClientId, str] = field(default_factory=dict)
    out: set[ClientId] = field(default_factory=set)
    refusals: dict[ClientId, int] = field(default_factory=dict)
    metrics: dict[str, Weighted] = field(default_factory=dict)
    note: str = ""
    privacy: dict[str, Any] | None = None
    reports: dict[str, Any] = field(default_factory=dict)
    cohort: tuple[ClientId, ...] = ()

    @property
    def bytes_down(self) -> int:
        return sum(self.down.values())

    @property
    def bytes_up(self) -> int:
        return sum(self.up.values())

    @property
    def aggregation_error(self) -> float | None:
        """‖mean(B·A) − merged‖ / ‖mean(B·A)‖; None without an aggregator of low-rank factors."""
        return self.reports.get("aggregation_error")

    @property
    def vote(self) -> Mapping[str, Any] | None:
        """Which merge the clients chose; None without a vote."""
        return self.reports.get("vote")

    def report(self, name: str, value: Any) -> None:
        """Take what an algorithm tells: notes are added up, all else is kept under its name."""
        if name == "note":
            self.note = "; ".join(filter(None, [self.note, value]))
        elif name == "weights":
            self.weights.update(value)
        elif name == "metrics":
            self.metrics = dict(value)
        else:
            self.reports[name] = value

    def fail(self, client: ClientId, reason: str) -> None:
        """Note why a client did not answer; of several questions all reasons are told."""
        known = self.failed.get(client, "")
        self.failed[client] = "; ".join(dict.fromkeys(filter(None, [known, reason])))

    def close(self) -> None:
        """A client whose update counts is no failure, though it may have left other questions
        unanswered."""
        for client in [client for client in self.weights if client in self.failed]:
            reason = self.failed.pop(client)
            self.report("note", f"{client} counts, but did not answer all: {reason}")
