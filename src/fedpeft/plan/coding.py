"""By which codec a message travels, and what codecs are told of it: both ends know it, and none of
it travels."""

from fedpeft.core.interfaces import Codec, Coding
from fedpeft.core.types import ClientId
from fedpeft.core.views import EVERYTHING, View
from fedpeft.plan.calibration import round_seed
from fedpeft.plan.plan import Plan
from fedpeft.registry import build


def downlink_coding(plan: Plan, round: int, view: View = EVERYTHING) -> Coding:
    """The coding of what the server sends in a round: one for all clients of a view, who share a
    payload."""
    root = round_seed(plan, round)
    return Coding("down", root, round, budget=view.budget, path=("downlink",))


def uplink_coding(plan: Plan, round: int, client: ClientId, view: View = EVERYTHING) -> Coding:
    """The coding of what a client sends in a round."""
    root = round_seed(plan, round)
    return Coding("up", root, round, budget=view.budget, path=("client", client))


def answer_codec(plan: Plan, phase: str) -> Codec:
    """The codec of answers other than updates: the lossless one, unless the part that answers the
    phase names another; see `core.hooks.Handles`."""
    for named in plan.hooks("answers_with"):
        if phase in named:
            codec: Codec = build("codec", named[phase])
            return codec
    return plan.lossless
