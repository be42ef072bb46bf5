"""What a part may do in a round's conversation: small interfaces, of which it implements any
subset.

A plan collects each hook from all its parts: an algorithm, an aggregator or an exchange may answer
messages, tell values beside an update, or narrow what a client sees.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from fedpeft.core.conversation import Answer, Ask, Flow, Message
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import Batch, ClientId, Cohort, State, Tensors, Update
from fedpeft.core.views import View

Inner: TypeAlias = Callable[[State, Round], Flow]
"""A round of what an algorithm wraps."""
Handler: TypeAlias = Callable[[Any, Message], Message]
"""A client's answer to a message; the first argument is the client that answers, a
`rounds.answering.Client`."""


class Algorithm(Protocol):
    """An algorithm with messages or steps of its own, around an inner one.

    It yields questions, is sent answers, and returns the state of the next round. It must read all
    answers before it asks again, and it must be a function of the state, the round and the answers
    alone: a resume repeats it.
    """

    def round(self, state: State, round: Round, inner: Inner) -> Flow: ...


class BeforeRounds(Protocol):
    """An algorithm that makes something of its clients' answers before anybody trains.

    A plan with `rounds = 0` is these conversations alone, outermost first. Each gives the state as
    it is then, in which no round is done. `answers` gives by phase the layout of one client's
    answer, which an owner reads of and a file must have.
    """

    def before_rounds(self, state: State, round: Round) -> Flow: ...
    def answers(self, params: Tensors) -> Mapping[str, Layout]: ...


class Handles(Protocol):
    """A part with a client's side: by phase, what answers a message of that name.

    Further attributes that a part may have, which a site's agreement reads:

      remembers_clients: True where an answer makes the client remember something; engines then
        need a store.
      asks_everyone: the phases in which all clients are asked, whoever is drawn for the round.
      asks_in: by phase the only rounds in which it is asked.
      asks_when: a method that gives the same of a plan, where the rounds follow from it; a round
        that the plan does not have any more, after the last, is among them or is refused.
      answers_with: by phase the codec of its answers, as a plan names one, where it is another than
        the plain lossless one.
      asks_times: by phase how often a client is asked in one round, where that is more than once.
    """

    def handlers(self) -> Mapping[str, Handler]: ...


class Receives(Protocol):
    """What a client may be sent in a phase; without it, what it receives to "fit".

    `layout` is that of a fit, by group. None stands for anything: the handler checks it then.
    """

    def receives(self, phase: str, layout: Mapping[str, Layout]) -> Mapping[str, Layout] | None: ...


class Tells(Protocol):
    """Plain values that ride on an update, in `Update.told`.

    `tell` gets the `rounds.answering.Client` after it has trained and before any stage; it sees
    what the client received. `check_update` raises ValueError for values that no honest client
    tells; it gets the update, the state and the plan.
    """

    def tell(self, client: Any) -> Mapping[str, Any]: ...
    def check_update(self, update: Update, state: State, plan: Any) -> None: ...


class SendsLess(Protocol):
    """A part by which a client sends less than it has trained: it leaves groups of tensors out of
    its update, each as a whole. The mean of a tensor is over those who sent it.

    `may_leave_out` gives of the names of an update the groups that the server takes an update
    without. `leave_out` gives the names that this client leaves out, which must be such groups; it
    gets the `rounds.answering.Client` and what that has trained, its personal tensors too.
    """

    def may_leave_out(self, names: Sequence[str]) -> Sequence[Collection[str]]: ...
    def leave_out(self, client: Any, trained: Tensors) -> Collection[str]: ...


class Routing(Protocol):
    """What a client sees: the views of all parts of a plan are intersected."""

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View: ...


class NeedsRounds(Protocol):
    """A part whose course has an end: by key of the part, the rounds that a plan must have at
    least."""

    def needs_rounds(self) -> Mapping[str, int]: ...


class TrainsWhole(Protocol):
    """A local training that is one call, in the place of an engine's steps.

    `train_client` gets the `rounds.client.ClientRound`: what the client starts from, its model and
    its records. It gives the change of what is trained, what the client remembers and the totals of
    its loss, as `Local.finish` does.

    Attributes:
      reads_records: whether a site keeps the records of its clients as their source gave them.
    """

    @property
    def reads_records(self) -> bool: ...
    def train_client(self, opened: Any) -> tuple[Tensors, Tensors, Tensors]: ...


class Shares(Protocol):
    """By owner, the layout of what clients receive beside the parameters; `params` are these."""

    def shares(self, params: Tensors) -> Mapping[str, Layout]: ...


class SharesExamples(Protocol):
    """By owner, the layout of examples that clients receive beside the parameters: columns of
    batches of the plan's task, with `mask`."""

    def shares_examples(self, task: Any) -> Mapping[str, Layout]: ...


