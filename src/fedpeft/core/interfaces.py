"""The interfaces of the parts: what each kind must be able to do, and nothing of how."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedpeft.core.outputs import Outputs
from fedpeft.core.secrets import Secret
from fedpeft.core.seeds import fold
from fedpeft.core.types import (
    Batch,
    Carry,
    ClientId,
    Cohort,
    Context,
    Division,
    Event,
    Examples,
    Failure,
    Job,
    Reply,
    State,
    Summed,
    Table,
    Tensors,
    Update,
)


class Term(Protocol):
    """A term that local training adds to the loss of each example: `weight` times `loss`.

    `loss` gives one value an example, (batch,). `held` has the outputs of other models on the batch
    as `<model>/<output>`, without gradients and dropout. "received" is the model that the client
    started this round from, "previous" its own last one, or else the received one. What is shared
    by an algorithm is there, by `given_by`, and where `reads_round` is true, `round`, from 0.

    Attributes:
      weight: what the term counts beside the task's loss; at 0 it is not computed.
      compares: the models that it needs in `held`.
      head: the module whose input it needs as `features`; "auto" for the usual ones, None for none.
      couples_examples: whether an example's value depends on the others of its batch. Such a term
        must leave out the rows with a mask of 0, which fill up a short batch.
    """

    @property
    def weight(self) -> float: ...
    @property
    def compares(self) -> tuple[str, ...]: ...
    @property
    def head(self) -> str | None: ...
    @property
    def couples_examples(self) -> bool: ...
    def loss(self, outputs: Outputs, batch: Batch, held: Tensors) -> Tensor: ...


OTHER, SHARE = "mixed/label", "mixed/share"
"""The columns of a batch whose examples are mixed: a second label of each, and what its first one
counts, from 0 to 1. Its loss is then share·ℓ(label) + (1 − share)·ℓ(other)."""


class Augment(Protocol):
    """A change of the batches that a client trains on, after the task has made them.

    Attributes:
      couples_examples: whether an example becomes another one by the others of its batch.
    """

    @property
    def couples_examples(self) -> bool: ...
    def change(self, batch: Batch, generator: torch.Generator) -> Batch: ...


@dataclass(frozen=True)
class Added:
    """What a step adds to the task's loss.

    Attributes:
      models: by name the parameters of the models that the terms compare with.
    """

    terms: tuple[Term, ...]
    models: Mapping[str, Tensors]

    @property
    def head(self) -> str | None:
        """The module whose input the terms need."""
        return next((term.head for term in self.terms if term.head), None)


class LossFn(Protocol):
    """The loss as a function of the small tensors; the frozen base is inside."""

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        """One loss per example, shape (batch,)."""
        ...

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        """The gradient of the masked mean, the losses, and the buffers that the pass changed."""
        ...

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        """One gradient for each example, tensors of shape (batch, *shape); the mask is not looked
        at."""
        ...


class Task(Protocol):
    """What is learned.

    `prepare` runs once on a table as its source reads it; `batch` on the rows drawn for a step,
    with a generator in training only: augmentation is drawn from it. Of these rows, columns of
    uint8 are where the model is, a GPU maybe, and all others on the CPU.

    `forward` is the only method that calls the model; `core.outputs` names what it gives. With
    `head` it also gives `features`, what comes into the module of that name. `losses` and `metrics`
    make one value an example of these outputs, shape (batch,), or `Summed` values.

    What else a task may have stands in `core.task_hooks`.
    """

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module: ...
    def prepare(self, table: Table) -> Tensors: ...
    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch: ...
    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs: ...
    def losses(self, outputs: Outputs, batch: Batch) -> Tensor: ...
    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]: ...


class Source(Protocol):
    """Where examples come from; opened only where the data lies."""

    def load(self) -> Examples: ...


class Partition(Protocol):
    """Which client holds which training examples."""

    def split(self, table: Table, generator: torch.Generator) -> Division: ...


class Data(Protocol):
    """The examples, and which client holds which of them.

    `training` gives the examples that a client trains on, in order and without augmentation;
    `held_out` the common held-out ones, or the client's own ones, of which there may be none.
    """

    @property
    def clients(self) -> Sequence[ClientId]: ...
    def size(self, client: ClientId) -> int: ...
    def batches(
        self,
        client: ClientId,
        size: int,
        epochs: int,
        generator: torch.Generator,
        by_length: bool = False,
    ) -> Iterable[Batch]: ...
    def chosen(self, client: ClientId, places: Tensor, generator: torch.Generator) -> Batch: ...
    def training(self, client: ClientId) -> Iterable[Batch]: ...
    def held_out(self, client: ClientId | None = None) -> Iterable[Batch]: ...


class Method(Protocol):
    """What is trained, and so what travels. `not_exported` may say which layers no library has.

    Attributes:
      pretrained: whether the base starts from its pre-trained weights.
    """

    @property
    def pretrained(self) -> bool: ...
    def inject(self, model: nn.Module) -> nn.Module: ...
    def names(self, model: nn.Module) -> Sequence[str]: ...


class Optimizer(Protocol):
    """A client's optimizer, as a pure function. Its memory lives for one job."""

    def init(self, params: Tensors) -> Tensors: ...
    def step(
        self, params: Tensors, memory: Tensors, gradient: Tensors, lr: Tensor
    ) -> tuple[Tensors, Tensors]: ...


