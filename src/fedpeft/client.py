"""A client's side of a round. Every engine runs this, so simulation and deployment share it to the
byte."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from math import ceil, isfinite
from typing import TypeAlias, TypeVar

from torch import Tensor

from fedpeft.core.interfaces import Store
from fedpeft.core.lowrank import EXACT, in_step, merged
from fedpeft.core.objective import Objective
from fedpeft.core.seeds import fold, seeded
from fedpeft.core.stores import StoreError, storing
from fedpeft.core.tensors import beside, finite, prefixed, under
from fedpeft.core.trainable import tensors_of
from fedpeft.core.types import ClientId, Context, Failure, Job, Reply, Tensors, Update, Weighted
from fedpeft.core.wire import pack
from fedpeft.errors import PlanError, RunError
from fedpeft.fitting import leaking
from fedpeft.head_rows import class_counts, rows_told
from fedpeft.head_start import PHASE, class_sums
from fedpeft.plan import Plan
from fedpeft.ranks import trained
from fedpeft.site import Site, threads
from fedpeft.vote import PHASE as VOTE
from fedpeft.vote import scores

Result = TypeVar("Result")
Trained: TypeAlias = tuple[Tensors, Tensors, Tensors]
"""A client's delta, its new memory and its totals."""


@dataclass(frozen=True)
class Opened:
    """A job as training finds it.

    Attributes:
      received: what of it is trained in this round.
      objective: the loss, with what came and is not trained.
      personal: this client's own trained tensors, which do not travel.
      memory: all that the client remembers, its stages' parts included.
      dropout: the seed of this client's dropout in this round.
    """

    job: Job
    received: Tensors
    objective: Objective
    personal: Tensors
    memory: Tensors
    context: Context
    dropout: int

    @property
    def start(self) -> Tensors:
        """All that is trained, and what is shared beside it."""
        return {**self.received, **self.personal} if self.personal else self.received

    @property
    def own(self) -> Tensors:
        """What local training remembers."""
        return under("local", self.memory)


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
    receive: Callable[[bytes, int], tuple[Tensors, Objective]] = field(init=False, repr=False)
    leaked: dict[str, Tensor] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        plan = self.site.plan
        object.__setattr__(
            self, "objective", Objective(self.site.model, self.site.task, plan.local.precision)
        )
        object.__setattr__(
            self, "personal", plan.personal_of(self.site.params()) if plan.personal else {}
        )
        # the clients of a round and rank receive the same bytes, and nobody writes to what they
        # hold
        object.__setattr__(
            self, "receive", lru_cache(maxsize=len(set(plan.ranks or (0,))))(self._received)
        )

    def __call__(self, job: Job) -> Reply | Failure:
        """Train and answer; what goes wrong here is this client's failure and nobody else's.

        Raises:
          StoreError: the disk fails under the clients' memory. Were it a client's failure, a run
            that is resumed with more room would end in other bits than one that had it from the
            start.
        """
        opened = self.open(job)
        return (
            self.close(opened, lambda: self.alone(opened)) if isinstance(opened, Opened) else opened
        )

    def open(self, job: Job) -> "Opened | Reply | Failure":
        """What the client starts from, or the reply that it gave to this job before; raises as a
        call does."""
        plan, exchange = self.site.plan, self.site.plan.exchange

        def opening() -> Opened | Reply:
            if (
                job.phase == PHASE
            ):  # nothing is stored of it, nor taken from what is stored of the round
                received, objective = self.receive(job.payload, job.round)
                return Reply(
                    job.client, class_sums(self.site, {**objective.held, **received}, job.client)
                )
            if job.phase == VOTE:
                return Reply(job.client, scores(self.site, job.client, job.payload))
            with storing():
                if job.phase != "fit":
                    return Reply(job.client, exchange.answer(job, self.store))
                stored = self.store.reply(job)
                if stored is not None:
                    return Reply(job.client, exchange.reply(job, stored, self.store))
            received, objective = self.receive(job.payload, job.round)
            with storing():
                memory = self.store.load(job.client, job.accepted)
            personal = under("personal", memory) or self.personal
            context = self._context(job)
            hidden = context.secret if plan.local.event else None
            dropout = hidden.at("dropout").seed if hidden else fold(job.seed, "dropout")
            return Opened(job, received, objective, personal, memory, context, dropout)

        return self._guarded(job.client, opening)

    def close(self, opened: "Opened", train: Callable[[], Trained]) -> Reply | Failure:
        """The reply with what `train` gives, or why there is none; raises as a call does."""
        client = opened.job.client
        return self._guarded(client, lambda: Reply(client, self._closed(opened, *train())))

    def alone(self, opened: "Opened") -> Trained:
        """Train one client, with its own stream of dropout."""
        with threads(self.site.plan.threads), seeded(opened.dropout):
            return self.train(opened.start, opened.own, opened.context, opened.objective)

    def _received(self, payload: bytes, round: int) -> tuple[Tensors, Objective]:
        """What of a payload is trained, and the loss with the rest of it in its place."""
        site, every = self.site, self.site.plan.downlink.decode(payload)
        own = trained(site.plan, every, round)
        held = {name: x for name, x in beside((EXACT,), every).items() if name not in own}
        held |= merged(site.model, under(EXACT, every))
        if site.plan.ranks:
            held |= in_step(tensors_of(site.model), every)
        if not held:
            return own, self.objective
        return own, replace(
            self.objective, held={name: x.to(site.device) for name, x in held.items()}
        )

    def _closed(self, opened: "Opened", delta: Tensors, kept: Tensors, totals: Tensors) -> bytes:
        plan, job, memory, context = self.site.plan, opened.job, opened.memory, opened.context
        metrics = (
            {"loss": Weighted(float(totals["loss"]), float(totals["examples"]))} if totals else {}
        )
        delta = {n: x.cpu() for n, x in delta.items()}
        shared = {n: x for n, x in delta.items() if n in opened.received}
        counts = class_counts(self.site.data, job.client, rows_told(plan, opened.received))
        update = Update(job.client, shared, weight(plan, context.size), metrics, counts=counts)
        personal = {n: x + delta[n] for n, x in opened.personal.items()}
        kept = {
            **prefixed("local", {n: x.cpu() for n, x in kept.items()}),
            **prefixed("personal", personal),
        }
        for i, stage in enumerate(plan.stages):
            update, own = stage.on_client(update, under(f"stage{i}", memory), context)
            kept = {**kept, **prefixed(f"stage{i}", own)}
        update = self.site.sent(update)
        if kept and not memory and job.accepted is not None:
            raise RunError(
                f"its memory of round {job.accepted} is gone: it would start afresh, unseen"
            )
        numbers = [m.total for m in update.metrics.values()]
        if not (finite(update.delta) and finite(personal) and all(map(isfinite, numbers))):
            mean = f" (mean loss {metrics['loss'].value:.3g})" if metrics else ""
            raise ArithmeticError(f"training diverged{mean}: lower local.lr or set clip_norm")
        payload = pack(update, plan.uplink)
        with storing():
            self.store.save(job, kept, payload)
            return plan.exchange.reply(job, payload, self.store)

    def _context(self, job: Job) -> Context:
        plan, size = self.site.plan, self.site.data.size(job.client)
        secret = None
        if plan.private_part:
            # of everything that a reply depends on: the same noise on two replies would take itself
            # away
            asked = blake2b(job.payload).hexdigest()
            with storing():
                own = self.store.secret(job.client)
            secret = own.at(job.run, job.round, job.phase, job.seed, job.accepted, asked)
        steps = plan.local.steps_for(size)
        return Context(job.run, job.round, plan.rounds, job.client, size, steps, job.seed, secret)

    def train(
        self,
        received: Tensors,
        memory: Tensors,
        context: Context,
        objective: Objective | None = None,
    ) -> Trained:
        """The delta, the new memory and the totals; what an engine may do otherwise, and nothing
        else."""
        local, site = self.site.plan.local, self.site
        on = {n: x.to(site.device) for n, x in received.items()}
        own = {n: x.to(site.device) for n, x in memory.items()}
        site.model.train()
        carry = local.begin(on, own, context)
        if self.leaked:
            carry = {**carry, "optimizer": dict(self.leaked)}
        for batch in local.batches(site.data, received, context):
            carry = local.step(carry, site.on_device(batch), objective or self.objective)
        if leaking(site.plan):
            self.leaked.update(carry["optimizer"])
        return local.finish(carry, on, own)

    def _guarded(self, client: ClientId, work: Callable[[], Result]) -> Result | Failure:
        try:
            return work()
        except StoreError:
            raise
        except Exception as error:  # parts that users write may raise anything
            words = str(error)
            if self.site.plan.private_part and not isinstance(error, PlanError):
                words = "its words stay here, as they may tell of an example"
            return Failure(client, f"{type(error).__name__}: {words}")


def weight(plan: Plan, size: int) -> float:
    """What a client with so many examples counts in the mean."""
    if plan.weighting == "uniform":
        return 1.0
    batch = getattr(plan.local, "batch_size", 1) if plan.weighting == "batches" else 1
    return float(ceil(size / batch) * batch)
