"""Projections onto directions that both ends draw, one small number each (after Ferret; Shu et al.,
2024, arXiv:2409.06277)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.codecs.magnitudes import check_scales
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Coding
from fedpeft.core.projections import (
    PROJECTED,
    block_sizes,
    combine,
    count_directions,
    draw_directions,
    project,
)
from fedpeft.core.tensors import Layout
from fedpeft.core.types import Tensors
from fedpeft.errors import WireError
from fedpeft.wire.frames import cut, decode_tensors, encode_tensors, join, kinds

LEVELS = 127


@dataclass(frozen=True)
class Ferret:
    """x ≈ Σ_k c_k·v_k in each block of all entries, with c_k = ⟨x, v_k⟩ for k = ceil(density·b)
    directions v_k of a block's b entries.

    Ferret's directions are Gaussian, and their sum is the change with an error of √(b / k) of its
    length: it needs averages over many clients. Here they are rows of a Hadamard matrix with random
    signs, drawn from the message's seed, and so orthogonal: what comes out is a projection, with an
    error of √(1 − k / b), and error feedback sends the rest in later rounds.

    All entries of float32 and float64 tensors are one vector, cut into blocks; see
    `core.projections`. The coefficients are sent as in `int8`, with the peak in
    bfloat16. What is left beside the blocks, fewer than 64 entries, is sent in float32, and tensors
    of narrower types and integers as they are: a second pass would change what they are rounded to.

    body = the peak of each block, bfloat16 | the coefficients, int8 | what is left of the vector,
           float32 | the other tensors

    Attributes:
      density: k / b. Both ends must have the same.

    Raises:
      ValueError: `density` is not in (0, 1].
    """

    density: float = 1 / 16
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.LOSSY, Fact.SPARSE, Fact.MIXES_ENTRIES})

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        """Raises ValueError for an entry that is not finite: it has no projection."""
        projected = [x for x in tensors.values() if x.dtype in PROJECTED]
        whole = torch.cat([x.detach().reshape(-1).float().cpu() for x in projected] or [_nothing()])
        sizes = block_sizes(len(whole))
        *blocks, left = torch.split(whole, [*sizes, len(whole) - sum(sizes)])
        directions = draw_directions(sizes, self.density * how.budget, how.seed)
        parts = [
            _quantized(project(x, signs, rows))
            for x, (_, signs, rows) in zip(blocks, directions, strict=True)
        ]
        if not bool(left.isfinite().all()):
            raise ValueError("an entry is not finite in float32, so it cannot be sent")
        others = join(x for x in tensors.values() if x.dtype not in PROJECTED)
        peaks, codes = join(peak for peak, _ in parts), join(code for _, code in parts)
        return encode_tensors([], tensors, peaks + codes + join([left]) + others)

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        shapes, _, body = decode_tensors(blob)
        every, density = kinds(shapes), self.density * how.budget
        n = sum(count for count, dtype in every if dtype in PROJECTED)
        sizes = block_sizes(n)
        peaks, *carried = cut(
            body,
            [
                (len(sizes), torch.bfloat16),
                *((count_directions(size, density), torch.int8) for size in sizes),
                (n - sum(sizes), torch.float32),
                *(kind for kind in every if kind[1] not in PROJECTED),
            ],
        )
        check_scales(peaks)
        codes, left, others = carried[: len(sizes)], carried[len(sizes)], carried[len(sizes) + 1 :]
        whole = []
        directions = draw_directions(sizes, density, how.seed)
        for code, peak, (size, signs, rows) in zip(codes, peaks, directions, strict=True):
            if int(code.min()) < -LEVELS:
                raise WireError(f"a payload has a level below {-LEVELS}")
            coefficients = code.float() / LEVELS * peak.float()
            whole.append(combine(coefficients, size, signs, rows))
        return _restored(shapes, torch.cat([*whole, left]), iter(others))


def _nothing() -> Tensor:
    return torch.zeros(0)


def _quantized(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The peak, and each coefficient in levels of it.

    The peak is rounded to bfloat16: a second transform finds the largest coefficient again to
    within 1e-6 of it, which rounds to the same peak.
    """
    peak = coefficients.abs().max().bfloat16()
    if not bool(peak.isfinite()):
        raise ValueError(
            "a coefficient is not finite in bfloat16: an entry is infinite or no number"
        )
    if not peak:
        return peak, torch.zeros(len(coefficients), dtype=torch.int8)
    levels = (coefficients / peak.float() * LEVELS).round().clamp(-LEVELS, LEVELS)
    return peak, levels.to(torch.int8)


def _restored(shapes: Layout, whole: Tensor, others: Iterator[Tensor]) -> Tensors:
    at, found = 0, {}
    for (name, shape, _), (count, dtype) in zip(shapes, kinds(shapes), strict=True):
        if dtype in PROJECTED:
            found[name] = whole[at : at + count].to(dtype, copy=True).reshape(shape)
            at += count
        else:
            found[name] = next(others).reshape(shape)
    return found
