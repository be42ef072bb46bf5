"""A client's side of a round. Every engine runs this, so simulation and deployment share it to the byte."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from math import ceil, isfinite
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from fedpeft.core.features import Kept, featured, keep
from fedpeft.core.interfaces import Data, Store, Task
from fedpeft.core.objective import Objective
from fedpeft.core.packed import prepare_frozen
from fedpeft.core.seeds import fold, generator, seeded
from fedpeft.core.stores import StoreError, storing
from fedpeft.core.tensors import finite, prefixed, under
from fedpeft.core.trainable import read
from fedpeft.core.types import Batch, ClientId, Context, Failure, Job, Reply, Tensors, Update, Weighted
from fedpeft.core.wire import pack
from fedpeft.data.partitioned import Partitioned
from fedpeft.data.report import check_division
from fedpeft.errors import DataError, PlanError, RunError
from fedpeft.plan import Plan, leaking
from fedpeft.registry import describe

Result = TypeVar("Result")


@dataclass(frozen=True)
class Site:
    """What one process holds: the frozen base, once, and the data of the clients that it may serve.

    Attributes:
      model: with the method injected; nobody writes to it, the small tensors are swapped in for each call.
      classes: the label names, in the order of the head's outputs.
      kept: features that stand in for the frozen beginning of the model; `data` has them in its batches.
    """

    plan: Plan
    model: nn.Module
    data: Data
    classes: tuple[str, ...]
    device: str = "cpu"
    kept: Kept = Kept()

    @property
    def task(self) -> Task:
        """The plan's, which goes on from features where a batch has them."""
        return featured(self.plan.task, self.kept)

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
    model = plan.model(examples.classes).to(device)
    _check_personal(plan, plan.method.names(model))
    prepare_frozen(model, plan.method.names(model), plan.base_dtype, plan.pack)
    kept = _kept(plan, device, model, train, test, len(division.parts))
    train, test = kept.beside(train, test)
    data = Partitioned(featured(task, kept), train, test, division.parts, division.notes)
    return Site(plan, model, data, examples.classes, device, kept)


def _check_personal(plan: Plan, names: Sequence[str]) -> None:
    for pattern in plan.personal:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise PlanError(f"personal = {pattern!r} matches no trained tensor; there are {', '.join(names[:8])} ...")


def _kept(plan: Plan, device: str, model: nn.Module, train: Tensors, test: Tensors, clients: int) -> Kept:
    """Features, where they are wanted and each example is seen twice or more on average."""
    if not plan.features or plan.local.precision != "float32":
        return Kept()
    if plan.rounds * min(plan.cohort, clients) * plan.local.epochs < 2 * clients:
        return Kept()
    numbers = [
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        plan.threads,
        plan.base_dtype,
        plan.pack,
        device,
    ]
    setting = json.dumps([describe("task", plan.task), *numbers], default=str, sort_keys=True)
    with threads(plan.threads):
        return keep(plan.task, model, plan.method.names(model), train, test, setting)


Trained: TypeAlias = tuple[Tensors, Tensors, Tensors]
"""A client's delta, its new memory and its totals."""


@dataclass(frozen=True)
class Opened:
    """A job as training finds it.

    Attributes:
      personal: this client's own trained tensors, which do not travel.
      memory: all that the client remembers, its stages' parts included.
    """

    job: Job
    received: Tensors
    personal: Tensors
    memory: Tensors
    context: Context

    @property
    def start(self) -> Tensors:
        """All that is trained, and what is shared beside it."""
        return {**self.received, **self.personal} if self.personal else self.received

    @property
    def own(self) -> Tensors:
        """What local training remembers."""
        return under("local", self.memory)

    @property
    def dropout(self) -> int:
        """The seed of this client's dropout in this round."""
        return fold(self.job.seed, "dropout")


