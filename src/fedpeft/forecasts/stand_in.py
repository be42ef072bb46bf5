"""A plan's site without its weights: the examples if they are here, and else some that stand in
for them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.compute.held_out import tells_classes
from fedpeft.core.interfaces import Data
from fedpeft.core.types import Batch, ClientId, Division, Examples
from fedpeft.data.client_data import EVALUATION_BATCH, Partitioned, lengths, set_apart
from fedpeft.data.divide import divide
from fedpeft.errors import DataError, FedpeftError, PlanError
from fedpeft.evaluation.own_held_out import hides_clients
from fedpeft.plan.calibration import calibrate_noise
from fedpeft.plan.plan import Plan
from fedpeft.rounds.site import Site, threads

PER_TOKEN = ("input_ids", "attention_mask", "labels")
"""The columns of a text that grow with its length."""


@dataclass(frozen=True)
class Holdings:
    """What the clients of a plan hold.

    Attributes:
      plan: with its noise calibrated.
      examples: as their source gives them; None where they are not here.
      why: why they are not here, in words.
      apart: what clients set apart for their algorithms.
    """

    plan: Plan
    data: Data
    classes: tuple[str, ...]
    examples: Examples | None = None
    why: str = ""
    apart: Data | None = None


@dataclass(frozen=True)
class RepeatedExample:
    """The same example for everybody, as often as a client has examples.

    Attributes:
      one: a batch of one example.
      sizes: by client its number of examples.
    """

    one: Batch
    sizes: Mapping[ClientId, int]

    @property
    def clients(self) -> Sequence[ClientId]:
        return list(self.sizes)

    def size(self, client: ClientId) -> int:
        return self.sizes[client]

    def batches(
        self,
        client: ClientId,
        size: int,
        epochs: int,
        generator: torch.Generator,
        by_length: bool = False,
    ) -> Iterator[Batch]:
        """The batches that a client's own data would give, all of one length."""
        for _ in range(epochs):
            yield from self._in_parts(self.sizes[client], size)

    def chosen(self, client: ClientId, places: Tensor, generator: torch.Generator) -> Batch:
        return self._times(len(places))

    def training(self, client: ClientId) -> Iterator[Batch]:
        yield from self._in_parts(self.sizes[client], EVALUATION_BATCH)

    def held_out(self, client: ClientId | None = None) -> Iterator[Batch]:
        """None are known."""
        return iter(())

    def _in_parts(self, number: int, size: int) -> Iterator[Batch]:
        for at in range(0, number, size):
            yield self._times(min(size, number - at))

    def _times(self, number: int) -> Batch:
        rows = {name: x.expand(number, *x.shape[1:]).clone() for name, x in self.one.items()}
        return {**rows, "mask": torch.ones(number)}


def find_holdings(plan: Plan, examples_each: int | None) -> Holdings:
    """The examples of a plan, if they can be read here, and else as many of the task's own example
    for each client as `examples_each` says.

    Raises:
      PlanError: the examples are not here, and nothing says how many there are, or of which
        classes; see also `calibrate_noise`.
    """
    if examples_each is None:
        try:
            return _read_holdings(plan)
        except (FedpeftError, OSError) as error:
            raise PlanError(
                f"{' '.join(str(error).split())}. To plan without the examples, say how many each "
                "client has: --examples 200"
            ) from None
    return _assumed_holdings(plan, examples_each)


def _read_holdings(plan: Plan) -> Holdings:
    examples = plan.examples()
    if plan.classes and plan.classes != examples.classes:
        raise DataError(
            f"the plan's classes are {list(plan.classes)}, the data's {list(examples.classes)}"
        )
    division = divide(plan.partition, examples, plan.seed)
    with threads(plan.compute.threads):
        train = plan.task.prepare(examples.train)
        none = {name: x[:0] for name, x in train.items()}
        test = plan.task.prepare(examples.test) if len(examples.test) else none
    if getattr(plan.local, "group_by_length", False):
        lengths(train)
    plan = calibrate_noise(plan, list(division.parts))
    parts, apart = _parts(plan, division)
    own = Partitioned(plan.task, train, {}, apart) if plan.sets_apart else None
    data = Partitioned(plan.task, train, test, parts, apart=division.apart, tested=division.tested)
    return Holdings(plan, data, examples.classes, examples, apart=own)


