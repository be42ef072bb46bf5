"""Directions that both ends of a wire draw from a seed: rows of a Hadamard matrix with random
signs.

A vector is cut into blocks whose sizes are powers of two, the largest first, down to 64 entries;
what is left beside them has no directions. In each block the directions are orthogonal and of
length 1. Neither they nor the matrix are ever held: a transform takes b·log b additions, which are
the same to the bit on every machine.
"""

from collections.abc import Iterator
from math import ceil, sqrt

import torch
from torch import Tensor

from fedpeft.core.seeds import generator

PROJECTED = (torch.float32, torch.float64)
"""Types of the tensors that are projected, as one vector."""
SMALLEST_BLOCK = 64


def block_sizes(n: int) -> list[int]:
    """Powers of two, falling, that n consists of, down to 64."""
    bits = range(n.bit_length() - 1, SMALLEST_BLOCK.bit_length() - 2, -1)
    return [1 << bit for bit in bits if n >> bit & 1]


def count_directions(size: int, density: float) -> int:
    """How many directions a block of so many entries has."""
    return ceil(density * size)


def draw_directions(
    sizes: list[int], density: float, seed: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each block's size, the signs of its entries, ±1 in float32 (size,), and the rows of the
    matrix that are directions, increasing, int64."""
    for i, size in enumerate(sizes):
        # Both ends draw from this stream: another name, and neither reads what the other wrote.
        draws = generator(seed, "ferret", i)
        signs = 1 - 2 * torch.randint(2, (size,), generator=draws).float()
        rows = torch.randperm(size, generator=draws)[: count_directions(size, density)]
        yield size, signs, rows.sort().values


def combine(coefficients: Tensor, size: int, signs: Tensor, rows: Tensor) -> Tensor:
    """Σ c_k·v_k of one block, (size,)."""
    every = torch.zeros(size)
    every[rows] = coefficients
    return hadamard(every) * signs


def project(x: Tensor, signs: Tensor, rows: Tensor) -> Tensor:
    """c_k = ⟨x, v_k⟩ of one block."""
    return hadamard(x * signs)[rows]


def hadamard(x: Tensor) -> Tensor:
    """H·x / √b, where H is the Hadamard matrix of Sylvester's order; its own inverse."""
    size, width = len(x), 1
    while width < size:
        pairs = x.view(-1, 2, width)
        x = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], dim=1).view(-1)
        width *= 2
    return x / sqrt(size)
