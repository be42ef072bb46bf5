"""Classes known by the mean of a few examples: the loss of a batch, and how a new class is told."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fedpeft.core.seeds import generator
from fedpeft.core.types import Summed


def batch_losses(z: Tensor, label: Tensor, mask: Tensor, scale: float) -> Tensor:
    """`group_losses` of a batch, (batch,), where each example stands for its class.

    Operations alone that clients in one stack can do: no class is counted or sorted.
    """
    same = label[:, None] == label
    return group_losses(z, (same & (mask > 0)).to(z), same.sum(1).to(z), scale)


def all_losses(z: Tensor, label: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The same of many examples, (n,), without a matrix of all pairs."""
    classes = torch.unique(label)
    groups = (classes[:, None] == label) & (mask > 0)
    return group_losses(z, groups.to(z), z.new_ones(len(classes)), scale)


def group_losses(z: Tensor, groups: Tensor, copies: Tensor, scale: float) -> Tensor:
    """−log of the probability of each example's class, (n,), where class c has the logit
    −s·‖z − p_c‖² for the mean p_c of its *other* examples (Snell et al., 2017, arXiv:1703.05175,
    equations 1 and 2). It is 0 for the only example of a class, which has no others.

    Args:
      z: embeddings, (n, features).
      groups: 1 where an example is in a group, (groups, n). An example that is in none has loss 0.
      copies: how many of the groups are the same class as this one, (groups,).
      scale: s.
    """
    sizes, sums = groups.sum(1), groups @ z
    means = sums / sizes.clamp_min(1)[:, None]
    squares = z.square().sum(1)[:, None] + means.square().sum(1) - 2 * z @ means.T
    # A class that several groups stand for counts once: each has its part of the sum.
    others = -scale * squares - copies.log()
    others = others.masked_fill((groups.T > 0) | (sizes == 0), float("-inf"))
    belongs = groups.T / copies
    own_size = belongs @ sizes
    own_mean = (belongs @ sums - z) / (own_size - 1).clamp_min(1)[:, None]
    own = -scale * (z - own_mean).square().sum(1)
    losses = torch.cat([others, own[:, None]], 1).logsumexp(1) - own
    return torch.where(own_size > 1, losses, 0.0)


def episode_hits(
    z: Tensor,
    label: Tensor,
    ways: int,
    shots: int,
    queries: int,
    draws: torch.Generator,
    times: int,
) -> Summed:
    """Count for each example how often an episode asked for its class, and how often the nearest
    mean of `shots` examples was that of its class. Nothing is asked where fewer than `ways` classes
    have enough examples.

    Args:
      z: embeddings, (n, features).
      times: how many episodes.
    """
    right, asked = z.new_zeros(len(z)), z.new_zeros(len(z))
    places = [(label == c).nonzero()[:, 0] for c in torch.unique(label)]
    enough = [one for one in places if len(one) >= shots + queries]
    for support, query in _episodes(enough, ways, shots, queries, draws, times):
        means = z[support].mean(1)
        nearest = torch.cdist(z[query.flatten()], means).argmin(1)
        own = torch.arange(ways).repeat_interleave(queries)
        right.index_add_(0, query.flatten(), (nearest == own).to(z))
        asked.index_add_(0, query.flatten(), torch.ones(query.numel()).to(z))
    return Summed(right, asked)


def episode_draws(seed: int) -> torch.Generator:
    """The episodes' own stream: the same ones in each round, so that rounds can be compared."""
    return generator(seed, "few-shot", "episodes")


def _episodes(
    places: list[Tensor], ways: int, shots: int, queries: int, draws: torch.Generator, times: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The places of support (ways, shots) and queries (ways, queries) of each episode."""
    if len(places) < ways:
        return
    for _ in range(times):
        chosen = torch.randperm(len(places), generator=draws)[:ways].tolist()
        drawn = torch.stack(
            [
                places[c][torch.randperm(len(places[c]), generator=draws)[: shots + queries]]
                for c in chosen
            ]
        )
        yield drawn[:, :shots], drawn[:, shots:]
