"""How much memory can be had, as the system's files tell it, and how many clients it has room
for."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fedpeft.compute.device_memory import available
from fedpeft.engines.vectorized.engine import MOST, room

MIB = 2**20
SECOND: Mapping[str, int | str] = {
    "memory.max": 512,
    "memory.current": 500,
    "memory.stat": "anon {0}\ninactive_file {1}\nactive_file 0\n",
}
FIRST: Mapping[str, int | str] = {
    "memory/memory.limit_in_bytes": 512,
    "memory/memory.usage_in_bytes": 500,
    "memory/memory.stat": "cache 7\ninactive_file 7\ntotal_inactive_file {1}\n",
}


def system(root: Path, group: Mapping[str, int | str], free: int = 4096) -> Path:
    """The files of a system with so many MiB free; of 500 MiB that a container uses, 460 are cached
    files."""
    files = {f"sys/fs/cgroup/{name}": value for name, value in group.items()}
    for name, value in {
        "proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {free * 1024} kB\nPages: 0\n",
        **files,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        told = value.format(40 * MIB, 460 * MIB) if isinstance(value, str) else str(value * MIB)
        (root / name).write_text(told + "\n")
    return root


@pytest.mark.parametrize("group", [FIRST, SECOND], ids=["version 1", "version 2"])
def test_a_containers_cached_files_can_be_had(
    tmp_path: Path, group: Mapping[str, int | str]
) -> None:
    assert available("cpu", system(tmp_path, group)) == 472 * MIB
    assert available("cpu", system(tmp_path, group, free=100)) == 100 * MIB
    full = {name: 20 if value == 512 else value for name, value in group.items()}
    assert available("cpu", system(tmp_path, full)) == 0
    silent = {
        name: "nothing 0" if isinstance(value, str) else value for name, value in group.items()
    }
    assert available("cpu", system(tmp_path, silent)) == 12 * MIB


@pytest.mark.parametrize(
    "group", [{}, {**SECOND, "memory.max": "max"}, {**FIRST, "memory/memory.limit_in_bytes": 2**43}]
)
def test_without_a_limit_it_is_what_the_machine_has(
    tmp_path: Path, group: Mapping[str, int | str]
) -> None:
    assert available("cpu", system(tmp_path, group)) == 4096 * MIB


def test_as_many_clients_are_opened_as_a_quarter_of_it_holds_ten_times(tmp_path: Path) -> None:
    free = available("cpu", system(tmp_path, SECOND))
    start = {"weight": torch.zeros(MIB // 4), "bias": torch.zeros(MIB // 4)}
    assert room(start, free) == 472 // 4 // (10 * 2) == 5
    assert room(start, 0) == 1 and room({}, free) == room(start, 2**50) == MOST
