"""The examples that each client holds under a plan: in a run, and before there is one."""

from typing import Any
from zlib import crc32

import torch

from fedpeft.compute.feature_cache import FEATURES
from fedpeft.core.types import Table
from fedpeft.data.client_data import Partitioned
from fedpeft.data.divide import divide
from fedpeft.data.report import partition_report
from fedpeft.plan.plan import Plan
from fedpeft.rounds.site import Site


def division_of(plan: Plan) -> dict[str, Any]:
    """The report of a plan's partition; the model is not loaded.

    Raises:
      DataError: the data cannot be read, or not be divided as the plan says.
    """
    examples = plan.examples()
    division = divide(plan.partition, examples, plan.seed)
    return partition_report(
        examples.train,
        examples.classes,
        division.parts,
        division.notes,
        sum(map(len, division.apart.values())),
    )


def division_at(site: Site) -> dict[str, Any]:
    """The same report, of data that are loaded already."""
    data = site.data
    if not isinstance(data, Partitioned):
        return {
            "fingerprint": None,
            "clients": len(data.clients),
            "size": {c: data.size(c) for c in data.clients},
        }
    apart = sum(map(len, data.apart.values()))
    report = partition_report(Table(data.train), site.classes, data.parts, data.notes, apart)
    return {**report, "contents": contents(data)}


def contents(data: Partitioned) -> str:
    """A name for what the examples are, as the task has prepared them: CRC-32, which is against
    accidents."""
    check = 0
    for rows in (data.train, data.test):
        for name, x in rows.items():
            # They come of the others, and their last bits depend on the machine.
            if name != FEATURES:
                # The type and the shape too, since equal bytes may be other numbers.
                check = crc32(f"{name} {x.dtype} {tuple(x.shape)}".encode(), check)
                check = crc32(x.contiguous().reshape(-1).view(torch.uint8).numpy().data, check)
    return f"{check:08x}"
