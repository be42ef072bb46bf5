"""A client's side of a round. Every engine runs this, so simulation and deployment share it to the byte."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from math import isfinite

import torch
from torch import nn

from fedpeft.core.interfaces import Data, Store
from fedpeft.core.objective import Objective
from fedpeft.core.seeds import fold, generator, seeded
from fedpeft.core.stores import StoreError, storing
from fedpeft.core.tensors import finite, prefixed, under
from fedpeft.core.trainable import read
from fedpeft.core.types import Batch, Context, Failure, Job, Reply, Tensors, Update, Weighted
from fedpeft.core.wire import pack
from fedpeft.data.partitioned import Partitioned
from fedpeft.data.report import check_division
from fedpeft.errors import DataError, PlanError, RunError
from fedpeft.plan import Plan
from fedpeft.privacy import settled


@dataclass(frozen=True)
class Site:
    """What one process holds: the frozen base, once, and the data of the clients that it may serve.

    Attributes:
      plan: with its noise calibrated, where it asks for some.
      model: with the method injected; nobody writes to it, the small tensors are swapped in for each call.
      classes: the label names, in the order of the head's outputs.
    """

    plan: Plan
    model: nn.Module
    data: Data
    classes: tuple[str, ...]
    device: str = "cpu"

    def params(self) -> Tensors:
        """What the method trains, as it is before the first round."""
        return read(self.model, self.plan.method.names(self.model))

    def on_device(self, batch: Batch) -> Batch:
        return batch if self.device == "cpu" else {n: x.to(self.device) for n, x in batch.items()}


def open_site(plan: Plan, device: str = "cpu") -> Site:
    """Load the data and the base model of a plan.

    Raises:
      DataError, PlanError: what is wrong with them.
    """
    examples = plan.data.load()
    if plan.classes and plan.classes != examples.classes:
        raise DataError(f"the plan's classes are {list(plan.classes)}, the data's {list(examples.classes)}")
    division = plan.partition.split(examples.train, generator(plan.seed, "partition"))
    check_division(division, examples.train.columns["label"], examples.classes)
    task = plan.task
    train, test = task.prepare(examples.train), task.prepare(examples.test)
    data = Partitioned(task, train, test, division.parts, division.notes)
    plan = settled(plan, data.clients)
    model = plan.model(examples.classes).to(device)
    return Site(plan, model, data, examples.classes, device)


@dataclass(frozen=True)
class Worker:
    """Serves one job at a time. A job leaves no trace but the client's own memory."""

    site: Site
    store: Store
    objective: Objective = field(init=False)
    decode: Callable[[bytes], Tensors] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        plan = self.site.plan
        object.__setattr__(self, "objective", Objective(self.site.model, plan.task, plan.local.precision))
        # the clients of a round receive the same bytes, and nobody writes to what they hold
        object.__setattr__(self, "decode", lru_cache(maxsize=1)(plan.downlink.decode))

    def __call__(self, job: Job) -> Reply | Failure:
        """Train and answer; what goes wrong here is this client's failure and nobody else's.

        Raises:
          StoreError: the disk fails under the clients' memory. Were it a client's failure, a run that is resumed with
            more room would end in other bits than one that had it from the start.
        """
        try:
            with storing():
                stored = self.store.reply(job)
            return Reply(job.client, self._serve(job) if stored is None else stored)
        except StoreError:
            raise
        except Exception as error:  # parts that users write may raise anything
            if self.site.plan.private_part and not isinstance(error, PlanError):
                return Failure(job.client, f"{type(error).__name__}; its words stay here: they may tell of an example")
            return Failure(job.client, f"{type(error).__name__}: {error}")

    def _serve(self, job: Job) -> bytes:
        plan = self.site.plan
        received = self.decode(job.payload)
        with storing():
            memory = self.store.load(job.client, job.accepted)
        context = self._context(job)
        dropout = (
            context.secret.at("dropout").seed if context.secret and plan.local.event else fold(job.seed, "dropout")
        )
        with threads(plan.threads), seeded(dropout):
            delta, kept, totals = self.train(received, under("local", memory), context)
        metrics = {"loss": Weighted(float(totals["loss"]), float(totals["examples"]))} if totals else {}
        weight = float(context.size) if plan.weighting == "examples" else 1.0
        update = Update(job.client, {n: x.cpu() for n, x in delta.items()}, weight, metrics)
        kept = prefixed("local", {n: x.cpu() for n, x in kept.items()})
        for i, stage in enumerate(plan.stages):
            update, own = stage.on_client(update, under(f"stage{i}", memory), context)
            kept = {**kept, **prefixed(f"stage{i}", own)}
        if kept and not memory and job.accepted is not None:
            raise RunError(f"its memory of round {job.accepted} is gone: it would start afresh, unseen")
        if not finite(update.delta) or not all(isfinite(m.total) for m in update.metrics.values()):
            mean = f" (mean loss {metrics['loss'].value:.3g})" if metrics else ""
            raise ArithmeticError(f"training diverged{mean}: lower local.lr or set clip_norm")
        payload = pack(update, plan.uplink)
        with storing():
            self.store.save(job, kept, payload)
        return payload

    def _context(self, job: Job) -> Context:
        plan, size = self.site.plan, self.site.data.size(job.client)
        secret = None
        if plan.private_part:
            # of everything that a reply depends on: the same noise on two replies would take itself away
            asked = blake2b(job.payload).hexdigest()
            with storing():
                own = self.store.secret(job.client)
            secret = own.at(job.run, job.round, job.phase, job.seed, job.accepted, asked)
        steps = plan.local.steps_for(size)
        return Context(job.run, job.round, plan.rounds, job.client, size, steps, job.seed, secret)

    def train(self, received: Tensors, memory: Tensors, context: Context) -> tuple[Tensors, Tensors, Tensors]:
        """The delta, the new memory and the totals; what an engine may do otherwise, and nothing else."""
        local, site = self.site.plan.local, self.site
        on = {n: x.to(site.device) for n, x in received.items()}
        own = {n: x.to(site.device) for n, x in memory.items()}
        site.model.train()
        carry = local.begin(on, own, context)
        for batch in local.batches(site.data, received, context):
            carry = local.step(carry, site.on_device(batch), self.objective)
        return local.finish(carry, on, own)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes with `count` threads inside: sums, and so bits, depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
