"""What a step costs, told without taking it: operations and live memory, on the meta device."""

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fedpeft.compute.device_memory import REUSED

_VALUES = frozenset(
    [
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.item.default,
        torch.ops.aten.is_nonzero.default,
    ]
)
"""What asks a tensor for its value; in inference mode it comes as it was called."""
_CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"
"""By which `transformers` leaves out checks of values, such as that a text has a place for each
number of its picture: shapes alone would always fail them."""
SLACK = 2.0
"""Resident over live bytes of blocks that the allocator keeps: blocks that were freed stay, and
those that are asked for next are of other sizes."""
_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@contextmanager
def _values_unchecked() -> Iterator[None]:
    """`transformers` takes values as they come inside, and checks them again outside."""
    before = os.environ.get(_CHECKS)
    os.environ[_CHECKS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_CHECKS)
        if before is not None:
            os.environ[_CHECKS] = before


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations make while it is on, and how many were alive
    at once.

    Where a model asks for the value of a tensor that has none, it learns that masks have holes,
    and that counts are 1.

    Args:
      reused: the allocator gives blocks of this size or more back to the system when they are
        freed, and keeps smaller ones (`device_memory`).

    Attributes:
      now, peak: bytes; what was there before is not counted.
      resident_now, resident: the same as a process holds them. A block that the allocator keeps
        counts SLACK times, and one that it gives back once.
    """

    def __init__(self, reused: int = REUSED) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.resident_now = self.resident = 0
        self._reused = reused
        self._held: set[int] = set()
        self._outside: list[Any] = []

    def __enter__(self) -> Any:
        unchecked = _values_unchecked()
        unchecked.__enter__()
        self._outside.append(unchecked)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self._outside.pop().__exit__(None, None, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _VALUES and args[0].is_meta:
            return False if args[0].dtype == torch.bool else 1
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._note(x)
        return out

    def _note(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        self._held.add(key)
        size = storage.nbytes()
        self.now += size
        self.resident_now += self._held_of(size)
        self.peak = max(self.peak, self.now)
        self.resident = max(self.resident, self.resident_now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.now -= size
        self.resident_now -= self._held_of(size)

    def _held_of(self, size: int) -> int:
        return size if size >= self._reused else int(SLACK * size)


class FusedAttention(TorchFunctionMode):
    """Attention as processors compute it, whose scores are never whole in memory; on the meta
    device PyTorch would take the plain products."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            try:
                return _fused(*args, **kwargs)
            except (RuntimeError, TypeError, NotImplementedError):
                pass  # a form that the fused kernel does not take is computed by the products
        return func(*args, **kwargs)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if dropout_p or query.ndim != 4 or (enable_gqa and query.shape[1] != key.shape[1]):
        raise NotImplementedError
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    out: Tensor = _FUSED(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[
        0
    ]
    return out


@dataclass(frozen=True)
class Untold:
    """Stands in for the flop counter's tracker of modules, whose hooks not every gradient bears."""

    parents: frozenset[str] = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True)
class Cost:
    """What some work costs.

    Attributes:
      flop: floating-point operations of its products, two for a multiplication with an addition.
      peak: the bytes that live at once beside what was there before.
      resident: the bytes that a process holds for them, see `Live`.
    """

    flop: int
    peak: int
    resident: int


def cost_of(work: Callable[[], object], fused: bool = True, reused: int = REUSED) -> Cost:
    """The cost of work on meta tensors, which is done twice: once for the operations, whose count
    needs attention as plain products, and once for the memory.

    Args:
      fused: whether attention is computed by the fused kernel.
      reused: see `Live`.
    """
    counter: Any = FlopCounterMode(display=False)
    counter.mod_tracker = Untold()
    with counter, Live():
        work()
    live = Live(reused)
    with FusedAttention() if fused else nullcontext(), live:
        kept = work()
    del kept
    return Cost(int(counter.get_total_flops()), live.peak, live.resident)
