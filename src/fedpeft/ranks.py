"""What a client of some rank receives, and what of it it trains."""

from collections.abc import Sequence

from fedpeft.core.interfaces import LowRank
from fedpeft.core.lowrank import EXACT
from fedpeft.core.tensors import beside
from fedpeft.core.types import ClientId, Tensors
from fedpeft.plan import Plan


def dealt(plan: Plan, clients: Sequence[ClientId]) -> dict[ClientId, int | None]:
    """The rank of each of all clients; None for the method's."""
    ranks = plan.ranks or (None,)
    return {client: ranks[k % len(ranks)] for k, client in enumerate(clients)}


def trained(plan: Plan, received: Tensors, round: int) -> Tensors:
    """Of what a client receives, what it trains in this round, and so what it sends back."""
    if not isinstance(plan.aggregator, LowRank):
        return received
    turns = plan.aggregator.still
    still = f".lora_{turns[round % len(turns)]}." if turns else None
    return {n: x for n, x in beside((EXACT,), received).items() if still is None or still not in n}
