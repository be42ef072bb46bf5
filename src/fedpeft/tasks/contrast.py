"""How pictures and captions are told from each other: losses of unit embeddings, and how well a
search does with them.

All take the whole batch: `scores` (n, n) has a row for each picture and a column for each caption.
`counts` (n,) says which rows are pairs that count; what fills a batch up, and what has one side
alone, is none.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from fedpeft.core.types import Summed

DIRECTIONS = ("image_to_text", "text_to_image")
DEPTHS = (1, 5)
"""How many found ones are looked at."""
RECALLS = tuple(f"{way}_recall_{k}" for way in DIRECTIONS for k in DEPTHS)


def equal_rows(ids: Tensor) -> Tensor:
    """Which captions have the same tokens, (n, n)."""
    return (ids[:, None] == ids[None]).all(-1)


def softmax_losses(scores: Tensor, counts: Tensor, equal: Tensor) -> Tensor:
    """Half of −log(exp sᵢᵢ / Σⱼ exp sᵢⱼ) and half of the same over sⱼᵢ, (n,): InfoNCE both ways
    (CLIP: Radford et al., 2021, arXiv:2103.00020, figure 3). It is 0 for a row that does not count.

    A pair whose caption is the same as another one's is in neither of the other's sums.
    """
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    out = (equal | ~counts[None] | ~counts[:, None]) & ~own
    kept = scores.masked_fill(out, float("-inf"))
    place = torch.arange(len(scores), device=scores.device)
    ways = [cross_entropy(one, place, reduction="none") for one in (kept, kept.T)]
    return torch.where(counts, (ways[0] + ways[1]) / 2, 0.0)


def sigmoid_losses(scores: Tensor, counts: Tensor, equal: Tensor) -> Tensor:
    """−log σ(sᵢᵢ) − Σⱼ log σ(−sⱼᵢ) over the other pictures j of caption i, (n,) (SigLIP: Zhai et
    al., 2023, arXiv:2303.15343, section 3.2). It is 0 for a row that does not count, and j has
    another caption."""
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    each = -logsigmoid(torch.where(own, scores, -scores))
    wanted = own | (~equal & counts[:, None])
    return torch.where(counts, torch.where(wanted, each, 0.0).sum(0), 0.0)


def label_losses(vectors: Tensor, label: Tensor, counts: Tensor, scale: Tensor) -> Tensor:
    """Losses (n,) of examples with one side: −log(exp(s·zᵢ·zₚ) / Σₐ exp(s·zᵢ·zₐ)), with a over all
    others, and the mean over those p of them that have the same label (supervised contrast: Khosla
    et al., 2020, arXiv:2004.11362, equation 2). It is 0 where no other has the label.

    Args:
      vectors: (n, features), of length 1; `counts` says which are looked at.
      scale: s, (n,).
    """
    own = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    others = counts[None] & counts[:, None] & ~own
    alike = others & (label[:, None] == label[None])
    # a large negative number, not −∞: a row without any others would have no gradient but NaN
    scores = (scale[:, None] * vectors @ vectors.T).masked_fill(~others, -1e4)
    each = torch.where(alike, scores.log_softmax(-1), 0.0)
    return -each.sum(-1) / alike.sum(-1).clamp_min(1)


def search_recalls(scores: Tensor, counts: Tensor, equal: Tensor) -> Mapping[str, Summed]:
    """How often the right one is among the first k found, both ways, and `chance`, how often it is
    first where the order is drawn.

    Every caption with the right words is right, and so is every picture that has such a caption.
    What scores as well as the best right one counts as found before it, so that a model that gives
    all the same vector finds nothing.
    """
    total = counts.double()
    right = equal & counts[None] & counts[:, None]
    wrong = ~equal & counts[None] & counts[:, None]
    found = {}
    for way, one in zip(DIRECTIONS, (scores, scores.T), strict=True):
        best = one.masked_fill(~right, float("-inf")).amax(1, keepdim=True)
        before = (wrong & (one >= best)).sum(1)
        for k in DEPTHS:
            found[f"{way}_recall_{k}"] = Summed((before < k).double() * total, total)
    share = right.sum(1).double() / total.sum().clamp_min(1)
    return {**found, "chance": Summed(share * total, total)}