class Correction(Protocol):
    """What an algorithm adds to every local gradient (FedProx, SCAFFOLD).

    `begin` gives what `apply` needs in each step. `finish` gives the change of what is shared, and
    what the client remembers; its `path` is how far the steps carried a gradient that is always 1.

    Attributes:
      share: the group of tensors that travels both ways beside the method's; empty for none. A
        correction with one has `shares` and `merge_share` too (`core.hooks.SharesBack`).
    """

    @property
    def share(self) -> str: ...
    def begin(self, received: Tensors, shared: Tensors, memory: Tensors) -> Tensors: ...
    def apply(self, gradient: Tensors, params: Tensors, held: Tensors) -> Tensors: ...
    def finish(
        self, delta: Tensors, shared: Tensors, memory: Tensors, path: Tensor
    ) -> tuple[Tensors, Tensors]: ...


class Local(Protocol):
    """How a client trains, from tensors to tensors, so that an engine may run it for one client or
    for many.

    Every random number that a step needs is in its batch. `steps_for` is the number of batches for
    so many examples.

    Attributes:
      passes: how often a participation sees each example, on average.
      event: what a participation tells of an example; None if nothing is hidden.
    """

    @property
    def precision(self) -> str: ...
    @property
    def passes(self) -> float: ...
    @property
    def event(self) -> Event | None: ...
    def steps_for(self, size: int) -> int: ...
    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]: ...
    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry: ...
    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry: ...
    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]: ...


class Stage(Protocol):
    """A station an update passes: `on_client` in order on the way up; in reverse `on_arrival` on
    each update, which others may have made, and `on_server` on the mean. A ValueError of
    `on_arrival` is that client's failure.

    `memory` is this client's own, kept between the rounds it takes part in; empty at first.

    Attributes:
      remembers: whether `on_client` ever gives a memory back; the engine then needs a store.
      event: what a participation tells of a client; None if nothing is hidden.
    """

    @property
    def remembers(self) -> bool: ...
    @property
    def event(self) -> Event | None: ...
    def on_client(
        self, update: Update, memory: Tensors, context: Context
    ) -> tuple[Update, Tensors]: ...
    def on_arrival(self, update: Update) -> Update: ...
    def on_server(self, update: Update, cohort: Cohort) -> Update: ...


class Attack(Protocol):
    """What some clients do to the others; for simulation.

    `poison` makes of an attacker's examples those it trains on; `send` of its update the one that
    leaves it; `probe` of held-out examples those on which accuracy is the attack's success, None
    where there are no such.

    Attributes:
      share: of all clients that attack.
    """

    @property
    def share(self) -> float: ...
    def poison(self, rows: Tensors, classes: int) -> Tensors: ...
    def probe(self, rows: Tensors, classes: int) -> Tensors | None: ...
    def send(self, update: Update) -> Update: ...


