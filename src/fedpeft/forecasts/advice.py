"""What of a plan will not fit, and what to change."""

from collections.abc import Iterator
from dataclasses import dataclass

from fedpeft.core.units import duration, size
from fedpeft.forecasts.forecast import Forecast
from fedpeft.forecasts.links import Link

SLOW_ROUND = 600.0
"""Seconds on a client's link in one round from which the codec is worth a thought."""
HEAVY = 0.25
"""The share of the base's numbers that are trained from which a method with fewer is named."""


@dataclass(frozen=True)
class Concern:
    """Something that will not go well, and what to do."""

    what: str
    remedy: str


def warn(found: Forecast, link: Link | None = None) -> Iterator[Concern]:
    """What does not fit this machine, the link, or the clients that there are."""
    plan = found.plan
    if plan.cohort > found.clients:
        yield Concern(
            f"cohort = {plan.cohort} is more than the {found.clients} clients that there are",
            f"all take part; set cohort = {found.clients} to say so",
        )
    yield from _memory(found)
    if link is not None:
        yield from _link(found, link)


def _memory(found: Forecast) -> Iterator[Concern]:
    plan = found.plan
    for who, memory in found.memory.items():
        if who == "simulation" and plan.engine == "flower":
            continue
        if memory.total <= found.free:
            continue
        largest = max(memory.parts, key=lambda name: memory.parts[name])
        yield Concern(
            f"{who}: about {size(memory.total)} of memory are needed, most of it for "
            f"{largest} ({size(memory.parts[largest])}), and {size(found.free)} are free here",
            _remedy(found, largest),
        )


def _remedy(found: Forecast, largest: str) -> str:
    """What makes the largest part smaller."""
    plan = found.plan
    if largest.startswith("a step"):
        if plan.engine == "cohort":
            return 'set engine = "inprocess", or a lower cohort or local.batch_size'
        return 'set a lower local.batch_size, or local.precision = "bfloat16"'
    if largest.startswith("weights"):
        return (
            'set compute.pack = false (slower), task.quantize = "nf4" for a language model, or '
            "name a smaller base"
        )
    if largest == "trained tensors":
        return 'set a method that trains less, such as "lora", or an aggregator that adds up'
    if largest == "examples":
        return "set data.subset, or give each owner a machine of its own"
    return "use a machine with more memory"


def _link(found: Forecast, link: Link) -> Iterator[Concern]:
    seconds = link.seconds(found.traffic.mean(0) + found.traffic.mean(1))
    if seconds < SLOW_ROUND:
        return
    if found.base.trained > HEAVY * found.base.parameters:
        remedy = 'set a method that trains less, such as "lora"'
    else:
        remedy = 'set uplink and downlink to a codec that sends less, such as "int8"'
    yield Concern(f"a client's link is busy for {duration(seconds)} in each round", remedy)
