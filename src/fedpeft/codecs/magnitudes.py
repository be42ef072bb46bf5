"""The one number by which all entries of a tensor are scaled, where only their signs travel."""

import torch
from torch import Tensor

from fedpeft.errors import WireError


def mean_magnitude(name: str, x: Tensor) -> Tensor:
    """mean|x| as a float32 scalar, rounded to a value that `x`'s own type holds; 0 of no entries.

    The sum is of float64. So the mean of k entries of one magnitude is that magnitude, to the bit,
    for k below 2^29, and a second pass through a codec changes nothing.

    Raises:
      ValueError: an entry is not finite.
    """
    if not x.numel():
        return torch.zeros(())
    mean = x.detach().abs().double().mean().to(x.dtype).float().cpu()
    if not bool(mean.isfinite()):
        raise ValueError(
            f"tensor {name!r} has an entry that is not finite in float32, so it has no scale"
        )
    return mean


def check_scales(scales: Tensor) -> None:
    """Raises WireError for scales that no codec sends."""
    if not bool((scales.isfinite() & (scales >= 0)).all()):
        raise WireError("a payload has a scale that is negative or not finite")
