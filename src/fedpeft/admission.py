"""Admission: what is asked of an update before any aggregator sees it, and the account of who was
let in.

An update must be what the plan sends (names, shapes, types, checksum), finite, and no longer than
`norm_factor` times the median of those let in before. What came and is not so is refused: it costs
its client that round, with a reason in the ledger, and after `max_refusals` of them the client is
asked no more.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from statistics import median
from typing import Any, TypeVar

from fedpeft.core.tensors import Layout, finite, norm
from fedpeft.core.types import ClientId, Failure, Job, Reply, State, Tensors, Update, Weighted
from fedpeft.core.wire import headers, unpack
from fedpeft.errors import WireError
from fedpeft.head_rows import check_counts, rows_told
from fedpeft.plan import Plan

Thing = TypeVar("Thing")
FEW = 8
"""Updates of the first round that wait for each other, as there are none before them to be held
against."""
WINDOW = 100
"""Lengths that the median is of: old ones go, since later rounds take shorter steps."""


@dataclass
class Ledger:
    """What one round cost and who took part; bytes are counted on the payloads, never computed.

    Attributes:
      down, up: bytes by client, frames and headers included.
      up_headers: the part of `up` that is frames and headers rather than tensors, over all clients.
      failed: by client, why its reply was not counted.
      refusals: how often so far, by client, of those whose update was refused in this round or who
        were left out.
      privacy: what the run has cost up to here, as rounds.jsonl tells it; None where nothing is
        private.
      aggregation_error: ‖mean(B·A) − merged‖ / ‖mean(B·A)‖; None without an aggregator of low-rank
        factors.
      vote: which merge the clients chose, as rounds.jsonl tells it; None without a vote.
    """

    round: int
    down: dict[ClientId, int] = field(default_factory=dict)
    up: dict[ClientId, int] = field(default_factory=dict)
    up_headers: int = 0
    weights: dict[ClientId, float] = field(default_factory=dict)
    failed: dict[ClientId, str] = field(default_factory=dict)
    refusals: dict[ClientId, int] = field(default_factory=dict)
    metrics: dict[str, Weighted] = field(default_factory=dict)
    note: str = ""
    privacy: dict[str, Any] | None = None
    aggregation_error: float | None = None
    vote: Mapping[str, Any] | None = None

    @property
    def bytes_down(self) -> int:
        return sum(self.down.values())

    @property
    def bytes_up(self) -> int:
        return sum(self.up.values())


@dataclass
class Door:
    """Where the replies of one round come in.

    Attributes:
      wanted: the layout that each client's update must have.
      norms: lengths of updates let in so far, of earlier rounds too.
      refusals: how often each client was refused so far.
      classes: how many class counts an update must tell.
    """

    plan: Plan
    wanted: Mapping[ClientId, Layout]
    ledger: Ledger
    norms: list[float]
    refusals: dict[ClientId, int]
    classes: int

    @classmethod
    def of(
        cls, plan: Plan, state: State, wanted: Mapping[ClientId, Layout], ledger: Ledger
    ) -> "Door":
        classes = rows_told(plan, state.params)
        return cls(plan, wanted, ledger, list(state.norms), dict(state.refusals), classes)

    @property
    def expected(self) -> Layout:
        """Where all clients send the same, what that is."""
        return next(iter(self.wanted.values()))

    def asked(self, clients: Sequence[ClientId]) -> list[ClientId]:
        """Those who are not left out; the ledger tells of the others."""
        most = self.plan.max_refusals
        for client in clients:
            if self.refusals.get(client, 0) >= most:
                self.ledger.down[client] = 0
                self.ledger.refusals[client] = self.refusals[client]
                self.ledger.failed[client] = (
                    f"left out: {self.refusals[client]} of its updates were refused"
                )
        return [client for client in clients if client not in self.ledger.failed]

    def __call__(self, reply: Reply | Failure) -> Update | None:
        """Check a reply where it enters: an update to be counted, or None and a reason in the
        ledger."""
        payload = self._arrived(reply)
        if payload is None:
            return None
        try:
            update = unpack(reply.client, payload, self.plan.uplink, self.wanted[reply.client])
            if not finite(update.delta):
                raise ValueError("the delta is not finite")
            check_counts(self.plan, update, self.classes)
            for stage in reversed(self.plan.stages):
                update = stage.on_arrival(update)
        except (WireError, ValueError) as error:
            self.refuse(reply.client, str(error))
            return None
        self.ledger.up_headers += headers(payload)
        self.ledger.weights[reply.client] = update.weight
        return update

    def sent(self, jobs: Sequence[Job]) -> None:
        """What goes down beside the first message of the round."""
        for job in jobs:
            self.ledger.down[job.client] += len(job.payload)

    def content(self, reply: Reply | Failure, tensors: int = 0) -> bytes | None:
        """A message that is no update, of which so many bytes are tensors; None and a reason if
        none came."""
        payload = self._arrived(reply)
        self.ledger.up_headers += 0 if payload is None else max(0, len(payload) - tensors)
        return payload

    def counted(self, client: ClientId, weight: float) -> None:
        """The client's update is in the sum, whatever it failed in afterwards."""
        self.ledger.weights[client] = weight
        if client in self.ledger.failed:
            self.tell(
                f"{client} is in the sum, but did not help to unmask it: "
                f"{self.ledger.failed.pop(client)}"
            )

    def tell(self, note: str) -> None:
        self.ledger.note = "; ".join(filter(None, [self.ledger.note, note]))

    def _arrived(self, reply: Reply | Failure) -> bytes | None:
        if isinstance(reply, Failure):
            self.ledger.failed[reply.client] = reply.reason
            return None
        self.ledger.up[reply.client] = self.ledger.up.get(reply.client, 0) + len(reply.payload)
        return reply.payload

    def refuse(self, client: ClientId, reason: str) -> None:
        """What came of this client is not what it must be."""
        self.ledger.weights.pop(client, None)
        self.ledger.failed[client] = reason
        self.refusals[client] = self.ledger.refusals[client] = self.refusals.get(client, 0) + 1

    def bounded(self, updates: Iterable[Update]) -> Iterator[Update]:
        """Those that are not far longer than usual; see `usual`."""

        def refuse(update: Update, why: str) -> None:
            self.refuse(update.client, f"its update is {why}")

        if self.plan.norm_bound == float("inf"):
            yield from updates
            return
        lengths = ((update, _length(update.delta)) for update in updates)
        yield from usual(lengths, self.plan.norm_bound, self.norms, refuse)


def usual(
    things: Iterable[tuple[Thing, float]],
    factor: float,
    norms: list[float],
    refuse: Callable[[Thing, str], None],
) -> Iterator[Thing]:
    """Of things and their lengths, those that are not far longer than the ones before; `norms`
    learns of them.

    The first few of all are held against each other; without them, nothing is known of what is
    usual.
    """
    things = iter(things)
    first = [] if norms else list(islice(things, FEW))
    together = [length for _, length in first]
    for place, (thing, length) in enumerate(chain(first, things)):
        known = together if place < len(first) else norms
        middle = median(known) if known else length
        if middle and length > factor * middle:
            refuse(
                thing,
                f"{length:.4g} long, the median of {len(known)} is {middle:.4g}, and at most "
                f"{factor:g} times that is "
                "let in (norm_factor)",
            )
            continue
        norms.append(length)
        del norms[:-WINDOW]
        yield thing


def _length(delta: Tensors) -> float:
    """Of all that is no count, as one vector."""
    floats = {name: x for name, x in delta.items() if x.is_floating_point()}
    return float(norm(floats)) if floats else 0.0
