"""What the bits of a result depend on beside the plan: libraries, threads and the processor."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch.nn import Module

from fedpeft import __version__
from fedpeft.compute.device_memory import available
from fedpeft.compute.frozen_linear import gains_by_packing
from fedpeft.plan.plan import Plan

WHOLE_COPIES = 3
"""What comparing with full fine-tuning holds of a model: itself, its tensors and a message."""

LIBRARIES = ("torch", "transformers", "peft")


def environment(plan: Plan, device: str) -> dict[str, Any]:
    """Versions, `threads` of a worker, device, processor and how frozen weights are multiplied, as
    plain values."""
    versions = {"python": platform.python_version(), "fedpeft": __version__}
    coded = getattr(plan.task, "quantize", None) == "nf4"
    for name in (*LIBRARIES, *(["bitsandbytes"] if coded else [])):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    packed = (
        "packed"
        if plan.compute.pack and device == "cpu" and gains_by_packing(plan.compute.base_dtype)
        else "plain"
    )
    base = f"{plan.compute.base_dtype}, {packed}"
    return {
        "versions": versions,
        "threads": plan.compute.threads,
        "device": device,
        "cpu": name_processor(),
        "base": base,
    }


def name_processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def compare_environments(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed, each as "torch 2.12.0 then, 2.13.0 now"."""
    before, after = _flat(then), _flat(now)
    return [
        f"{key} {before[key]} then, {after[key]} now"
        for key in after
        if before.get(key, after[key]) != after[key]
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **values.get("versions", {}),
        **{key: x for key, x in values.items() if key != "versions"},
    }


def check_whole_fits(model: Module) -> None:
    """Raises MemoryError where the whole model in float32 and its message may not fit in: a system
    ends what takes more than there is, and the run with it."""
    needed = WHOLE_COPIES * 4 * sum(x.numel() for x in model.parameters())
    free = available("cpu")
    if needed > free:
        raise MemoryError(
            f"the whole model and its message take {needed / 1e9:.1f} GB in float32, and "
            f"{free / 1e9:.1f} GB are free"
        )
