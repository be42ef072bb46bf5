"""The works of the race that have no peers: W4 to W6."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import gpu, scale


@dataclass(frozen=True)
class Other:
    """A work and what it is."""

    told: str
    run: Callable[[], dict[str, Any]]


OTHERS: Mapping[str, Other] = {
    "W4": Other(
        "memory of a round of 10,000 clients, LoRA r=8 on a ViT-B/16 (`benchmarks.scale`)",
        scale.memory,
    ),
    "W5": Other(
        "ViT-B/16 and a Llama of 1 B parameters on a GPU, LoRA r=8 in bfloat16 (`benchmarks.gpu`)",
        gpu.race,
    ),
    "W6": Other(
        "1,000 updates of LoRA r=8 on a ViT-B/16 from files to their mean (`benchmarks.scale`)",
        scale.server,
    ),
}
