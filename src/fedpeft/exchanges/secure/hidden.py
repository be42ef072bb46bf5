"""What every sum that hides its terms asks: the parts that it goes with, and what an owner checks
of its own update, since nobody can check it once it is hidden."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Codec
from fedpeft.core.signatures import public_line
from fedpeft.core.tensors import norm
from fedpeft.core.types import ClientId, Update
from fedpeft.errors import PlanError
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
    Fact.CONTROL: "control variates are not of the updates' size: leave SCAFFOLD out of a "
    "secure sum",
    Fact.SERVER_NOISE: "{other} has work to do where each update arrives, and secure "
    'aggregation leaves none: leave it out, or exchange = "plain"',
}
"""What no sum goes with whose terms are hidden, and what to do."""


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
    """Raises ValueError for an update that the server could not tell from a good one in a sum."""
    for name, x in update.delta.items():
        if not x.is_floating_point():
            raise ValueError(
                f"{name!r} holds {x.dtype}, which has no mean: it cannot be in a secure sum"
            )
        if x.numel() and float(x.abs().max()) > limit:
            raise ValueError(
                f"{name!r} changed by {float(x.abs().max()):.3g}, exchange.limit is {limit:g}"
            )
    if not norm(update.delta) <= max_norm:
        raise ValueError(
            f"the update is {float(norm(update.delta)):.3g} long, exchange.max_norm {max_norm:g}"
        )
    if update.weight > max_weight:
        raise ValueError(f"its weight is {update.weight:g}, exchange.max_weight is {max_weight}")


def lossless() -> Codec:
    """What loses nothing."""
    codec: Codec = build("codec", "dense")
    return codec


def read_plain(client: ClientId, packed: bytes) -> Update:
    """An update as its client packed it, before it is hidden."""
    return unpack(client, packed, lossless(), layout_of(unframe(packed, nested=True)[1]))
