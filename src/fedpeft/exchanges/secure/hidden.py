"""What every sum that hides its terms asks: the parts that it goes with, and what an owner checks
of what it is asked and of its own update, since nobody can check it once it is hidden."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedpeft.core.conversation import Message
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Codec
from fedpeft.core.signatures import public_line
from fedpeft.core.tensors import layout, norm
from fedpeft.core.types import ClientId, Update
from fedpeft.errors import PlanError, WireError
from fedpeft.exchanges.secure.secret_sharing import SEALED
from fedpeft.exchanges.secure.server import bytes_of
from fedpeft.registry import build
from fedpeft.wire.frames import layout_of, unframe
from fedpeft.wire.payloads import unpack

HIDDEN_FROM: Mapping[Fact, str] = {
    Fact.COMPARES: "{other} compares the clients' updates, and secure aggregation shows their "
    'sum alone: set aggregator = "mean", or exchange = "plain"',
    Fact.FACTORS: "{other} reads the clients' factors, and secure aggregation shows their sum "
    'alone: set aggregator = "mean", or exchange = "plain"',
    Fact.LOSSY: "{other} as uplink: masked integers are as random as noise, and only a "
    "lossless codec keeps them; they are rounded already, to exchange.bits: set "
    'uplink = "dense"',
    Fact.SENDS_LATER: "{other} sends later what a codec drops, and a secure sum drops nothing: "
    "leave it out",
    Fact.REVEALS: "{other} {what}, which sums are to hide: leave it out",
    Fact.MIXED_RANKS: "a secure sum is of updates of one layout: leave out ranks",
    Fact.MIXED_TENSORS: "{other} {what}, and a secure sum is of updates of one layout: "
    "leave it out",
    Fact.CONTROL: "control variates are not of the updates' size: leave SCAFFOLD out of a "
    "secure sum",
    Fact.SERVER_NOISE: "{other} has work to do where each update arrives, and secure "
    'aggregation leaves none: leave it out, or exchange = "plain"',
}
"""What no sum goes with whose terms are hidden, and what to do."""
ASKED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "shares": (("roster",), ()),
    "masked": (("peers",), ()),
    "story": (("alive",), ()),
    "unmask": (("alive", "signatures"), ("sealed",)),
}
"""By phase the values and the groups of bytes that a message of it may hold."""
OPTIONAL = frozenset({"signatures"})
"""Where nobody signs there are none."""
_HEX = 64
"""Characters of a public key."""


def check_bounds(limit: float, max_norm: float, max_weight: int, bits: int) -> None:
    """Raises ValueError for bounds of an update that are out of range."""
    if max_weight < 1 or not (limit > 0 and max_norm > 0):
        raise ValueError("max_weight must be at least 1, limit and max_norm positive")
    if bits not in (32, 64):
        raise ValueError(f"bits must be 32 or 64, got {bits}")


def check_lines(lines: Sequence[str]) -> None:
    """Raises ValueError where lines of public keys do not name a client each, or share a key."""
    signers = {client: key for key, client in map(public_line, lines)}
    few = len(signers) < len(lines) or len({*signers.values()}) < len(lines)
    if few or "" in signers:
        raise ValueError(
            "keys must have a line for each client, a key of its own and its name behind it"
        )


def check_weights(plan: Any, max_weight: int) -> None:
    """Raises PlanError for a bound that nobody can apply, or weights that have none."""
    if plan.admission.norm_factor not in (None, float("inf")):
        raise PlanError(
            f"norm_factor = {plan.admission.norm_factor}: how long an update is cannot be seen "
            "in a sum: leave it out, and set exchange.max_norm, which honest clients hold "
            "themselves to"
        )
    if plan.weighting != "uniform" and max_weight == 1:
        raise PlanError(
            f'weighting = "{plan.weighting}": set exchange.max_weight to the most examples '
            'that a client has, from which the rounding follows, or weighting = "uniform"'
        )


def check_hidden(update: Update, limit: float, max_norm: float, max_weight: int) -> None:
    """Raises ValueError for an update that the server could not tell from a good one in a sum.

    No refusal holds a number of the update: its words go to the server.
    """
    for name, x in update.delta.items():
        if not x.is_floating_point():
            raise ValueError(
                f"{name!r} holds {x.dtype}, which has no mean: it cannot be in a secure sum"
            )
        if x.numel() and float(x.abs().max()) > limit:
            raise ValueError(
                f"{name!r} changed by more than a sum has room for: exchange.limit is {limit:g}"
            )
    # Written so that it refuses NaN, which is neither longer nor shorter.
    if not norm(update.delta) <= max_norm:
        raise ValueError(f"the update is longer than exchange.max_norm {max_norm:g}")
    if update.weight > max_weight:
        raise ValueError(
            f"it has more examples than a sum has room for: exchange.max_weight is {max_weight}"
        )


def lossless() -> Codec:
    """What loses nothing."""
    codec: Codec = build("codec", "dense")
    return codec


def read_plain(client: ClientId, packed: bytes) -> Update:
    """An update as its client packed it, before it is hidden."""
    return unpack(client, packed, lossless(), layout_of(unframe(packed, nested=True)[1]))


def heard(phase: str, message: Message) -> Mapping[str, Any]:
    """The values of a message to a client.

    Raises:
      WireError: it holds less or more than the messages of its phase.
    """
    values, groups = ASKED[phase]
    extra = [*set(message.values) - set(values), *set(message.tensors) - set(groups)]
    missing = [name for name in values if name not in message.values and name not in OPTIONAL]
    if extra or missing:
        came = ", ".join(sorted([*message.values, *message.tensors])[:8]) or "nothing"
        wanted = ", ".join((*values, *groups))
        raise WireError(
            f"asked for {phase!r} with {came[:200]}: a secure sum asks for it with {wanted}"
        )
    return message.values


def check_roster(roster: Mapping[ClientId, Any]) -> None:
    """Raises WireError where a client of a roster has no two public keys in it."""
    for client, row in roster.items():
        if not _is_row(row):
            raise WireError(
                f"asked for 'shares' with a roster in which {client[:80]!r} has no two public keys"
            )


def _is_row(row: object) -> bool:
    if not isinstance(row, list) or not 2 <= len(row) <= 3:
        return False
    if not all(isinstance(one, str) for one in row):
        return False
    return all(len(key) == _HEX and set(key) <= set("0123456789abcdef") for key in row[:2])


def sealed_of(message: Message, peers: int) -> bytes:
    """The sealed shares in a message, one pair of each peer.

    Raises:
      WireError: there are more or fewer.
    """
    found = message.tensors.get("sealed", {})
    whole = [("bytes", [peers * SEALED], "uint8")]
    if layout(found) != whole:
        raise WireError(
            f"asked for 'unmask' with the shares {layout(found)}: {peers} peers have {whole}"
        )
    return bytes_of(message, "sealed")
