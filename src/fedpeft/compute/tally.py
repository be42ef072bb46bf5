"""Held-out examples as counts: all that leaves an owner of what its model does on them.

A class's score of an example is its log-odds, ln p / (1 − p), for the class against all others. A
tally counts scores in `BINS` bins of equal width between −`REACH` and `REACH`; the first and the
last bin take what lies beyond. Log-odds rank as probabilities do, and keep apart what a confident
model puts at 0.999 and at 0.99999; 0.5 is an edge.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpeft.core.tensors import Layout, zeros_of
from fedpeft.core.types import Tensors, Weighted

BINS, REACH = 200, 15.0
CONFIDENCES = 15
"""Bins of the largest probability, as Guo et al. (2017, arXiv:1706.04599) have them."""
EXAMPLES, CONFUSION, SCORES = "examples", "confusion", "scores"
CONFIDENT, CONFIDENCE = "confident", "confidence"
POSITIVE, NEGATIVE = 0, 1


def tally_layout(classes: int, reads: Collection[str] = ()) -> Layout:
    """The tensors of a tally; of a task without classes the number of examples alone.

    `confusion` is (classes, classes), truth by prediction. What only some metrics need is there
    where they are asked for: `scores` (classes, 2, bins), of examples of the class and of others;
    `confident` (bins, 2), right and wrong predictions by their probability, and `confidence`, the
    sums of these probabilities.

    Args:
      reads: what metrics read beside the confusion matrix: `SCORES`, `CONFIDENT` or both.
    """
    found: Layout = [(EXAMPLES, [], "int64")]
    if classes:
        found.append((CONFUSION, [classes, classes], "int64"))
    if classes and SCORES in reads:
        found.append((SCORES, [classes, 2, BINS], "int64"))
    if classes and CONFIDENT in reads:
        found.append((CONFIDENT, [CONFIDENCES, 2], "int64"))
        found.append((CONFIDENCE, [CONFIDENCES], "float64"))
    return found


def empty_tally(classes: int, reads: Collection[str] = ()) -> dict[str, Tensor]:
    return zeros_of(tally_layout(classes, reads))


def log_odds(logits: Tensor) -> Tensor:
    """ln p / (1 − p) of each class, (n, classes) in float64.

    Of the likeliest class 1 − p is the sum of the others' probabilities, which does not vanish.

    Raises:
      ArithmeticError: a logit is infinite or no number.
    """
    z = logits.double()
    if not z.isfinite().all():
        raise ArithmeticError("the model gives scores that are infinite or no numbers")
    top = z.argmax(-1, keepdim=True)
    log_p = z.log_softmax(-1)
    of_others = log_p.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    rest = torch.log1p(-log_p.exp()).scatter(-1, top, of_others)
    return (log_p - rest).clamp(-1e4, 1e4)


def tally_batch(
    logits: Tensor, label: Tensor, mask: Tensor, reads: Collection[str] = ()
) -> dict[str, Tensor]:
    """The tally of one batch: logits (n, classes), labels (n,), and a mask of 1 for what counts.

    Raises:
      ArithmeticError: a logit is infinite or no number.
    """
    counts = mask.cpu() > 0
    logits, label = logits.cpu()[counts], label.cpu()[counts]
    odds, classes, guess = log_odds(logits), logits.shape[-1], logits.argmax(-1)
    found = empty_tally(classes, reads)
    found[EXAMPLES] += len(label)
    pairs = torch.bincount(label * classes + guess, minlength=classes * classes)
    found[CONFUSION] += pairs.view(classes, classes)
    if SCORES in found:
        found[SCORES] += _score_counts(odds, label)
    if CONFIDENT in found:
        probability = logits.double().softmax(-1).amax(-1)
        place = (probability * CONFIDENCES).long().clamp_max(CONFIDENCES - 1)
        wrong = (guess != label).long()
        found[CONFIDENT].view(-1).index_add_(0, 2 * place + wrong, torch.ones_like(place))
        found[CONFIDENCE].index_add_(0, place, probability)
    return found


def _score_counts(scores: Tensor, label: Tensor) -> Tensor:
    """Scores (n, classes) in bins, (classes, 2, bins)."""
    n, classes = scores.shape
    place = ((scores + REACH) * (BINS / (2 * REACH))).floor().long().clamp(0, BINS - 1)
    side = torch.full((n, classes), NEGATIVE)
    side[torch.arange(n), label] = POSITIVE
    row = torch.arange(classes) * 2 + side
    counts = torch.bincount((row * BINS + place).view(-1), minlength=classes * 2 * BINS)
    return counts.view(classes, 2, BINS)


@dataclass(frozen=True)
class Curve:
    """How many examples of a class, and of all others, have each score, by rising score.

    Attributes:
      scores: (k,) log-odds: the lowest of those that count as equal.
      positives, negatives: (k,).
      width: of log-odds that count as equal; 0 where only equal ones do.
    """

    scores: Tensor
    positives: Tensor
    negatives: Tensor
    width: float = 0.0


@dataclass(frozen=True)
class Counts:
    """What metrics are computed from, of one owner or of several together.

    Attributes:
      totals: the task's own metrics, as sums with weights.
      confusion: (classes, classes), truth by prediction; None for a task without classes.
      curves: one for each class; none where scores are not counted.
      confident, confidence: see `tally_layout`; None where they are not counted.
    """

    classes: tuple[str, ...]
    examples: int
    totals: Mapping[str, Weighted] = field(default_factory=dict)
    confusion: Tensor | None = None
    curves: tuple[Curve, ...] = ()
    confident: Tensor | None = None
    confidence: Tensor | None = None


def counts_of(
    tally: Tensors,
    totals: Mapping[str, Weighted],
    classes: tuple[str, ...] = (),
    scores: Iterable[tuple[Tensor, Tensor]] = (),
) -> Counts:
    """A tally as metrics read it.

    Args:
      scores: log-odds (n, classes) and labels (n,), batch by batch, where each example's are at
        hand; only equal ones then count as equal, and without them those of one bin.
    """
    pairs = list(scores)
    curves = _exact_curves(pairs) if pairs else _binned_curves(tally)
    return Counts(
        classes,
        int(tally[EXAMPLES]),
        totals,
        tally.get(CONFUSION),
        curves,
        tally.get(CONFIDENT),
        tally.get(CONFIDENCE),
    )


def _binned_curves(tally: Tensors) -> tuple[Curve, ...]:
    if SCORES not in tally:
        return ()
    width = 2 * REACH / BINS
    edges = (torch.arange(BINS, dtype=torch.float64) - BINS // 2) * width
    return tuple(Curve(edges, one[POSITIVE], one[NEGATIVE], width) for one in tally[SCORES])


def _exact_curves(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Curve, ...]:
    odds, label = (torch.cat([pair[k] for pair in pairs]) for k in (0, 1))
    return tuple(_curve(odds[:, k], label == k) for k in range(odds.shape[1]))


def _curve(scores: Tensor, positive: Tensor) -> Curve:
    values, place = torch.unique(scores, return_inverse=True)
    zeros = torch.zeros(len(values), dtype=torch.int64)
    positives = zeros.index_add(0, place, positive.long())
    return Curve(values, positives, zeros.index_add(0, place, (~positive).long()))