class OwnExamples(Protocol):
    """A term of the loss that brings examples of its own, (m, ...) and with `mask`, made of what it
    is given in `held`.

    Its `loss` then gets these as the batch, and as outputs what the model in training makes of them
    without dropout, with the task's losses (m,) under `core.outputs.LOSSES`. It gives one number,
    (), which comes to the loss of each example of the client's.
    """

    def examples(self, held: Tensors) -> Batch: ...


class CarriesOver(Protocol):
    """A term of the loss that remembers something from step to step of a client's round.

    `first_carried` gives it by names that no other term has. `loss` finds it in `held` as
    `carried/<name>`, and may add `core.outputs.note_mean` of it and of what is new. `carry` gets
    what was remembered and the means of that times the term's weight, by the same names, and gives
    what is remembered now.
    """

    def first_carried(self) -> Tensors: ...
    def carry(self, before: Tensors, noted: Tensors) -> Tensors: ...


class SharesBack(Protocol):
    """A part of the local training whose shared tensors change on the clients.

    The change that a client sends comes beside its update; `merge_share` gets the mean change of
    those who answered, and gives the tensors of the next round.

    Attributes:
      share: the group, one of those that `shares` has.
    """

    @property
    def share(self) -> str: ...
    def shares(self, params: Tensors) -> Mapping[str, Layout]: ...
    def merge_share(self, shared: Tensors, change: Tensors, cohort: Cohort) -> Tensors: ...


class RemembersUpdates(Protocol):
    """A stage for which the server remembers something of the updates, from round to round.

    `remember_update` gets the cohort's update after `on_server`, and what it gave back last time,
    empty at first; it gives the update along which the server steps, and what to remember.
    """

    def remember_update(
        self, update: Update, memory: Tensors, cohort: Cohort
    ) -> tuple[Update, Tensors]: ...


class HasModels(Protocol):
    """A part of whose models each client uses one: that with the least loss on the examples that it
    trains on. Clients are measured with it."""

    def models(self, state: State) -> Sequence[Tensors]: ...


class ServerStep(Protocol):
    """A step of the server after its optimizer's: it may use the model and the server's own data,
    `round.bench`."""

    def step(self, after: State, before: State, round: Round) -> State: ...


class Evaluation(Protocol):
    """A place where the model that a round ends with is measured.

    A part that asks for it has `measure`, which comes after all algorithms of the round and gives
    plain values. They stand in the round's ledger under the part's `told_as`, with the bytes that
    they cost and who `failed` to answer. One that has `at_server` asks nobody.
    """


class Metric(Protocol):
    """A number, or several by name, of what a model makes of held-out examples.

    `measure` gets a `compute.tally.Counts`; it gives nothing where these lack what it needs, and
    NaN where the metric has no value. A method `interval(counts)` gives the ends of a 95 % interval
    of the first of them, or None; with `resamples` it takes many draws, and so a while.

    Attributes:
      reads: the tensors of a tally that it needs beside the confusion matrix. No others leave an
        owner.
    """

    @property
    def reads(self) -> frozenset[str]: ...
    def measure(self, counts: Any) -> Mapping[str, float]: ...


@runtime_checkable
class Measures(Protocol):
    """An `Evaluation` that asks clients."""

    @property
    def told_as(self) -> str: ...
    def measure(
        self, state: State, round: Round
    ) -> Generator[Ask, Iterator[Answer], Mapping[str, Any]]: ...


class Exchange(Protocol):
    """How the answers to a question come in: in the open, as a secure sum, over the air.

    `collect` is a part of the server's generator; it may ask several times. `seal` is the client's
    answer in the place of its update.

    Attributes:
      sums: whether the server gets the sum of the updates alone; clients then need a store.
      signers: by client the public key that it signs with, where clients must.
    """

    @property
    def sums(self) -> bool: ...
    @property
    def signers(self) -> Mapping[ClientId, str]: ...
    def collect(
        self, ask: Ask, round: Round
    ) -> Generator[Ask, Iterator[Answer], Iterator[Answer]]: ...
    def seal(self, client: Any, packed: bytes) -> bytes: ...
