"""What codecs are told of a message: both ends know it, and none of it travels."""

from fedpeft.core.interfaces import Coding
from fedpeft.core.types import ClientId
from fedpeft.core.views import EVERYTHING, View
from fedpeft.plan.calibration import round_seed
from fedpeft.plan.plan import Plan


def downlink_coding(plan: Plan, round: int, view: View = EVERYTHING) -> Coding:
    """The coding of what the server sends in a round: one for all clients of a view, who share a
    payload."""
    root = round_seed(plan, round)
    return Coding("down", root, round, budget=view.budget, path=("downlink",))


def uplink_coding(plan: Plan, round: int, client: ClientId, view: View = EVERYTHING) -> Coding:
    """The coding of what a client sends in a round."""
    root = round_seed(plan, round)
    return Coding("up", root, round, budget=view.budget, path=("client", client))
