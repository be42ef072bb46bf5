"""Weights of three values (ternary weight networks; Li et al., 2016, arXiv:1605.04711)."""

import torch
from torch import Tensor


def ternarise(x: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """w·sign(x) on S and 0 elsewhere, the scale w, and which entries are in S.

    S are the entries with |x| > D, for D = threshold·mean|x|, and w is the mean of |x| on S. Sums
    are of float64, so that a second pass changes nothing, and the codec `ternary` of the same
    threshold gives the same values. It may be mapped over clients.

    Args:
      x: floating-point, of any shape.
      threshold: in [0, 1).
    """
    size = x.detach().abs().double()
    inside = size > threshold * size.mean() if x.numel() else size > 0
    # of no entries the scale is 0
    count = inside.sum().clamp_min(1)
    scale = (torch.where(inside, size, 0.0).sum() / count).to(x.dtype)
    return torch.where(inside, scale * x.detach().sign(), 0.0), scale, inside