def _parts(plan: Plan, division: Division) -> tuple[Mapping[ClientId, Tensor], Any]:
    if not plan.sets_apart:
        return division.parts, {}
    return set_apart(division.parts, plan.sets_apart, plan.seed)


def _assumed_holdings(plan: Plan, each: int) -> Holdings:
    if each < 1:
        raise PlanError(f"--examples is a number of examples, at least 1, got {each}")
    names = plan.nodes.names or _numbered(plan)
    classes = plan.classes or _known_classes(plan)
    one = _example(plan.task)
    plan = calibrate_noise(plan, names)
    sizes = dict.fromkeys(sorted(names), max(1, each - int(plan.sets_apart * each)))
    data = RepeatedExample(one, sizes)
    apart = RepeatedExample(one, dict.fromkeys(sizes, max(1, int(plan.sets_apart * each))))
    why = f"{each} examples for each client are assumed (--examples)"
    return Holdings(plan, data, classes, None, why, apart if plan.sets_apart else None)


def _numbered(plan: Plan) -> tuple[ClientId, ...]:
    """Names of as many clients as the partition makes; without such a number, of the cohort."""
    number = int(getattr(plan.partition, "clients", 0)) or plan.cohort
    width = len(str(number - 1))
    return tuple(f"{k:0{width}}" for k in range(number))


def _known_classes(plan: Plan) -> tuple[str, ...]:
    """No classes, where a plan without data names none and its task needs none.

    Raises:
      PlanError: the task has classes, and nothing says which.
    """
    if tells_classes(plan.task):
        raise PlanError(
            "without the examples a plan must name its classes, on which the head's size depends: "
            """--set 'classes=["cat","dog"]'"""
        )
    return ()


def _example(task: Any) -> Batch:
    """One example of the task, a text as long as the task lets it be.

    Raises:
      PlanError: the task has none.
    """
    if not hasattr(task, "example"):
        raise PlanError(
            f"{type(task).__name__} has no example to stand in for yours: plan with the examples, "
            "and leave --examples out"
        )
    if hasattr(task, "longest_example"):
        one: Batch = task.longest_example()
        return {name: x[:1] for name, x in one.items()}
    one = task.example()
    longest = getattr(task, "max_length", 0)
    some = {name: x[:1] for name, x in one.items() if name != "mask"}
    if not longest:
        return some
    return {name: _lengthen(x, longest) if name in PER_TOKEN else x for name, x in some.items()}


def _lengthen(x: Tensor, longest: int) -> Tensor:
    return x.repeat(1, ceil(longest / x.shape[1]))[:, :longest]


def stand_in_site(holdings: Holdings, model: nn.Module, device: str = "cpu") -> Site:
    """A site with these examples and any model."""
    plan, data = holdings.plan, holdings.data
    return Site(plan, model, data, holdings.classes, device, apart=holdings.apart)


def measured_batches(plan: Plan, data: Data) -> Iterator[Batch]:
    """What a round is measured on: the common held-out examples, or, where there are none, those
    that clients hold out."""
    common = iter(data.held_out())
    first = next(common, None)
    if first is not None:
        yield from chain([first], common)
    elif not hides_clients(plan):
        for client in data.clients:
            yield from data.held_out(client)


def data_bytes(holdings: Holdings) -> int:
    """Bytes of all prepared examples, as one process of a simulation holds them."""
    data = holdings.data
    if isinstance(data, Partitioned):
        return sum(x.nbytes for rows in (data.train, data.test) for x in rows.values())
    each = sum(x.nbytes for x in data.one.values()) if isinstance(data, RepeatedExample) else 0
    return each * sum(data.size(client) for client in data.clients)


def largest_data_bytes(holdings: Holdings) -> int:
    """Bytes of the prepared examples of the client that has the most."""
    data = holdings.data
    most = max(data.size(client) for client in data.clients)
    number = sum(data.size(client) for client in data.clients)
    if isinstance(data, Partitioned):
        return sum(x.nbytes for x in data.train.values()) * most // max(1, number)
    return data_bytes(holdings) * most // max(1, number)
