"""Factors of low rank, as LoRA has them (Hu et al., 2022, arXiv:2106.09685), and sums of their
products.

What is added to frozen weights is kept by layer: `<layer>.left` (out, R) and `<layer>.right` (R,
in), or `<layer>.whole` (out, in), in units of B·A.

A layer's A has the shape (r, in) and is called `<layer>.lora_A.<adapter>.weight`, its B (out, r);
its weight changes by (α/r)·B·A. A client of rank k has the first k rows of A and columns of B,
under the α/r of all: its product is then one of the full rank whose other rows and columns are
zero.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import qr

from fedpeft.core.types import Tensors

A, B = ".lora_A.", ".lora_B."
EXACT = "exact"
"""The owner, among what is shared, of what is added to frozen weights."""


def pairs(tensors: Tensors) -> dict[str, tuple[str, str]]:
    """By layer the names of A and B, where both are there as matrices."""
    every = [(name, name.replace(A, B)) for name, x in tensors.items() if A in name and x.ndim == 2]
    return {a.partition(A)[0]: (a, b) for a, b in every if b in tensors}


def is_factor(name: str) -> bool:
    return A in name or B in name


def cut(tensors: Tensors, rank: int | None) -> Tensors:
    """What a client of this rank has of them; all of it for None."""
    if rank is None:
        return tensors
    return {name: _cut_tensor(name, x, rank) for name, x in tensors.items()}


def _cut_tensor(name: str, x: Tensor, rank: int) -> Tensor:
    if A in name:
        return x[:rank]
    return x[:, :rank] if B in name else x


def pad_rank(delta: Tensors, params: Tensors) -> dict[str, Tensor]:
    """A change of factors as one of those at full rank, by which what is not there goes to zero."""

    def whole(name: str, x: Tensor) -> Tensor:
        if not is_factor(name) or x.shape == params[name].shape:
            return x
        to = -params[name].to(x)
        to[tuple(slice(side) for side in x.shape)] = x
        return to

    return {name: whole(name, x) for name, x in delta.items()}


@dataclass(frozen=True)
class Product:
    """Σ w·B·A over any number of pairs: L·R for L (out, k) and R (k, in), in float64.

    The product is never written out. Where k passes twice the lesser side it is brought down to
    that side by an orthogonal basis, so that a sum of many is no larger than one of few.
    """

    lefts: tuple[Tensor, ...]
    rights: tuple[Tensor, ...]

    @classmethod
    def zero(cls, out: int, into: int) -> "Product":
        return cls(
            (torch.zeros(out, 0, dtype=torch.float64),),
            (torch.zeros(0, into, dtype=torch.float64),),
        )

    @property
    def left(self) -> Tensor:
        return torch.cat(self.lefts, 1)

    @property
    def right(self) -> Tensor:
        return torch.cat(self.rights, 0)

    def plus(self, b: Tensor, a: Tensor, by: float = 1.0) -> "Product":
        more = Product((*self.lefts, b.double() * by), (*self.rights, a.double()))
        least = min(len(b), a.shape[1])
        return more.reduced() if sum(x.shape[1] for x in more.lefts) > 2 * least else more

    def times(self, by: float) -> "Product":
        return Product((self.left * by,), (self.right,))

    def reduced(self) -> "Product":
        """The same with k at most the lesser side."""
        left, right = self.left, self.right
        if left.shape[1] <= min(len(left), right.shape[1]):
            return Product((left,), (right,))
        # The basis is of the shorter side, as that side bounds k.
        if len(left) <= right.shape[1]:
            basis, rest = qr(left)
            return Product((basis,), (rest @ right,))
        basis, rest = qr(right.T)
        return Product((left @ rest.T,), (basis.T,))

    def norm(self) -> float:
        """Frobenius."""
        # Orthogonal bases keep lengths: the small triangular product is as long as the whole one,
        # which is never written out.
        return float(
            torch.linalg.matrix_norm(qr(self.left, mode="r").R @ qr(self.right.T, mode="r").R.T)
        )

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (out, k), s (k,) descending, Vᵀ (k, in) with U·diag(s)·Vᵀ the product."""
        (over, left), (under, right) = qr(self.left), qr(self.right.T)
        u, s, vt = torch.linalg.svd(left @ right.T)
        k = len(s)
        return over @ u[:, :k], s, vt[:k] @ under.T


def accumulate(held: Tensors, more: Tensors) -> dict[str, Tensor]:
    """What is added to frozen weights, with more of it: as factors or whole, whichever is fewer
    numbers."""
    every = dict(held)
    for layer in _layers(more):
        left, right = more[f"{layer}.left"], more[f"{layer}.right"]
        whole = every.get(f"{layer}.whole")
        if whole is not None:
            every[f"{layer}.whole"] = whole + left @ right
            continue
        if f"{layer}.left" in every:
            left = torch.cat([every.pop(f"{layer}.left"), left], 1)
            right = torch.cat([every.pop(f"{layer}.right"), right], 0)
        # Factors grow with each round. From here on the whole weight is smaller, and it bounds what
        # a client downloads.
        if left.numel() + right.numel() < len(left) * right.shape[1]:
            every |= {f"{layer}.left": left, f"{layer}.right": right}
        else:
            every[f"{layer}.whole"] = left @ right
    return every


def merge_exact(model: nn.Module, exact: Tensors) -> dict[str, Tensor]:
    """The frozen weights of a model with what is added to them, by their names."""
    weights = {}
    for layer in _layers(exact):
        tuner: Any = model.get_submodule(layer)
        weight = tuner.base_layer.weight
        whole = exact.get(f"{layer}.whole")
        change = exact[f"{layer}.left"] @ exact[f"{layer}.right"] if whole is None else whole
        # Layers as GPT-2 has them hold their weight transposed; peft says so by this name.
        change = change.T if tuner.fan_in_fan_out else change
        by = next(iter(tuner.scaling.values()))
        # A new tensor, swapped in for one call: nobody writes to the frozen base.
        weights[f"{layer}.base_layer.weight"] = weight.detach() + by * change.to(weight)
    return weights


def in_step(tensors: Tensors, came: Tensors) -> dict[str, Tensor]:
    """The frozen factors among the tensors whose partner came, cut to its rank."""
    found: dict[str, Tensor] = {}
    for name, x in came.items():
        if not is_factor(name):
            continue
        is_a = A in name
        partner = name.replace(A, B) if is_a else name.replace(B, A)
        if partner not in came and partner in tensors:
            rank = len(x) if is_a else x.shape[1]
            found[partner] = _cut_tensor(partner, tensors[partner], rank)
    return found


def _layers(exact: Mapping[str, Tensor]) -> Iterable[str]:
    return dict.fromkeys(name.rpartition(".")[0] for name in exact)
