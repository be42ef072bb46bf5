"""By which codec a message travels, and what codecs are told of it: both ends know it, and none of
it travels."""

from fedpeft.core.conversation import Message
from fedpeft.core.interfaces import Codec, Coding
from fedpeft.core.rounds import find_changed
from fedpeft.core.types import ClientId, Tensors
from fedpeft.core.views import EVERYTHING, View
from fedpeft.plan.calibration import round_seed
from fedpeft.plan.plan import Plan
from fedpeft.registry import build

DOWNLINK = "downlink"
"""The owner of what clients received last to train on, in their memory and in the server's."""


def downlink_coding(
    plan: Plan, round: int, view: View = EVERYTHING, held: Tensors | None = None
) -> Coding:
    """The coding of what the server sends in a round: one for all clients of a view, who share a
    payload.

    Args:
      held: what the receivers have of the last message, of a codec that follows.
    """
    root = round_seed(plan, round)
    return Coding("down", root, round, budget=view.budget, path=("downlink",), held=held)


def follows(plan: Plan) -> bool:
    """Whether what goes down depends on what went down before."""
    return bool(getattr(plan.downlink, "follows", False))


def is_in_step(accepted: int | None, round: int) -> bool:
    """Whether a client holds what was sent in the last round: its answer to that was accepted, and
    the memory that it keeps is of that round."""
    return accepted is not None and accepted == round - 1


def uplink_coding(
    plan: Plan,
    round: int,
    client: ClientId,
    view: View = EVERYTHING,
    sent: Message | None = None,
) -> Coding:
    """The coding of what a client sends in a round.

    Args:
      sent: what it received, where it answers with an update of that.
    """
    root = round_seed(plan, round)
    held = None
    if sent is not None and getattr(plan.uplink, "reads_sent", False):
        held = find_changed(sent, view, plan.local_shares)
    return Coding("up", root, round, budget=view.budget, path=("client", client), held=held)


def answer_codec(plan: Plan, phase: str) -> Codec:
    """The codec of answers other than updates: the lossless one, unless the part that answers the
    phase names another; see `core.hooks.Handles`."""
    for named in plan.hooks("answers_with"):
        if phase in named:
            codec: Codec = build("codec", named[phase])
            return codec
    return plan.lossless
