"""The works of the race that have no peers: W4 to W6."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import gpu, scale

OTHERS: Mapping[str, Callable[[], dict[str, Any]]] = {"W4": scale.memory, "W5": gpu.race, "W6": scale.server}
