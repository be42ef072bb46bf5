"""Fine-tune a foundation model on data that cannot leave its owners, for kilobytes per owner."""

from fedpeft.client import Site, Worker, open_site
from fedpeft.core.objective import evaluate
from fedpeft.core.stores import Folder
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.processes import Processes
from fedpeft.errors import DataError, FedpeftError, PlanError, RunError, WireError
from fedpeft.loop import Ledger, federate, start
from fedpeft.plan import Plan, read_plan

__all__ = [
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
