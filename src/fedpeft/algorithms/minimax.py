"""The worst mixture of the clients (Mohri et al., 2019, AFL, arXiv:1902.00146, Algorithm 1).

The model w is to be good for every mixture of the clients: min over w of the max over λ of Σ λ·F,
for weights λ that are at least 0 and sum to 1. Each client tells F, its loss at the model that it
received. The server takes the mean of the updates with the weights λ, and then λ ← Π(λ + rate·F),
with Π the nearest point of the simplex. DRFLM (Wu et al., 2022, arXiv:2204.07742) has the same game
with mixed-up examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpeft.algorithms.received_loss import LOSS, loss_of, told_loss
from fedpeft.core.conversation import Answer, Flow, changed_answers
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Inner
from fedpeft.core.rounds import Round
from fedpeft.core.types import ClientId, State, Tensors, Update

OWNER = "minimax"
"""The owner, in the server's memory, of λ: by client a number in float64."""
LEAST = 1e-12
"""What a client with λ = 0 counts, by 1 for an equal share: its reply is one, but moves nothing."""
MOST = 1e280
"""The largest rate·F, so that sums of them are finite."""


@dataclass(frozen=True)
class Minimax:
    """The weight of a client grows with its loss, so that the mean goes where the worst are.

    λ begins with equal shares of all clients. Where only some are drawn, their losses count by how
    seldom one is drawn, N / m for m of N clients, and the mean is over them with their λ.

    Attributes:
      rate: how far λ goes along the losses in a round; 0 leaves equal shares.

    Raises:
      ValueError: the rate is negative, or not finite.
    """

    rate: float = 0.01
    reveals: ClassVar[frozenset[str]] = frozenset(
        {"the loss of each model that is sent here, on the examples here"}
    )
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.PLAIN_MEAN: 'minimax is a weighted mean: leave it out, or set aggregator = "mean"',
    }
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.WEIGHTS_BY_SIZE: "minimax finds the weights of clients itself, whatever their numbers "
        'of examples: leave it out, or set weighting = "uniform"',
        Fact.SUM_ONLY: "minimax weighs each update by its client's losses, which sums hide: leave "
        'it out, or set exchange = "plain"',
        Fact.ASYNCHRONOUS: "minimax compares losses of one model, and asynchronous steps have "
        "several: leave out one of them",
        Fact.REMEMBERS_MEAN: "{other} {what}, in which all count as the plan says, and minimax "
        "counts them otherwise: leave out one of them",
        Fact.CONTROL: "{other} {what}, whose mean counts all alike: leave it out, or minimax",
    }

    def __post_init__(self) -> None:
        if not 0 <= self.rate < float("inf"):
            raise ValueError(f"rate must be at least 0 and finite, got {self.rate}")

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The inner algorithm's round with the weights λ, and then the step of λ."""
        share = shares(state.memory.get(OWNER, {}), round.clients)
        losses: dict[ClientId, float] = {}

        def weighed(answer: Answer) -> Answer:
            values = answer.message.values
            losses[answer.client] = values[LOSS]
            counts = max(len(share) * share[answer.client], LEAST)
            changed = {**values, "weight": values["weight"] * counts}
            return replace(answer, message=replace(answer.message, values=changed))

        after = yield from changed_answers(inner(state, round), weighed)
        if after.accepted == state.accepted:  # the round is given up
            return after
        by = self.rate * len(share) / max(len(losses), 1)
        ahead = [x + by * losses.get(client, 0.0) for client, x in share.items()]
        moved = nearest_mixture(torch.tensor(ahead, dtype=torch.float64))
        round.report(OWNER, {"largest": float(moved.max()), "none": int((moved == 0).sum())})
        return replace(after, memory={**after.memory, OWNER: dict(zip(share, moved, strict=True))})

    def tell(self, client: Any) -> Mapping[str, Any]:
        """The mean loss of the model that a client received, over the examples that it trains on.

        Raises:
          ArithmeticError: it is not finite.
        """
        return {LOSS: loss_of(client.site.task, client.outputs())}

    def check_update(self, update: Update, state: State, plan: Any) -> None:
        """Raises ValueError for a value that is no loss, or one too large to count by."""
        loss = told_loss(update)
        if not self.rate * loss <= MOST:
            raise ValueError(f"its loss of {loss:g} is too large to count by")


def shares(kept: Tensors, clients: Sequence[ClientId]) -> dict[ClientId, float]:
    """λ by client; who is not known yet begins with an equal share."""
    equal = 1 / len(clients)
    return {client: float(kept[client]) if client in kept else equal for client in clients}


def nearest_mixture(point: Tensor) -> Tensor:
    """The nearest point of the simplex, all of whose numbers are at least 0 and sum to 1 (Duchi et
    al., 2008, Efficient projections onto the l1-ball, Figure 1).

    It is max(point − θ, 0), with the one θ for which these sum to 1: of the numbers from the
    largest down, as many stay above 0 as lie above the θ that they alone would have.

    Args:
      point: (n,), finite, n at least 1.
    """
    point = point - point.max()  # the same for all, so that the nearest point stays where it is
    down = point.sort(descending=True).values
    theta = (down.cumsum(0) - 1) / torch.arange(1, len(point) + 1, dtype=point.dtype)
    above = int((down > theta).sum())
    return (point - theta[above - 1]).clamp_min(0)
