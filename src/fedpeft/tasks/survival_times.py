"""Times until an event, of which some are censored: losses, and how well risks are ordered.

An example is a time and whether the event came then (1), or the example was only seen until then
(0, censored).
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from fedpeft.core.types import Summed

PAIRS = 2**22
"""Pairs of examples that are looked at in one piece, so that large held-out sets fit memory."""


def cox_losses(scores: Tensor, time: Tensor, event: Tensor, mask: Tensor) -> Tensor:
    """−log of each example's factor of Cox's partial likelihood, (n,); 0 for a censored example.

    Of an event i the factor is exp(ηᵢ) / Σ exp(ηⱼ) over the risk set, the j with tⱼ ≥ tᵢ. Of d
    events at one time the l-th, from 0, has a risk set in which these d count 1 − l/d each (Efron,
    1977, JASA 72), in the order of the batch: their sum is the same in any order.

    Args:
      scores: η, (n,).
      time, event: (n,).
      mask: (n,), 0 for what fills a batch up, which is in no risk set.
    """
    count = len(scores)
    place, counted = torch.arange(count, device=scores.device), mask > 0
    died = (event > 0) & counted
    found = []
    for rows in _pieces(count, scores.device):
        own = rows[:, None] == place
        at_risk = ((time >= time[rows, None]) & counted) | own
        tied = (time == time[rows, None]) & died
        before = (tied & (place < rows[:, None])).sum(1, keepdim=True)
        share = 1 - before / tied.sum(1, keepdim=True).clamp_min(1)
        # a row that fills the batch up is at risk by itself: a loss that is not finite would stay
        # so when it is multiplied by 0
        weight = torch.where(tied, share, 1.0).log()
        terms = (scores + weight).masked_fill(~at_risk, float("-inf"))
        found.append(terms.logsumexp(1) - scores[rows])
    return torch.cat(found) * event


def hazard_losses(logits: Tensor, time: Tensor, event: Tensor, cuts: Tensor) -> Tensor:
    """−log likelihood of each example under a discrete-time hazard, (n,) (Gensheimer and
    Narasimhan, 2019, arXiv:1805.00917).

    With h = σ(logits) the probabilities that the event comes in an interval if it did not come
    before, an event in interval k has the likelihood h_k · Π_{j<k} (1 − h_j), one after the last
    interval Π (1 − h_j). A censored example has survived the intervals of which it has seen the
    middle, as in the authors' code.

    Args:
      logits: (n, intervals).
      time, event: (n,).
      cuts: (intervals,) the upper ends, rising; the first interval begins at 0.
    """
    lower = torch.cat([torch.zeros_like(cuts[:1]), cuts[:-1]])
    middle, at, died = (lower + cuts) / 2, time[:, None], event[:, None] > 0
    survived = torch.where(died, at >= cuts, at >= middle)
    came = died & (at >= lower) & (at < cuts)
    each = binary_cross_entropy_with_logits(logits, came.to(logits), reduction="none")
    return (each * (survived | came)).sum(1)


def expected_times(logits: Tensor, cuts: Tensor) -> Tensor:
    """The mean time until the event or the last cut, (n,): the area below the survival curve, which
    is a line between two cuts."""
    after = logsigmoid(-logits.double()).cumsum(1).exp()
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    widths = torch.diff(cuts.double(), prepend=cuts.new_zeros(1).double())
    return ((before + after) / 2 * widths).sum(1)


def concordance(risk: Tensor, time: Tensor, event: Tensor, mask: Tensor) -> Summed:
    """Harrell's C, as sums of which it is the quotient: of each example the pairs with one that
    outlived it, and how many of these are in order.

    A pair is comparable where the earlier time is an event's; of equal times, where one is an
    event's and the other censored, who is taken to live longer. It is in order where the risk of
    the earlier one is higher; equal risks count a half.
    """
    died, counted = (event > 0) & (mask > 0), mask > 0
    ordered, comparable = [], []
    for rows in _pieces(len(risk), risk.device):
        own_time, own_risk = time[rows, None], risk[rows, None]
        outlived = (own_time < time) | ((own_time == time) & ~died)
        pairs = outlived & counted & died[rows, None]
        right = (own_risk > risk).double() + 0.5 * (own_risk == risk)
        ordered.append((right * pairs).sum(1))
        comparable.append(pairs.double().sum(1))
    return Summed(torch.cat(ordered), torch.cat(comparable))


def _pieces(count: int, device: torch.device) -> Iterator[Tensor]:
    """The places of so many examples in pieces, each of which is compared with all of them."""
    yield from torch.split(torch.arange(count, device=device), max(1, PAIRS // max(1, count)))
