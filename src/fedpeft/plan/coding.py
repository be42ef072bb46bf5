"""What codecs are told of a message: both ends know it, and none of it travels."""

from fedpeft.core.interfaces import Coding
from fedpeft.core.seeds import fold
from fedpeft.core.types import ClientId
from fedpeft.core.views import EVERYTHING, View
from fedpeft.plan.calibration import round_seed
from fedpeft.plan.plan import Plan


def downlink_coding(plan: Plan, round: int, view: View = EVERYTHING) -> Coding:
    """Of what the server sends in a round; the same for all clients of a view, who share a
    payload."""
    return Coding("down", fold(round_seed(plan, round), "downlink"), round, budget=view.budget)


def uplink_coding(plan: Plan, round: int, client: ClientId, view: View = EVERYTHING) -> Coding:
    """Of what a client sends in a round."""
    seed = fold(round_seed(plan, round), "client", client)
    return Coding("up", seed, round, budget=view.budget)
