"""What rounds.jsonl tells of a round."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import nan
from typing import Any

from fedpeft.core.types import ClientId
from fedpeft.core.units import finite_or_none
from fedpeft.rounds.loop import Ledger

NAMED = ("aggregation_error", "vote")
"""What algorithms tell that has a key of its own."""


@dataclass(frozen=True)
class RoundRecord:
    """One round, as plain values.

    Attributes:
      round: rounds done with this one, from 1.
      clients: by name the bytes `down` and `up` and the `weight` in the mean, or why it `failed`;
        of a client whose update was refused, the `refusals` so far. In a secure sum the weight is
        the mean one: none is known.
      up_headers: the part of `bytes_up` that is frames and headers rather than tensors.
      metrics: as the clients report them on what they trained on; null where not finite.
      privacy: `epsilon` and `delta` up to here, the `unit` that they hide, the `accountant`; null
        where there is none.
      aggregation_error: ‖mean(B·A) − merged‖ / ‖mean(B·A)‖; null without an aggregator of low-rank
        factors.
      vote: what the clients chose: `merge`, `strength`, all `scores`, by how many `examples`, and
        who `failed` to vote; null without a vote.
      reports: by name what else algorithms told of the round.
      held_out: the same of the new parameters on held-out examples: the server's, or, where it
        measures none itself, those of all owners together; null if this round was not evaluated.
    """

    round: int
    clients: Mapping[ClientId, Mapping[str, Any]]
    bytes_down: int
    bytes_up: int
    up_headers: int
    note: str
    metrics: Mapping[str, float | None]
    held_out: Mapping[str, float | None] | None
    seconds: float
    privacy: Mapping[str, Any] | None = None
    aggregation_error: float | None = None
    vote: Mapping[str, Any] | None = None
    reports: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> dict[ClientId, str]:
        return {client: what["failed"] for client, what in self.clients.items() if "failed" in what}

    def values(self) -> dict[str, Any]:
        return asdict(self)


def record_of(ledger: Ledger, held_out: Mapping[str, float] | None, seconds: float) -> RoundRecord:
    """A ledger and what was measured after its round."""
    # The last one keeps what was measured and came to nothing (an empty table) apart from what was
    # not measured (None).
    told = held_out or _of_all_owners(ledger) or held_out
    metrics = {name: metric.value for name, metric in ledger.metrics.items()}
    return RoundRecord(
        round=ledger.round + 1,
        clients={client: _client(ledger, client) for client in sorted(ledger.down)},
        bytes_down=ledger.bytes_down,
        bytes_up=ledger.bytes_up,
        up_headers=ledger.up_headers,
        note=ledger.note,
        metrics=finite_or_none(metrics),
        held_out=None if told is None else finite_or_none(told),
        seconds=round(seconds, 3),
        privacy=ledger.privacy,
        aggregation_error=ledger.aggregation_error,
        vote=ledger.vote,
        reports={name: x for name, x in ledger.reports.items() if name not in NAMED},
    )


def _of_all_owners(ledger: Ledger) -> dict[str, float]:
    """What owners measured of all their examples together; nothing where they were not asked, or
    have no examples."""
    told = ledger.reports.get("owners", {}).get("metrics", {})
    pooled = {name: one["pooled"] for name, one in told.items()}
    return {name: nan if value is None else value for name, value in pooled.items()}


def _client(ledger: Ledger, client: ClientId) -> dict[str, Any]:
    what: dict[str, Any] = {"down": ledger.down[client], "up": ledger.up.get(client, 0)}
    if client in ledger.weights:
        what["weight"] = ledger.weights[client]
    if client in ledger.failed:
        what["failed"] = ledger.failed[client]
    if client in ledger.refusals:
        what["refusals"] = ledger.refusals[client]
    return what


def changed_nothing(summary: Mapping[str, Any]) -> str:
    """Why a finished run is of no use, in words, if no round of it changed anything."""
    # a plan of no rounds has one line of a conversation that may come to something
    still = summary.get("rounds_without_change")
    if not still or still < summary.get("rounds", 0):
        return ""
    if not summary.get("rounds"):
        return "nothing came of the clients' answers; rounds.jsonl says why"
    return (
        "no round changed anything, so that the model is the one that the run began with; "
        "rounds.jsonl says why"
    )
