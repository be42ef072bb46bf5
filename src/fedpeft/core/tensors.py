"""Arithmetic on named tensors. Pure: every function returns new tensors."""

from collections.abc import Callable, Mapping
from math import hypot, inf, isfinite, prod, sqrt

import torch
from torch import Tensor

from fedpeft.core.types import Tensors

_LARGE, _ROW = 1 << 16, 256
"""Entries from which `length` sums rows of so many."""
_SQUARES_HELD = 1e-10
"""A length above which entries whose squares float32 does not hold, of 1e-19, are nothing."""


def map_tensors(fn: Callable[..., Tensor], first: Tensors, *rest: Tensors) -> dict[str, Tensor]:
    """Apply `fn` name by name.

    Raises:
      ValueError: the arguments do not have the same names.
    """
    for other in rest:
        if other.keys() != first.keys():
            raise ValueError(f"names differ: {sorted(set(first) ^ set(other))}")
    return {name: fn(x, *(other[name] for other in rest)) for name, x in first.items()}


def add(a: Tensors, b: Tensors) -> dict[str, Tensor]:
    return map_tensors(torch.add, a, b)


def sub(a: Tensors, b: Tensors) -> dict[str, Tensor]:
    return map_tensors(torch.sub, a, b)


def scale(a: Tensors, by: float) -> dict[str, Tensor]:
    return map_tensors(lambda x: x * by, a)


def zeros_like(a: Tensors) -> dict[str, Tensor]:
    return map_tensors(torch.zeros_like, a)


def finite(a: Tensors) -> bool:
    """Whether no entry is NaN or infinite.

    A sum is finite only if its entries are. It may overflow; then each of them is looked at.
    """
    return all(isfinite(float(x.sum())) or bool(x.isfinite().all()) for x in pieces(a))


def count(rows: Tensors) -> int:
    """How many rows there are of each tensor, (n, ...)."""
    return len(next(iter(rows.values())))


def equal(a: Tensors, b: Tensors) -> bool:
    """Same names, dtypes, shapes and bits (NaN equals no NaN)."""
    return a.keys() == b.keys() and all(
        x.dtype == b[n].dtype and torch.equal(x, b[n]) for n, x in a.items()
    )


Layout = list[tuple[str, list[int], str]]
"""Name, shape and dtype of each tensor, in order, e.g. ("head.weight", [4, 16], "bfloat16")."""


def layout(a: Tensors) -> Layout:
    return [(name, list(x.shape), str(x.dtype).removeprefix("torch.")) for name, x in a.items()]


def numbers_in(groups: Mapping[str, Layout]) -> int:
    """How many numbers tensors of these layouts have together."""
    return sum(prod(shape) for group in groups.values() for _, shape, _ in group)


def zeros_of(expected: Layout) -> dict[str, Tensor]:
    """Zeros of a layout."""
    return {
        name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, shape, dtype in expected
    }


def move_to(a: Tensors, device: str) -> Tensors:
    """On a device. Where that is a GPU the host does not wait: it makes the next batch while this
    one is under way."""
    return a if device == "cpu" else {name: _move_tensor(x, device) for name, x in a.items()}


def _move_tensor(x: Tensor, device: str) -> Tensor:
    """What is repeated, as the channels of a grey picture may be, is sent once."""
    if x.device.type != "cpu":  # there already, as pictures are
        return x.to(device)
    once = x[
        tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.stride())
    ].contiguous()
    there = (
        once.pin_memory().to(device, non_blocking=True)
        if device.startswith("cuda")
        else once.to(device)
    )
    return there.expand(x.shape)


def bytes_moved(rows: Tensors, device: str) -> Tensors:
    """Rows whose columns of bytes (uint8), such as pictures, are on a device: they travel at a
    quarter of the size that they have as numbers, and are cropped and resized there."""
    return {
        **rows,
        **move_to({name: x for name, x in rows.items() if x.dtype is torch.uint8}, device),
    }


def take_prefix(prefix: str, a: Tensors) -> dict[str, Tensor]:
    """The tensors named `prefix/...`, without the prefix."""
    start = f"{prefix}/"
    return {n[len(start) :]: x for n, x in a.items() if n.startswith(start)}


def split_prefixes(a: Tensors) -> dict[str, Tensors]:
    """The tensors named `prefix/...` by their prefixes, without them."""
    prefixes = dict.fromkeys(name.partition("/")[0] for name in a)
    return {prefix: take_prefix(prefix, a) for prefix in prefixes}


