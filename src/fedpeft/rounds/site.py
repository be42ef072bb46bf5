"""What one process holds of a federation: the plan, the data that lie here and the frozen base."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from fedpeft.adversaries.assignment import choose_adversaries, poison_rows
from fedpeft.compute.feature_cache import FeatureCache, keep, with_features
from fedpeft.compute.first_pass import notes_on
from fedpeft.compute.trainable import read
from fedpeft.core.interfaces import Data, Task
from fedpeft.core.tensors import move_to
from fedpeft.core.types import Batch, ClientId, Division, Examples, Table, Tensors, Update
from fedpeft.data.client_data import Partitioned, lengths, set_apart
from fedpeft.data.divide import divide
from fedpeft.errors import DataError
from fedpeft.plan.calibration import calibrate_noise
from fedpeft.plan.plan import Plan
from fedpeft.registry import describe
from fedpeft.rounds.prepare import TRIED, prepare_model, tune_heap

Onlooker: TypeAlias = Callable[[Examples, Task], None]
"""What is shown the examples of a site, and its task, once they are read."""


@dataclass(frozen=True)
class Site:
    """What one process holds: the frozen base, once, and the data of the clients that it may serve.

    Attributes:
      plan: with its noise calibrated, where it asks for some.
      model: with the method injected; nobody writes to it, the small tensors are swapped in for
        each call.
      classes: the label names, in the order of the head's outputs.
      kept: features that stand in for the frozen beginning of the model; `data` has them in its
        batches.
      apart: examples that clients do not train on but vote with, where the plan has a vote; of
        those who have some.
      records: what a client trains on as its source gave it, where the local training reads it.
      rebuild: makes the model again, with the same bits.
    """

    plan: Plan
    model: nn.Module
    data: Data
    classes: tuple[str, ...]
    device: str = "cpu"
    kept: FeatureCache = FeatureCache()
    apart: Data | None = None
    records: Callable[[ClientId], Table] | None = None
    rebuild: Callable[[], nn.Module] | None = None

    @property
    def task(self) -> Task:
        """The plan's, which goes on from features where a batch has them."""
        return with_features(self.plan.task, self.kept)

    @property
    def notes(self) -> list[str]:
        """Lines for the user: what of the model is new or left out, which features are kept, and
        what cannot be had of the result."""
        lines = [*notes_on(self.model), *([self.kept.note] if self.kept.note else [])]
        if layers := getattr(self.plan.method, "not_exported", ""):
            lines.append(
                f"the result of this method stays in fedpeft: transformers and peft do not know "
                f"{layers}, so that there will be nothing to export"
            )
        return lines

    def params(self) -> Tensors:
        """What the method trains, as it is before the first round."""
        return read(self.model, self.plan.method.names(self.model))

    def count_own_held_out(self, client: ClientId) -> int:
        """How many held-out examples of its own a client has here."""
        return self.data.own_size(client) if isinstance(self.data, Partitioned) else 0

    def sent(self, update: Update) -> Update:
        """What leaves its client, who may be an attacker of a simulation."""
        for attack in self.plan.attacks:
            if update.client in choose_adversaries(attack, self.plan.seed, self.data.clients):
                update = attack.send(update)
        return update

    def on_device(self, batch: Batch) -> Batch:
        return move_to(batch, self.device)


def open_site(plan: Plan, device: str = "cpu", look: Onlooker | None = None) -> Site:
    """Load the data and the base model of a plan.

    Args:
      look: shown the examples as they were read, before anything is made of them.

    Raises:
      DataError, PlanError: what is wrong with them.
    """
    examples = plan.examples()
    if look is not None:
        look(examples, plan.task)
    if plan.classes and plan.classes != examples.classes:
        raise DataError(
            f"the plan's classes are {list(plan.classes)}, the data's {list(examples.classes)}"
        )
    division = divide(plan.partition, examples, plan.seed)
    return site_of(plan, examples, division, device)


def site_of(plan: Plan, examples: Examples, division: Division, device: str = "cpu") -> Site:
    """A site with these examples, whatever the plan's data are.

    Raises:
      DataError, PlanError: what is wrong with them.
    """
    task = plan.task
    tune_heap(plan)
    with threads(plan.compute.threads):  # a task may compute here what it keeps
        train = task.prepare(examples.train)
        none = {name: x[:0] for name, x in train.items()}
        test = task.prepare(examples.test) if len(examples.test) else none
    train = poison_rows(plan.attacks, plan.seed, train, division.parts, len(examples.classes))
    # Only for its error: what has no length is told here, before a model is loaded.
    if getattr(plan.local, "group_by_length", False):
        lengths(train)
    plan = calibrate_noise(plan, list(division.parts))
    with threads(plan.compute.threads):
        # so few that what holds them does not hold the data
        tried = {name: x[:TRIED].clone() for name, x in train.items()}

        def rebuild() -> nn.Module:
            return prepare_model(plan, examples.classes, tried, device)

        model = rebuild()
    kept = _kept(plan, device, model, train, test, len(division.parts))
    train, test = kept.beside(train, test)
    task, parts, apart = with_features(task, kept), division.parts, None
    notes = {**division.notes, **examples.train.notes}
    if plan.sets_apart:
        parts, own = set_apart(parts, plan.sets_apart, plan.seed)
        apart = Partitioned(task, train, {}, own, device=device)
        notes = {**notes, "set_apart": sum(map(len, own.values()))}
    data = Partitioned(task, train, test, parts, notes, device, division.apart, division.tested)
    reads = getattr(plan.local, "reads_records", False)
    records = (lambda client: examples.train.take(parts[client])) if reads else None
    return Site(plan, model, data, examples.classes, device, kept, apart, records, rebuild)


def _kept(
    plan: Plan, device: str, model: nn.Module, train: Tensors, test: Tensors, clients: int
) -> FeatureCache:
    """Features, where they are wanted and each example is seen twice or more on average."""
    changed = getattr(plan.local, "augments", ())  # inputs differ then from step to step
    whole = getattr(plan.local, "reads_records", False)  # training reads no prepared rows
    if not plan.compute.features or plan.local.precision != "float32" or changed or whole:
        return FeatureCache()
    if plan.rounds * min(plan.cohort, clients) * plan.local.passes < 2 * clients:
        return FeatureCache()
    # What the bits of features depend on beside their model and rows: it names the file that keeps
    # them.
    numbers = [
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        plan.compute.threads,
        plan.compute.base_dtype,
        plan.compute.pack,
        device,
    ]
    setting = json.dumps([describe("task", plan.task), *numbers], default=str, sort_keys=True)
    with threads(plan.compute.threads):
        return keep(plan.task, model, plan.method.names(model), train, test, setting)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes with `count` threads inside: sums, and so bits, depend on it."""
    before = torch.get_num_threads()
    if before == count:  # to set it again costs a small client a tenth of its time
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
