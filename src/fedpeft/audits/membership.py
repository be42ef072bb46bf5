"""Was this example among a client's? (Shokri et al., 2017, arXiv:1610.05820; against updates: Nasr
et al., 2019, arXiv:1812.00910.)

Scores, higher for a member:

    loss      −ℓ(x; w + Δ)             of the last model that the client sent
    gain      ℓ(x; w) − ℓ(x; w + Δ)    what the client's training did for x
    cosine    cos(−∇ℓ(x; w), Δ)        whether x pulls where the update went
    before    −ℓ(x; w₀)                a control: the model has seen nobody, and 0.5 is expected

`gain` and `cosine` are means over the client's messages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.audits.messages import Message
from fedpeft.compute.objective import Objective
from fedpeft.core.tensors import count, map_tensors, norm
from fedpeft.core.types import Batch, ClientId, Tensors
from fedpeft.errors import DataError
from fedpeft.rounds.site import Site, threads

CHUNK = 32
DRAWS = 1000
"""Bootstrap samples of an interval."""
OUTSIDERS = 1000
"""Held-out examples beyond so many are not looked at."""


@dataclass(frozen=True)
class Auc:
    """The probability that a member scores higher than a non-member of its class; ties count one
    half.

    Attributes:
      low, high: a 95 % bootstrap interval over members and non-members.
    """

    value: float
    low: float
    high: float


def membership(site: Site, client: ClientId, messages: Sequence[Message]) -> dict[str, Auc]:
    """How well each score tells the client's training examples from held-out ones of the same
    class.

    A client's classes are known by its label skew, whoever its examples are, so only pairs of one
    class are compared.
    """
    inside, outside = _rows(site, client, 0), _rows(site, None, OUTSIDERS)
    if not inside or not outside:
        raise DataError("membership needs examples of the client and held-out ones")
    members, others = scores(site, messages, inside), scores(site, messages, outside)
    same = _same_class(inside, outside)
    return {name: auc(members[name], others[name], same) for name in members}


def scores(
    site: Site, messages: Sequence[Message], batches: Sequence[Batch]
) -> Mapping[str, Tensor]:
    """Each score of each example, (n,)."""
    untouched = Objective(site.model, site.task)
    site.model.eval()
    found: dict[str, list[Tensor]] = {"loss": [], "gain": [], "cosine": [], "before": []}
    with threads(site.plan.compute.threads):
        for batch in batches:
            before = [
                _losses(message.objective, site, message.received, batch) for message in messages
            ]
            after = [_losses(message.objective, site, message.sent, batch) for message in messages]
            pulls = [_cosine(site, message, batch) for message in messages]
            found["loss"].append(-after[-1])
            found["gain"].append(torch.stack(before).sub(torch.stack(after)).mean(0))
            found["cosine"].append(torch.stack(pulls).mean(0))
            found["before"].append(-_losses(untouched, site, site.params(), batch))
    return {name: torch.cat(parts) for name, parts in found.items()}


def auc(members: Tensor, others: Tensor, same: Tensor) -> Auc:
    """From scores (m,) and (n,), of the pairs that `same` (m, n) holds.

    Raises:
      DataError: there is no such pair.
    """
    if not same.any():
        raise DataError(
            "no held-out example is of a class that the client has: nothing can be compared"
        )
    wins = (
        (members[:, None] > others).double() + 0.5 * (members[:, None] == others).double()
    ) * same
    pairs = same.double()
    draws = torch.Generator().manual_seed(0)
    u, v = (_resampled(len(side), draws) for side in (members, others))
    total = ((u @ pairs) * v).sum(1)
    drawn = (((u @ wins) * v).sum(1) / total)[total > 0]
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Auc(float(wins.sum() / pairs.sum()), low, high)


def _resampled(size: int, draws: torch.Generator) -> Tensor:
    """How often each of `size` is drawn in each bootstrap sample, (DRAWS, size)."""
    drawn = torch.randint(size, (DRAWS, size), generator=draws)
    return torch.zeros(DRAWS, size, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(DRAWS, size).double()
    )


def _rows(site: Site, client: ClientId | None, most: int) -> list[Batch]:
    """Examples without augmentation, in chunks; the first `most`, 0 for all."""
    found, left = [], most or float("inf")
    data = site.data
    for batch in data.held_out() if client is None else data.training(client):
        for first in range(0, count(batch), CHUNK):
            size = int(min(CHUNK, count(batch) - first, left))
            if size:
                found.append(
                    site.on_device({name: x[first : first + size] for name, x in batch.items()})
                )
                left -= size
    return found


def _same_class(inside: Sequence[Batch], outside: Sequence[Batch]) -> Tensor:
    if "label" not in inside[0]:
        return torch.ones(sum(map(count, inside)), sum(map(count, outside)), dtype=torch.bool)
    a, b = (torch.cat([batch["label"].cpu() for batch in side]) for side in (inside, outside))
    return a[:, None] == b


def _losses(objective: Objective, site: Site, params: Tensors, batch: Batch) -> Tensor:
    with torch.no_grad():
        return (
            objective({name: x.to(site.device) for name, x in params.items()}, batch).double().cpu()
        )


def _cosine(site: Site, message: Message, batch: Batch) -> Tensor:
    on = {name: x.to(site.device) for name, x in message.received.items()}
    each = message.objective.gradients(on, batch)
    delta = {name: message.delta[name].to(site.device) for name in each}
    dots = map_tensors(
        lambda g, d: -(g.flatten(1) * d.flatten()).sum(1, dtype=torch.float64), each, delta
    )
    squares = torch.stack([g.flatten(1).double().square().sum(1) for g in each.values()]).sum(0)
    length = norm(delta).to(squares)
    return (
        torch.stack(list(dots.values())).sum(0) / (squares.sqrt() * length).clamp_min(1e-30)
    ).cpu()