def join_prefixes(groups: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """The inverse of `split_prefixes`."""
    joined: dict[str, Tensor] = {}
    for prefix, tensors in groups.items():
        joined |= add_prefix(prefix, tensors)
    return joined


def drop_prefixes(prefixes: tuple[str, ...], a: Tensors) -> dict[str, Tensor]:
    """The tensors under none of the prefixes."""
    starts = tuple(f"{prefix}/" for prefix in prefixes)
    return {n: x for n, x in a.items() if not n.startswith(starts)} if starts else dict(a)


def add_prefix(prefix: str, a: Tensors) -> dict[str, Tensor]:
    """The inverse of `take_prefix`."""
    return {f"{prefix}/{n}": x for n, x in a.items()}


def norm(a: Tensors) -> Tensor:
    """The Euclidean norm of all entries as one vector, in float64; infinite only where that cannot
    hold it."""
    length = _norm(pieces(a))
    if isfinite(length):
        return length
    # the squares of 1e155 are infinite, so the largest entry is taken out first
    peak = max(float(x.abs().max()) for x in pieces(a) if x.numel())
    return _norm([x.double() / peak for x in pieces(a)]) * peak if isfinite(peak) else length


def _norm(some: list[Tensor]) -> Tensor:
    if len(some) == 1:  # the same operations, without a call of torch for each
        length = float(torch.linalg.vector_norm(some[0], dtype=torch.float64))
        return torch.tensor(sqrt(length * length), dtype=torch.float64)
    return (
        torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64).cpu() for x in some])
        .square()
        .sum()
        .sqrt()
    )


def length(a: Tensors) -> float:
    """The norm, to a hundred-thousandth: enough to compare lengths, and a tenth of the time.

    A large vector in float32 is summed in rows of 256 as it is, and the rows in float64. Everything
    else is `norm`, and so is what is so short or so long that float32 may not hold its squares.
    """
    whole = vector(a)
    if whole is None or whole.dtype is not torch.float32 or whole.numel() < _LARGE:
        return float(norm(a))
    rest = whole.numel() % _ROW
    rows = whole[: whole.numel() - rest].view(-1, _ROW)
    parts = (torch.linalg.vector_norm(rows, dim=1), whole[len(whole) - rest :])
    found = hypot(*(float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in parts))
    return found if _SQUARES_HELD < found < inf else float(norm(a))


def vector(a: Tensors) -> Tensor | None:
    """All entries as one vector, where the tensors lie one after another in one, as those do that
    `Dense` decodes.

    A view: one operation on it is one on each tensor, without a call for each.
    """
    first = next(iter(a.values()), None)
    whole = None if first is None else first._base
    if first is None or whole is None or whole.ndim != 1 or not whole.is_contiguous():
        return None
    # Only if the tensors fill the base without a gap and in order is it their vector.
    begin = at = whole.storage_offset()
    for x in a.values():
        if (
            x._base is not whole
            or x.dtype is not whole.dtype
            or x.storage_offset() != at
            or not x.is_contiguous()
        ):
            return None
        at += x.numel()
    return whole if at == begin + whole.numel() else None


def pieces(a: Tensors) -> list[Tensor]:
    """All entries in as few tensors as hold them, where their names do not matter."""
    whole = vector(a)
    return list(a.values()) if whole is None else [whole]


def together(a: Tensors) -> dict[str, Tensor]:
    """A copy, in one vector where the tensors lie in one."""
    whole = vector(a)
    if whole is None:
        return map_tensors(Tensor.clone, a)
    parts = torch.split_with_sizes(whole.clone(), [x.numel() for x in a.values()])
    return {name: part.view(x.shape) for (name, x), part in zip(a.items(), parts, strict=True)}


SMALLEST = torch.finfo(torch.float32).tiny
"""The least number that float32 holds with all its bits."""


def shrink_factors(norms: Tensor, limit: float) -> Tensor:
    """What vectors of such norms are multiplied by so that none is longer than `limit`; 0 where a
    norm is not finite.

    Those that are longer end a millionth below the limit, so that rounding cannot carry them above
    it; all others are multiplied by exactly 1.
    """
    factor = torch.where(norms > limit, (1 - 1e-6) * limit / norms, 1.0)
    return torch.where(norms.isfinite(), factor, 0.0)


def clip_length(a: Tensors, limit: float) -> dict[str, Tensor]:
    """The tensors, as one vector no longer than `limit`; zero if they are not finite."""
    factor = float(shrink_factors(norm(a), limit))
    if not factor:
        return zeros_like(a)
    if factor < SMALLEST:  # float32 has but a few bits of it, too few to stay below the limit
        return map_tensors(lambda x: (x.double() * factor).to(x.dtype), a)
    return scale(a, factor)
