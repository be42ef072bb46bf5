"""How much memory a plan's processes need, part by part."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fedpeft.compute.device_memory import available
from fedpeft.compute.frozen_linear import gains_by_packing
from fedpeft.core.facts import Fact
from fedpeft.core.types import Tensors
from fedpeft.engines.vectorized.engine import HELD, MOST, room
from fedpeft.engines.vectorized.stacks import PEAK, SHARE
from fedpeft.forecasts.costs import Training, frozen_linear_bytes, weight_bytes
from fedpeft.forecasts.step_cost import SLACK
from fedpeft.plan.plan import Plan

LIBRARIES = 500 * 2**20
"""What Python, PyTorch and transformers take, where it cannot be read off."""
KERNELS = 60 * 2**20
"""What the first products bring in: pages of code, and room that kernels keep for themselves."""
FOUR_BITS = (4 + 32 / 64) / 32
"""A weight in four bits with its share of a scale, over one in float32."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of one process, by what they are for."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def resident() -> int:
    """Bytes that this process has in memory now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):  # no Linux
        return LIBRARIES
    return pages * 4096


@dataclass(frozen=True)
class Requirements:
    """What the memory of a plan's processes follows from.

    Attributes:
      libraries: resident with all that a run imports.
      data: bytes of the prepared examples of all clients; the shares of the largest client's too.
      params: what is trained.
    """

    plan: Plan
    model: nn.Module
    params: Tensors
    training: Training
    libraries: int
    data: int
    own_data: int

    @property
    def trained(self) -> int:
        return sum(x.nbytes for x in self.params.values())

    def simulation(self) -> MemoryNeed:
        """One process that has all clients: with "processes", each of the workers."""
        together = self._together()
        parts = {
            "libraries": self.libraries,
            "examples": self.data,
            **self._base(),
            "trained tensors": self._server_copies() + HELD * self.trained * together,
            "kernels": KERNELS,
        }
        step, evaluation = self._step(together), self.training.evaluation.resident
        name = "evaluation" if evaluation > step else f"a step of {_clients(together)}"
        return MemoryNeed({**parts, name: max(step, evaluation)})

    def client(self) -> MemoryNeed:
        """The process of one owner."""
        return MemoryNeed(
            {
                "libraries": self.libraries,
                "examples": self.own_data,
                **self._base(),
                "trained tensors": HELD * self.trained,
                "kernels": KERNELS,
                "a step": self._step(1),
            }
        )

    def server(self) -> MemoryNeed:
        """The process of a server whose clients are elsewhere."""
        weights = weight_bytes(self.model)
        return MemoryNeed(
            {
                "libraries": self.libraries,
                "weights": weights,
                "trained tensors": self._server_copies(),
            }
        )

    def _step(self, together: int) -> int:
        """A stack has larger blocks than the one client whose blocks are known, so that it counts
        as if the allocator kept all of them."""
        if together == 1:
            return self.training.step_resident
        return int(SLACK * self.training.step_peak * together)

    def _base(self) -> dict[str, int]:
        """The weights, and their copies for the kernels: one for the way to the loss, and one for
        the way back where a gradient passes."""
        weights, linear = weight_bytes(self.model), frozen_linear_bytes(self.model)
        if getattr(self.plan.task, "quantize", None):
            return {"weights": int(weights - linear + linear * FOUR_BITS)}
        compute = self.plan.compute
        if not (compute.pack and linear and gains_by_packing(compute.base_dtype)):
            return {"weights": weights}
        copies = 2 if compute.base_dtype == "float32" else 1
        return {"weights": weights, "weights laid out for the kernels": copies * linear}

    def _server_copies(self) -> int:
        """The state before and after, the server optimizer's moments, a sum, and the updates: one
        at a time, or all where they are compared."""
        moments = sum(x.nbytes for x in self.plan.server.init(self.params).values())
        offered: frozenset[Fact] = getattr(self.plan.aggregator, "offers", frozenset())
        updates = self.plan.cohort if Fact.COMPARES in offered else 1
        return (3 + updates) * self.trained + 2 * moments

    def _together(self) -> int:
        """How many clients the engine "cohort" trains in one stack; 1 with all others."""
        plan, training = self.plan, self.training
        if plan.engine != "cohort" or plan.local.event or plan.changes:
            return 1
        free = available("cpu")
        filled = 2 ** (max(1, training.batch) - 1).bit_length() / max(1, training.batch)
        each = PEAK * training.step_peak / 2 * filled + 3 * HELD / 2 * self.trained
        fit = max(1, int(SHARE * free / max(1.0, each)))
        return min(plan.cohort, MOST, room(self.params, free), fit)


def _clients(number: int) -> str:
    return "one client" if number == 1 else f"{number} clients"
