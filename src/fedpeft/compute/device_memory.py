"""How much memory there is, and how much a pass through a model keeps for the backward pass."""

import os
from ctypes import CDLL
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpeft.core.interfaces import LossFn
from fedpeft.core.seeds import seed_torch
from fedpeft.core.types import Batch, Tensors

GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Of both versions of control groups: a container's limit, what it uses, and what of that is cache
to be given up."""
MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
GIVEN_BACK = 2**17
REUSED = 2**25 - 2**16  # bytes; glibc learns up to 32 MiB


def reuse_freed() -> None:
    """Let glibc keep freed blocks below 32 MiB for the next step, which asks for the same sizes
    again.

    It gives blocks above a threshold back to the system at once, and learns the threshold from the
    largest that it has seen freed (mallopt(3), M_MMAP_THRESHOLD). So each step would fault in its
    largest tensors page by page. The block freed here is never written to, and so costs nothing;
    other allocators take no notice.
    """
    torch.empty(REUSED, dtype=torch.uint8)


def give_back_freed() -> None:
    """Let glibc give freed blocks of 128 KiB or more back to the system at once, which is where its
    threshold begins; for this process, and for good.

    Small tensors that a step keeps come to lie between large ones that it lets go, and the heap
    grows by what cannot be joined again: by half a GB in a step of 256 tokens that keeps 24 MB. To
    fault in a block again costs less than a hundredth of the product that fills it. Where there is
    no such function (no glibc), nothing is done.
    """
    tune = getattr(CDLL(None), "mallopt", None)
    if tune is not None:
        tune(MMAP_THRESHOLD, GIVEN_BACK)


def available(device: str, root: Path = Path("/")) -> int:
    """Bytes that can be had now; cached files count as free. `root` is where the system's own files
    begin."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0] + _reserved_bytes(device)
    try:
        free = int(_table(root / "proc/meminfo")["MemAvailable:"]) * 1024
    except (OSError, KeyError, ValueError):  # no Linux: half of what the machine has
        free = (
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
            if hasattr(os, "sysconf")
            else 2**31
        )
    return int(min(free, *(_left(root / "sys/fs/cgroup", *names) for names in GROUPS)))


def _left(group: Path, limit: str, used: str, stat: str, cache: str) -> float:
    """Of a container's limit; infinity without a container, or a limit."""
    try:
        most, now = (int((group / name).read_text()) for name in (limit, used))
    except (OSError, ValueError):
        return float("inf")
    try:
        cached = int(_table(group / stat)[cache])
    except (OSError, KeyError, ValueError):
        cached = 0
    return max(0, most - max(0, now - cached))


def _table(path: Path) -> dict[str, str]:
    """The first two words of each line."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: words[1] for words in lines if len(words) > 1}


def _reserved_bytes(device: str) -> int:
    """What torch holds of a GPU and does not use."""
    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def measure_activations(losses: LossFn, model: nn.Module, params: Tensors, batch: Batch) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside the model and what is
    trained."""
    own = (*model.parameters(), *model.buffers(), *params.values(), *batch.values())
    known = {x.untyped_storage().data_ptr() for x in own}
    sizes: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    leaves = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in params.items()}
    with (
        seed_torch(0),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(note, lambda x: x),
    ):
        losses(leaves, batch)
    return sum(sizes.values())


def out_of_memory(error: BaseException) -> bool:
    """Whether there was no room; torch tells it of the CPU in words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
