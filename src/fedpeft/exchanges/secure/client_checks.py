"""What a client of a secure sum checks: that it is asked what the sum asks, and that what it is
about to hide is in order, since nobody can see it afterwards.

No refusal holds a number of the update: its words go to the server.
"""

from collections.abc import Mapping
from typing import Any

from fedpeft.core.conversation import Message
from fedpeft.core.tensors import layout, norm
from fedpeft.core.types import ClientId, Update
from fedpeft.errors import WireError
from fedpeft.exchanges.secure.secret_sharing import SEALED
from fedpeft.exchanges.secure.server import bytes_of

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


def check_hidden(update: Update, limit: float, max_norm: float, max_weight: int) -> None:
    """Raises ValueError for an update that the sum has no room for."""
    for name, x in update.delta.items():
        if not x.is_floating_point():
            raise ValueError(
                f"{name!r} holds {x.dtype}, which has no mean: it cannot be in a secure sum"
            )
        if x.numel() and float(x.abs().max()) > limit:
            raise ValueError(
                f"{name!r} changed by more than a sum has room for: exchange.limit is {limit:g}"
            )
    if not norm(update.delta) <= max_norm:
        raise ValueError(f"the update is longer than exchange.max_norm {max_norm:g}")
    if update.weight > max_weight:
        raise ValueError(
            f"it has more examples than a sum has room for: exchange.max_weight is {max_weight}"
        )