@dataclass(frozen=True)
class Coding:
    """What a codec is told of a message. Both ends know it, so that none of it travels.

    Attributes:
      direction: "down" to the clients or "up" to the server.
      root, path: where the message's own random stream lies: that of the round on the way down, of
        the round and the client on the way up.
      round: counted from 0.
      layout: what the receiver expects, where it knows; empty otherwise, and for a sender who does
        not rely on it.
      budget: what share of its usual entries a sparse codec keeps; see `core.views.View`.
      held: what both ends have of an earlier message, for a codec that needs it.
    """

    direction: str = "up"
    root: int = 0
    round: int = 0
    layout: Sequence[tuple[str, list[int], str]] = ()
    budget: float = 1.0
    path: tuple[str, ...] = ()
    held: Tensors | None = None

    @property
    def seed(self) -> int:
        """The seed of that stream; few codecs draw anything, so that it is not made beforehand."""
        return fold(self.root, *self.path) if self.path else self.root


class Codec(Protocol):
    """Tensors to bytes and back. `decode(encode(x, how), how)` keeps names, shapes and dtypes, and
    is idempotent; the same tensors at the same place give the same bytes. `how.held` is what was
    sent last, on the way down if it `follows`, on the way up if it `reads_sent`.
    """

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes: ...
    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors: ...


class Aggregator(Protocol):
    """Many updates to one, reading them once. The result's weight is the sum of the weights."""

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update: ...


@runtime_checkable
class LowRank(Aggregator, Protocol):
    """An aggregator that knows LoRA's factors, of any rank up to the method's; what else is trained
    goes to its mean.

    Attributes:
      plain: whether its result holds only if the server adds it as it is.
    """

    @property
    def plain(self) -> bool: ...


class ServerOptimizer(Protocol):
    """A step of the shared parameters along a reduced delta (Reddi et al., 2021, arXiv:2003.00295).

    `init` gives what it remembers before the first step.
    """

    def init(self, params: Tensors) -> Tensors: ...
    def step(
        self, params: Tensors, memory: Tensors, delta: Tensors, cohort: Cohort
    ) -> tuple[Tensors, Tensors]: ...


class Sampler(Protocol):
    """It draws the clients that take part in a round, counted from 0."""

    def choose(
        self, clients: Sequence[ClientId], cohort: int, generator: torch.Generator, round: int
    ) -> list[ClientId]: ...


class LearningSampler(Protocol):
    """A sampler that goes by what it has learnt from the ledgers of earlier rounds.

    Nobody can tell beforehand whom it draws, so that the accountant takes `most`: how often one
    client takes part at most in so many rounds.
    """

    def choose(
        self,
        clients: Sequence[ClientId],
        cohort: int,
        generator: torch.Generator,
        round: int,
        memory: Tensors,
    ) -> list[ClientId]: ...
    def learn(self, memory: Tensors, ledger: Any) -> Tensors: ...
    def most(self, rounds: int, cohort: int, clients: int) -> int: ...


class Engine(Protocol):
    """Carries jobs to clients. Replies come in the order of the jobs, so that sums do not depend on
    timing."""

    @property
    def clients(self) -> Sequence[ClientId]: ...
    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]: ...


class Store(Protocol):
    """A client's own memory between rounds, and a note between the messages of one. It never leaves
    the client."""

    def load(
        self, client: ClientId, accepted: int | None, before: Job | None = None
    ) -> Tensors: ...
    def reply(self, job: Job) -> bytes | None: ...
    def save(self, job: Job, memory: Tensors, payload: bytes) -> None: ...
    def secret(self, client: ClientId) -> Secret: ...
    def signer(self, client: ClientId) -> bytes | None: ...
    def note(self, client: ClientId) -> bytes: ...
    def keep(self, client: ClientId, note: bytes) -> None: ...