@dataclass(frozen=True)
class Worker:
    """Serves one job at a time. A job leaves no trace but the client's own memory.

    Attributes:
      leaked: what the optimizer of the last job remembered, where the plan asks for that mistake.
    """

    site: Site
    store: Store
    objective: Objective = field(init=False)
    personal: Tensors = field(init=False, repr=False)
    decode: Callable[[bytes], Tensors] = field(init=False, repr=False)
    leaked: dict[str, Tensor] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.site.plan
        object.__setattr__(self, "objective", Objective(self.site.model, self.site.task, plan.local.precision))
        object.__setattr__(self, "personal", plan.personal_of(self.site.params()) if plan.personal else {})
        # the clients of a round receive the same bytes, and nobody writes to what they hold
        object.__setattr__(self, "decode", lru_cache(maxsize=1)(plan.downlink.decode))

    def __call__(self, job: Job) -> Reply | Failure:
        """Train and answer; what goes wrong here is this client's failure and nobody else's.

        Raises:
          StoreError: the disk fails under the clients' memory. Were it a client's failure, a run that is resumed with
            more room would end in other bits than one that had it from the start.
        """
        opened = self.open(job)
        return self.close(opened, lambda: self.alone(opened)) if isinstance(opened, Opened) else opened

    def open(self, job: Job) -> "Opened | Reply | Failure":
        """What the client starts from, or the reply that it gave to this job before; raises as a call does."""

        def opening() -> Opened | Reply:
            with storing():
                stored = self.store.reply(job)
            if stored is not None:
                return Reply(job.client, stored)
            received = self.decode(job.payload)
            with storing():
                memory = self.store.load(job.client, job.accepted)
            personal = under("personal", memory) or self.personal
            return Opened(job, received, personal, memory, self._context(job))

        return _guarded(job.client, opening)

    def close(self, opened: "Opened", train: Callable[[], Trained]) -> Reply | Failure:
        """The reply with what `train` gives, or why there is none; raises as a call does."""
        client = opened.job.client
        return _guarded(client, lambda: Reply(client, self._closed(opened, *train())))

    def alone(self, opened: "Opened") -> Trained:
        """Train one client, with its own stream of dropout."""
        with threads(self.site.plan.threads), seeded(opened.dropout):
            return self.train(opened.start, opened.own, opened.context)

    def _closed(self, opened: "Opened", delta: Tensors, kept: Tensors, totals: Tensors) -> bytes:
        plan, job, memory, context = self.site.plan, opened.job, opened.memory, opened.context
        loss = Weighted(float(totals["loss"]), float(totals["examples"]))
        by_batch = ceil(context.size / plan.local.batch_size) * plan.local.batch_size
        weight = float({"examples": context.size, "batches": by_batch, "uniform": 1}[plan.weighting])
        delta = {n: x.cpu() for n, x in delta.items()}
        update = Update(job.client, {n: x for n, x in delta.items() if n in opened.received}, weight, {"loss": loss})
        personal = {n: x + delta[n] for n, x in opened.personal.items()}
        kept = {**prefixed("local", {n: x.cpu() for n, x in kept.items()}), **prefixed("personal", personal)}
        for i, stage in enumerate(plan.stages):
            update, own = stage.on_client(update, under(f"stage{i}", memory), context)
            kept = {**kept, **prefixed(f"stage{i}", own)}
        if kept and not memory and job.accepted is not None:
            raise RunError(f"its memory of round {job.accepted} is gone: it would start afresh, unseen")
        if not (finite(update.delta) and finite(personal)) or not all(
            isfinite(m.total) for m in update.metrics.values()
        ):
            raise ArithmeticError(f"training diverged (mean loss {loss.value:.3g}): lower local.lr or set clip_norm")
        payload = pack(update, plan.uplink)
        with storing():
            self.store.save(job, kept, payload)
        return payload

    def _context(self, job: Job) -> Context:
        plan, size = self.site.plan, self.site.data.size(job.client)
        steps = plan.local.epochs * ceil(size / plan.local.batch_size)
        return Context(job.run, job.round, plan.rounds, job.client, size, steps, job.seed)

    def train(self, received: Tensors, memory: Tensors, context: Context) -> Trained:
        """The delta, the new memory and the totals; what an engine may do otherwise, and nothing else."""
        local, site = self.site.plan.local, self.site
        on = {n: x.to(site.device) for n, x in received.items()}
        own = {n: x.to(site.device) for n, x in memory.items()}
        draws = generator(context.seed, "batches")
        site.model.train()
        carry = local.begin(on, own, context)
        if self.leaked:
            carry = {**carry, "optimizer": dict(self.leaked)}
        for batch in site.data.batches(context.client, local.batch_size, local.epochs, draws):
            carry = local.step(carry, site.on_device(batch), self.objective)
        if leaking(site.plan):
            self.leaked.update(carry["optimizer"])
        return local.finish(carry, on, own)


def _guarded(client: ClientId, work: Callable[[], Result]) -> Result | Failure:
    try:
        return work()
    except StoreError:
        raise
    except Exception as error:  # parts that users write may raise anything
        return Failure(client, f"{type(error).__name__}: {error}")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes with `count` threads inside: sums, and so bits, depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
