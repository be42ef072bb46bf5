"""The directions of a frozen weight with the largest singular values, alike on every site."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fedpeft.errors import PlanError


def largest_directions(weight: Tensor, rank: int, layer: str) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, r), s (r,) and Vᵀ (r, in) of the best W ≈ U·diag(s)·Vᵀ of rank r, in float64.

    A singular vector is known up to its sign, which other libraries choose otherwise: here the
    largest entry of each row of Vᵀ is positive. Directions of nearly equal singular values may
    still differ from site to site.

    Args:
      weight: (out, in).
      layer: its name, for the error.

    Raises:
      PlanError: the weight has fewer than r directions.
    """
    most = min(weight.shape)
    if rank > most:
        raise PlanError(
            f"rank = {rank}: the layer {layer!r} of shape {list(weight.shape)} has {most} singular "
            f"values: set the method's rank to {most} or less"
        )
    with _one_thread():
        u, s, vt = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    largest = vt.gather(1, vt.abs().argmax(1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(vt)
    return u * signs.T, s, vt * signs


@contextmanager
def _one_thread() -> Iterator[None]:
    """The number of threads changes the last bits, and sites have different numbers."""
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(was)
