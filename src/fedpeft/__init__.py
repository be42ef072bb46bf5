"""Fine-tune a foundation model on data that cannot leave its owners, for kilobytes per owner."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpeft.compute.scores import evaluate
    from fedpeft.engines.inprocess import InProcess
    from fedpeft.engines.processes import Processes
    from fedpeft.engines.vectorized.engine import Cohort
    from fedpeft.errors import DataError, FedpeftError, PlanError, RunError, WireError
    from fedpeft.plan.plan import Plan
    from fedpeft.plan.reading import read_plan
    from fedpeft.rounds.client import Worker
    from fedpeft.rounds.loop import Ledger, federate, start
    from fedpeft.rounds.site import Site, open_site
    from fedpeft.storage.client_memory import Folder

__all__ = [
    "Cohort",
    "DataError",
    "FedpeftError",
    "Folder",
    "InProcess",
    "Ledger",
    "Plan",
    "PlanError",
    "Processes",
    "RunError",
    "Site",
    "WireError",
    "Worker",
    "evaluate",
    "federate",
    "open_site",
    "read_plan",
    "start",
]
__version__ = "0.1.0"

_HOMES = {
    "rounds.client": ("Worker",),
    "compute.scores": ("evaluate",),
    "storage.client_memory": ("Folder",),
    "engines.vectorized.engine": ("Cohort",),
    "engines.inprocess": ("InProcess",),
    "engines.processes": ("Processes",),
    "errors": ("DataError", "FedpeftError", "PlanError", "RunError", "WireError"),
    "rounds.loop": ("Ledger", "federate", "start"),
    "plan.plan": ("Plan",),
    "plan.reading": ("read_plan",),
    "rounds.site": ("Site", "open_site"),
}


def __getattr__(name: str) -> Any:
    """Each name is imported when it is first asked for: `fedpeft --help` need not wait for
    torch."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"fedpeft.{module}"), name)
    raise AttributeError(f"module 'fedpeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
