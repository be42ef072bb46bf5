"""A client's side of a round. Every engine runs this, so simulation and deployment share it to the
byte."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from math import ceil, isfinite
from typing import Any, TypeAlias, TypeVar

from torch import Tensor

from fedpeft.compute.objective import Objective
from fedpeft.compute.trainable import tensors_of
from fedpeft.core.conversation import PARAMS, Message
from fedpeft.core.hooks import Handler
from fedpeft.core.interfaces import Coding, Store
from fedpeft.core.low_rank import EXACT, in_step, merge_exact
from fedpeft.core.seeds import fold, seed_torch
from fedpeft.core.tensors import finite, join_prefixes, layout, split_prefixes
from fedpeft.core.types import (
    ClientId,
    Context,
    Failure,
    Job,
    Reply,
    Tensors,
    Update,
    Weighted,
)
from fedpeft.core.views import View
from fedpeft.errors import PlanError, WireError, reason_of, unknown
from fedpeft.plan.coding import (
    DOWNLINK,
    answer_codec,
    downlink_coding,
    follows,
    is_in_step,
    uplink_coding,
)
from fedpeft.plan.plan import Plan, intersect
from fedpeft.plan.reading import plan_at
from fedpeft.plan.values import shares_optimizer_state
from fedpeft.rounds.answering import Client, check_memory, digest_examples, without_left_out
from fedpeft.rounds.received import Received, check_received, given_to_terms
from fedpeft.rounds.site import Site, threads
from fedpeft.storage.files import StoreError, disk_errors
from fedpeft.wire.payloads import decode_sent, encode_answer, flatten, message_of

Result = TypeVar("Result")
Trained: TypeAlias = tuple[Tensors, Tensors, Tensors]
"""A client's delta, its new memory and its totals."""
FIT = "fit"


@dataclass(frozen=True)
class ClientRound:
    """A client that is about to train.

    Attributes:
      personal: this client's own trained tensors, which do not travel.
      dropout: the seed of this client's dropout in this round.
    """

    client: Client
    personal: Tensors
    context: Context
    dropout: int

    @property
    def job(self) -> Job:
        return self.client.job

    @property
    def received(self) -> Tensors:
        """What local training starts from: trained parameters, and what is shared beside them."""
        return self.client.found.start

    @property
    def objective(self) -> Objective:
        """The loss, with what came and is not trained."""
        return self.client.found.objective

    @property
    def start(self) -> Tensors:
        """All that is trained, and what is shared beside it."""
        return {**self.received, **self.personal} if self.personal else self.received

    @property
    def own(self) -> Tensors:
        """What local training remembers."""
        return self.client.recall("local")


