"""What figures are measured on: the processor, how fast it multiplies, and whether it is quiet."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from fedpeft.compute.frozen_linear import Packed, can_pack

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")
"""Of a processor's flags those on which the speed of products depends."""
SIDE, TURNS = 512, 7
"""Rows, inputs and outputs of the product that is timed, and how often."""
BUSY = 0.3
"""Load by core from which a machine is not quiet."""
UNEVEN = 0.15
"""How much longer than the shortest the median of equal products may take on a quiet machine."""


def machine(threads: int) -> dict[str, Any]:
    """Name what the figures were measured on."""
    told = _cpuinfo()
    names = [value for key, value in told if key == "model name"]
    first = {key: value for key, value in reversed(told)}
    flags = first.get("flags", "").split()
    return {
        "cpu": names[0] if names else platform.processor(),
        "family": first.get("cpu family", ""),
        "model": first.get("model", ""),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": len(names) or None,
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "fedpeft")},
    }


def _cpuinfo() -> list[tuple[str, str]]:
    """The lines of the system's description of its processors, as keys and values."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    parted = (line.partition(":") for line in lines if ":" in line)
    return [(key.strip(), value.strip()) for key, _, value in parted]


def measure_products(cores: int) -> dict[str, dict[str, int]]:
    """10^9 operations a second of products, by kind on one thread and on all cores.

    A kind that the processor or PyTorch does not have is left out.
    """
    before = torch.get_num_threads()
    found: dict[str, dict[str, int]] = {}
    try:
        for threads in dict.fromkeys((1, cores)):
            torch.set_num_threads(threads)
            for kind, product in _products():
                rate = 2 * SIDE**3 / min(_seconds(product)) / 1e9
                found.setdefault(kind, {})[f"{threads} threads"] = round(rate)
    finally:
        torch.set_num_threads(before)
    return found


def _products() -> Iterator[tuple[str, Callable[[], Any]]]:
    x, weight = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    yield "plain", lambda: linear(x, weight)
    for dtype, kind in ((torch.float32, "laid out"), (torch.bfloat16, "laid out, bfloat16")):
        if can_pack(str(dtype).removeprefix("torch.")):
            yield kind, _laid_out(x, weight, dtype)
    yield "plain, bfloat16", lambda: linear(x.bfloat16(), weight.bfloat16())
    whole = torch.randint(-100, 100, (SIDE, SIDE), dtype=torch.int8)
    yield "int8", lambda: torch._int_mm(whole, whole)


def _laid_out(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    packed = Packed(weight, None, dtype, kernels=True)
    return lambda: packed(x)


def _seconds(product: Callable[[], Any]) -> list[float]:
    """How long each of some equal products takes; fewer where one takes long."""
    product()
    found: list[float] = []
    while len(found) < TURNS and sum(found) < 2:
        begin = time.perf_counter()
        product()
        found.append(time.perf_counter() - begin)
    return found


def measure_quiet() -> dict[str, float]:
    """The load of a core, and how much longer than the shortest one equal products take."""
    x = torch.randn(SIDE, SIDE)
    took = [second for _ in range(3) for second in _seconds(lambda: x @ x)]
    return {
        "load": round(os.getloadavg()[0] / (os.cpu_count() or 1), 2),
        "spread": round(statistics.median(took) / min(took) - 1, 2),
    }


def say_noise(quiet: Mapping[str, float]) -> str:
    """Why a machine is not quiet enough for figures that are kept; empty where it is."""
    if quiet["load"] > BUSY:
        return f"other processes load each core by {quiet['load']}; at most {BUSY} is quiet"
    if quiet["spread"] > UNEVEN:
        return f"equal products differ by {quiet['spread']:.0%}; at most {UNEVEN:.0%} is quiet"
    return ""
