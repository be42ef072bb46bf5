"""What a client makes of a message, and the check that it is one of its plan's."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.compute.objective import Objective
from fedpeft.core.conversation import PARAMS, Expected, Message
from fedpeft.core.low_rank import EXACT, pairs
from fedpeft.core.outputs import ROUND
from fedpeft.core.tensors import finite, layout
from fedpeft.core.types import Tensors
from fedpeft.errors import WireError
from fedpeft.plan.plan import Plan
from fedpeft.wire.payloads import check_layout


@dataclass(frozen=True)
class Received:
    """A message as local training and handlers find it.

    Attributes:
      trained: what of the parameters is trained in this round.
      start: the same, with what is shared beside it as `<owner>/<name>`.
      objective: the loss, with what came and is not trained.
    """

    message: Message
    trained: Tensors
    start: Tensors
    objective: Objective

    @classmethod
    def empty(cls, objective: Objective) -> "Received":
        return cls(Message(), {}, {}, objective)


def check_received(message: Message, phase: str, allowed: Expected, own: Tensors) -> None:
    """Check what came down before anything is done with it: a site trains and measures the tensors
    of its plan, whatever a server sends.

    Args:
      allowed: by group the layout that the plan sends in this phase.
      own: what of the parameters this client sees.

    Raises:
      WireError: the message holds other tensors than the plan sends, or numbers that are not
        finite.
    """
    for group, tensors in message.tensors.items():
        if group not in allowed:
            raise WireError(
                f"the message {phase!r} holds {group[:80]!r}, which this plan does not send; it "
                f"sends {', '.join(allowed)}"
            )
        if not finite(tensors):
            raise WireError(f"the message {phase!r} holds numbers that are not finite")
        # It has as many ranks as were merged so far, which no plan tells: each layer is checked by
        # itself.
        if group == EXACT:
            _check_exact(tensors, own)
        else:
            check_layout(layout(tensors), allowed[group])
    for group, expected in allowed.items():
        needed = phase == "fit" or group == PARAMS
        if needed and expected and group not in message.tensors:
            raise WireError(f"the message {phase!r} lacks {group!r}, which this plan sends")


def given_to_terms(plan: Plan, message: Message, round: int, device: str) -> dict[str, Tensor]:
    """What terms of the loss get beside outputs: as `<owner>/<name>` what owners share with them,
    and the round's number, where a term reads it."""
    given = {
        f"{owner}/{name}": x.to(device)
        for owner in sorted(set(plan.hooks("given_by")))
        for name, x in message.tensors.get(owner, {}).items()
    }
    if any(plan.hooks("reads_round")):
        given[ROUND] = torch.tensor(float(round), device=device)
    return given


def _check_exact(tensors: Tensors, own: Tensors) -> None:
    """Raises WireError for additions to frozen weights that fit no layer with LoRA's factors."""
    factors = pairs(own)
    for name, x in tensors.items():
        layer, _, side = name.rpartition(".")
        if layer not in factors or side not in ("left", "right", "whole") or x.ndim != 2:
            raise WireError(f"{name[:80]!r} is added to no weight that has low-rank factors")
        a, b = factors[layer]
        out, into = len(own[b]), own[a].shape[1]
        rows = {"left": (out, x.shape[1]), "right": (len(x), into), "whole": (out, into)}[side]
        if tuple(x.shape) != rows:
            raise WireError(f"{name[:80]!r} has the shape {tuple(x.shape)}, and not {rows}")