@dataclass(frozen=True)
class Worker:
    """Serves one message at a time. A message leaves no trace but the client's own memory.

    Attributes:
      handlers: by phase, what answers a message; "fit" is local training.
      own: the method's tensors as they are called and shaped, without their numbers.
      leaked: what the optimizer of the last job remembered, where the plan asks for that mistake.
      whole: the plan of all rounds, where that of `site` is of one; None where rounds are alike.
    """

    site: Site
    store: Store
    whole: Plan | None = None
    objective: Objective = field(init=False)
    personal: Tensors = field(init=False, repr=False)
    handlers: Mapping[str, Handler] = field(init=False, repr=False)
    own: Tensors = field(init=False, repr=False)
    clients: Sequence[ClientId] = field(init=False, repr=False)
    routes: Sequence[Callable[..., View]] = field(init=False, repr=False)
    tells: Sequence[Callable[[Client], Mapping[str, Any]]] = field(init=False, repr=False)
    leaves: Sequence[Callable[..., Collection[str]]] = field(init=False, repr=False)
    receive: Callable[[bytes, View, str, int], Received] = field(init=False, repr=False)
    digest: Callable[[ClientId], str] = field(init=False, repr=False)
    leaked: dict[str, Tensor] = field(init=False, repr=False, default_factory=dict)
    others: dict[int, "Worker"] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        site, plan = self.site, self.site.plan
        own = site.params()
        set_ = object.__setattr__
        site.model.train()
        objective = Objective(
            site.model, site.task, plan.local.precision, micro_batch=plan.compute.micro_batch
        )
        set_(self, "objective", objective)
        set_(self, "personal", plan.personal_of(own))
        set_(self, "handlers", plan.handlers())
        set_(self, "routes", plan.hooks("view"))
        set_(self, "tells", plan.hooks("tell"))
        set_(self, "leaves", plan.hooks("leave_out"))
        set_(self, "clients", plan.known_clients(site.data.clients))
        set_(self, "own", {name: x.to("meta") for name, x in own.items()})
        kinds = len(set(plan.ranks or (0,)))
        set_(self, "digest", lru_cache(maxsize=1024)(partial(digest_examples, site.data)))
        # the clients of a round with one view receive the same bytes, and nobody writes to what
        # they hold
        set_(self, "receive", lru_cache(maxsize=max(2, kinds))(self._received))

    def __call__(self, job: Job) -> Reply | Failure:
        """Answer a message; what goes wrong here is this client's failure and nobody else's.

        Raises:
          StoreError: the disk fails under the clients' memory. Were it a client's failure, a run
            that is resumed with more room would end in other bits than one that had it from the
            start.
        """
        worker = self.at(job.round)
        opened = worker.open(job)
        if not isinstance(opened, ClientRound):
            return opened
        return worker.close(opened, lambda: worker.alone(opened))

    def at(self, round: int) -> "Worker":
        """The worker of a round: itself, unless the plan changes from round to round."""
        plan = self.site.plan
        if not plan.changes:
            return self
        if round not in self.others:
            self.others.clear()
            now = replace(plan_at(plan, round), name=plan.name)
            self.others[round] = Worker(replace(self.site, plan=now), self.store, plan)
        return self.others[round]

    def open(self, job: Job) -> "ClientRound | Reply | Failure":
        """What the client trains from; of every other message, and of one that it has answered
        before, the reply. It raises as a call does."""
        return self._guarded(job.client, lambda: self._opened(job))

    def close(self, opened: ClientRound, train: Callable[[], Trained]) -> Reply | Failure:
        """The reply with what `train` gives, or why there is none; it raises as a call does."""
        client = opened.job.client

        def reply() -> Reply:
            # of stages too the bits depend on threads, and noise is slow to draw on many
            with threads(self.site.plan.compute.threads):
                trained = train()
                return Reply(client, self._closed(opened, *trained))

        return self._guarded(client, reply)

    def alone(self, opened: ClientRound) -> Trained:
        """Train one client, with its own stream of dropout and as many threads as are set."""
        whole: Any = getattr(self.site.plan.local, "train_client", None)
        with seed_torch(opened.dropout):
            if whole is None:
                return self.train(opened.start, opened.own, opened.context, opened.objective)
            return whole(opened)  # type: ignore[no-any-return]

    def _opened(self, job: Job) -> "ClientRound | Reply":
        if job.phase != FIT and job.phase not in self.handlers:
            known = (FIT, *self.handlers)
            raise PlanError(
                f"{unknown('message', job.phase, known)} This plan has no other, and no other is "
                "answered"
            )
        with disk_errors():
            # Before the message is read: asked again, a client gives the same bytes and remembers
            # nothing twice.
            stored = self.store.reply(job)
        if stored is not None:
            return Reply(job.client, self._sealed(job, stored))
        client = self._client(job)
        return self._training(client) if job.phase == FIT else self._answered(client)

    def _client(self, job: Job) -> Client:
        view = intersect(self.routes, job.client, job.round, self.clients)
        with disk_errors():
            memory = split_prefixes(self.store.load(job.client, job.accepted, job))
        found = self._found(job, view, memory)
        return Client(self.site, self.store, job, view, found, memory, digest=self.digest)

    def _found(self, job: Job, view: View, memory: Mapping[str, Tensors]) -> Received:
        """What came, read with what this client holds of the last message, if that is needed."""
        following = job.phase == FIT and follows(self.site.plan)
        if not (following and is_in_step(job.accepted, job.round)):
            return self.receive(job.payload, view, job.phase, job.round)
        held = memory.get(DOWNLINK)
        return self._received(job.payload, view, job.phase, job.round, held)

    def _training(self, client: Client) -> ClientRound:
        context = self._context(client)
        hidden = context.secret if self.site.plan.local.event else None
        seed = client.job.seed
        # Under a guarantee for examples these draws are secret too: with public ones, one more
        # example would shift those of the others.
        dropout = hidden.at("dropout").seed if hidden else fold(seed, "dropout")
        personal = client.recall("personal") or self.personal
        if not (client.found.trained or personal):
            raise ValueError(
                f"the plan's routing leaves {client.name} nothing to train in round "
                f"{client.job.round + 1}: give it at least one tensor, or leave it out"
            )
        return ClientRound(client, personal, context, dropout)

    def _answered(self, client: Client) -> Reply:
        """The reply of a handler; what it remembers is stored with it."""
        phase = client.job.phase
        answer = self.handlers[phase](client, client.found.message)
        # who asked knows the layout of the answer, so that it may unpack to much more than it is
        how = Coding(layout=layout(flatten(answer.tensors)))
        payload = encode_answer(answer, answer_codec(self.site.plan, phase), how)
        if client.changed:
            with disk_errors():
                self.store.save(client.job, join_prefixes(client.memory), payload)
        return Reply(client.name, payload)

    def _sealed(self, job: Job, payload: bytes) -> bytes:
        if job.phase != FIT:
            return payload
        with disk_errors():
            sealed: bytes = self.site.plan.exchange.seal(
                Client(self.site, self.store, job, View(), Received.empty(self.objective), {}),
                payload,
            )
        return sealed

    def _received(
        self, payload: bytes, view: View, phase: str, round: int, held: Tensors | None = None
    ) -> Received:
        """What of a message is trained, and the loss with the rest of it in its place.

        Raises:
          WireError: the message holds other tensors than the plan sends.
        """
        site, plan = self.site, self.site.plan
        mine = view.select(self.own)
        allowed = plan.receives(phase, {PARAMS: layout(mine), **plan.shares(mine)})
        groups = None if allowed is None else allowed.keys()
        how = downlink_coding(plan, round, view, held)
        message = decode_sent(payload, plan.downlink, groups, how)
        if allowed is not None:
            check_received(message, phase, allowed, mine)
        params = message.tensors.get(PARAMS, {})
        own = view.trained(params)
        still = {name: x for name, x in params.items() if name not in own}
        still |= merge_exact(site.model, message.tensors.get(EXACT, {}))
        if view.rank is not None:
            still |= in_step(tensors_of(site.model), params)
        if view.sets:
            still |= view.buffers(dict(site.model.named_buffers()))
        beside = {
            f"{owner}/{name}": x
            for owner in plan.local_shares
            for name, x in message.tensors.get(owner, {}).items()
        }
        start = {**own, **beside} if beside else own
        return Received(message, own, start, self._objective_with(still, message, round))

    def _objective_with(self, still: Tensors, message: Message, round: int) -> Objective:
        """The loss with what came and is not trained, and what its terms read of a message and of
        its round."""
        on = {name: x.to(self.site.device) for name, x in still.items()}
        given = given_to_terms(self.site.plan, message, round, self.site.device)
        # one object for all who receive nothing of the kind, as clients of one may take steps
        # together
        return replace(self.objective, held=on, given=given) if on or given else self.objective

    def _closed(self, opened: ClientRound, delta: Tensors, kept: Tensors, totals: Tensors) -> bytes:
        plan, job, client = self.site.plan, opened.job, opened.client
        delta = {n: x.cpu() for n, x in delta.items()}
        personal = {n: x + delta[n] for n, x in opened.personal.items()}
        update = self._update(opened, delta, totals)
        memory = {**client.memory, "local": {n: x.cpu() for n, x in kept.items()}}
        memory["personal"] = personal
        memory[DOWNLINK] = flatten(client.found.message.tensors) if follows(plan) else {}
        for i, stage in enumerate(plan.stages):
            update, own = stage.on_client(update, client.recall(f"stage{i}"), opened.context)
            memory[f"stage{i}"] = own
        update = self.site.sent(update)
        check_memory(memory, client, self.whole or plan)
        _check_converged(update, {**personal, **memory["local"]}, hidden=plan.exchange.sums)
        how = uplink_coding(plan, job.round, job.client, client.view, client.found.message)
        payload = encode_answer(message_of(update), plan.uplink, how)
        with disk_errors():
            # The reply lies on the disk before it leaves, so that it is the same after a kill at
            # any moment.
            self.store.save(job, join_prefixes(memory), payload)
        return self._sealed(job, payload)

    def _update(self, opened: ClientRound, delta: Tensors, totals: Tensors) -> Update:
        """What is sent of a client's training, before the stages."""
        plan, client = self.site.plan, opened.client
        metrics = {}
        if totals:
            metrics["loss"] = Weighted(float(totals["loss"]), float(totals["examples"]))
        trained = {n: x for n, x in delta.items() if n in opened.received}
        shared = without_left_out(trained, client, self.leaves, opened.start, delta)
        told: dict[str, Any] = {}
        for tell in self.tells:
            told |= tell(client)
        size = opened.context.size
        return Update(client.name, shared, weight(plan, size), metrics, told=told)

    def _context(self, client: Client) -> Context:
        plan, job = self.site.plan, client.job
        size = self.site.data.size(job.client)
        steps = plan.local.steps_for(size)
        about = job.run, job.round, plan.rounds, job.client
        return Context(*about, size, steps, job.seed, client.secret(), client.view.budget)

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
        if not site.model.training:  # to go through its modules takes a small client some time
            site.model.train()
        carry = local.begin(on, own, context)
        if self.leaked:
            carry = {**carry, "optimizer": dict(self.leaked)}
        for batch in local.batches(site.data, received, context):
            carry = local.step(carry, site.on_device(batch), objective or self.objective)
        if shares_optimizer_state(site.plan):
            self.leaked.update(carry["optimizer"])
        return local.finish(carry, on, own)

    def _guarded(self, client: ClientId, work: Callable[[], Result]) -> Result | Failure:
        try:
            return work()
        except StoreError:
            raise
        except Exception as error:  # parts that users write may raise anything
            if self.site.plan.private_part and not isinstance(error, PlanError | WireError):
                words = "its words stay here, as they may tell of an example"
                return Failure(client, f"{type(error).__name__}: {words}", answered=True)
            return Failure(client, reason_of(error), answered=True)


def weight(plan: Plan, size: int) -> float:
    """What a client with so many examples counts in the mean."""
    if plan.weighting == "uniform":
        return 1.0
    batch = getattr(plan.local, "batch_size", 1) if plan.weighting == "batches" else 1
    return float(ceil(size / batch) * batch)


def _check_converged(update: Update, own: Tensors, hidden: bool) -> None:
    """Raises ArithmeticError for what is not finite; it tells no loss that is hidden."""
    numbers = [m.total for m in update.metrics.values()]
    if finite(update.delta) and finite(own) and all(map(isfinite, numbers)):
        return
    loss = None if hidden else update.metrics.get("loss")
    mean = f" (mean loss {loss.value:.3g})" if loss else ""
    raise ArithmeticError(f"training diverged{mean}: lower local.lr or set clip_norm")
