"""Who holds what under a plan: of a run, and before there is one."""

from typing import Any

from fedpeft.core.seeds import generator
from fedpeft.core.types import Table
from fedpeft.data.partitioned import Partitioned
from fedpeft.data.report import check_division, partition_report
from fedpeft.plan import Plan
from fedpeft.site import Site


def division_of(plan: Plan) -> dict[str, Any]:
    """The report of a plan's partition; the model is not loaded.

    Raises:
      DataError: the data cannot be read, or not be divided as the plan says.
    """
    examples = plan.data.load()
    division = plan.partition.split(examples.train, generator(plan.seed, "partition"))
    check_division(division, examples.train, examples.classes)
    return partition_report(examples.train, examples.classes, division.parts, division.notes)


def division_at(site: Site) -> dict[str, Any]:
    """The same report, of data that are loaded already."""
    data = site.data
    if not isinstance(data, Partitioned):
        return {"fingerprint": None, "clients": len(data.clients), "size": {c: data.size(c) for c in data.clients}}
    return partition_report(Table(data.train), site.classes, data.parts, data.notes)
