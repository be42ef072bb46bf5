"""A client's side: train once on what lies here, and give the file that the server merges."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedpeft.core.interfaces import Data, Store
from fedpeft.core.types import Batch, ClientId, Failure, Job, Reply
from fedpeft.data.divide import divide_one
from fedpeft.errors import DataError, RunError, say_count
from fedpeft.evaluation.probe import check_gradients
from fedpeft.oneshot.contribution import write_signed
from fedpeft.oneshot.contribution_header import Header, hides_size
from fedpeft.oneshot.invitation import Invitation, base_fingerprint, transforms_digest
from fedpeft.oneshot.keys import check_name
from fedpeft.oneshot.own_data import OwnData
from fedpeft.plan.plan import Plan
from fedpeft.rounds.client import Worker
from fedpeft.rounds.loop import federate, unmeasured
from fedpeft.rounds.site import Onlooker, Site, site_of
from fedpeft.runs.execute import open_run_site
from fedpeft.storage.client_memory import Nowhere

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Counted:
    """Data that tell of each batch they give."""

    data: Data
    tick: Callable[[], None]

    @property
    def clients(self) -> Sequence[ClientId]:
        return self.data.clients

    def size(self, client: ClientId) -> int:
        return self.data.size(client)

    def batches(
        self,
        client: ClientId,
        size: int,
        epochs: int,
        generator: torch.Generator,
        by_length: bool = False,
    ) -> Iterator[Batch]:
        for batch in self.data.batches(client, size, epochs, generator, by_length):
            yield batch
            self.tick()

    def chosen(self, client: ClientId, places: Tensor, generator: torch.Generator) -> Batch:
        self.tick()
        return self.data.chosen(client, places, generator)

    def training(self, client: ClientId) -> Any:
        return self.data.training(client)

    def held_out(self, client: ClientId | None = None) -> Any:
        return self.data.held_out(client)


@dataclass(frozen=True)
class Keeping:
    """An engine of one client that keeps what it replies."""

    worker: Worker
    client: ClientId
    replies: list[Reply | Failure] = field(default_factory=list)

    @property
    def clients(self) -> Sequence[ClientId]:
        return [self.client]

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for job in jobs:
            self.replies.append(self.worker(job))
            yield self.replies[-1]


@dataclass(frozen=True)
class Contributor:
    """Someone with examples, before training.

    Attributes:
      reads: how its data are read otherwise than the plan says, in words.
      steps: how many batches training takes; without rounds 1, as all are counted at once.
    """

    site: Site
    client: ClientId
    reads: Sequence[str] = ()

    @property
    def steps(self) -> int:
        plan = self.site.plan
        return plan.local.steps_for(self.site.data.size(self.client)) if plan.rounds else 1

    @property
    def counted(self) -> int:
        """How many examples its file is of: those to train on, or those to be measured on."""
        site, client = self.site, self.client
        return site.count_own_held_out(client) if site.plan.asking else site.data.size(client)

    @property
    def words(self) -> str:
        """What its file is of."""
        held_out = "held-out " if self.site.plan.asking else ""
        return f"{say_count(self.counted, f'{held_out}examples')} of {self.client}"

    @property
    def examples(self) -> str:
        """A digest of the examples to train on."""
        return Worker(self.site, Nowhere()).digest(self.client)


def from_own_data(
    invitation: Invitation,
    data: OwnData,
    name: ClientId,
    device: str = "cpu",
    look: Onlooker | None = None,
) -> Contributor:
    """A client whose examples are all those to train on in its data.

    The labels are the study's, by name; a client need not have them all.

    Args:
      look: shown the examples as they were read.

    Raises:
      DataError: the data cannot be read, or have a label that the study does not have.
      RunError: the name is none, or the base model is not the study's.
    """
    check_name(name)
    _check_here(invitation)
    site = own_site(invitation.plan, data, name, device, look)
    _check_measurable(site, name)
    return Contributor(site, name, data.told)


def own_site(
    plan: Plan, data: OwnData, name: ClientId, device: str = "cpu", look: Onlooker | None = None
) -> Site:
    """A site of one client, with all the examples to train on in its data; `look` is shown them.

    Raises:
      DataError: the data cannot be read, or have a label that the plan does not name.
    """
    examples = data.examples(plan)
    if look is not None:
        look(examples, plan.task)
    # Whoever measures: a model is measured at its owners by a later plan too.
    share = getattr(plan.partition, "held_out", None)
    division = divide_one(name, examples, share or 0.0, plan.seed)
    site = site_of(plan, examples, division, device)
    # As before a run: without gradients of single examples, training would raise no error and learn
    # nothing.
    if plan.local.event is not None and plan.local.event.accounted:
        check_gradients(site)
    return site


def from_partition(
    invitation: Invitation, number: int, device: str = "cpu", look: Onlooker | None = None
) -> Contributor:
    """The client number `number`, from 0, of the plan's own partition; `look` is shown the data.

    Raises:
      DataError: the plan's data cannot be read, or there is no such client.
      RunError: the base model is not the study's.
    """
    _check_here(invitation)
    site = open_run_site(invitation.plan, device, look)
    clients = site.data.clients
    if not 0 <= number < len(clients):
        raise DataError(
            f"--client {number}: the plan's partition has {len(clients)} clients, counted from 0"
        )
    check_name(clients[number])
    _check_measurable(site, clients[number])
    return Contributor(site, clients[number])


def _check_measurable(site: Site, client: ClientId) -> None:
    """Raises DataError for an owner that is to measure, and has nothing to measure on."""
    if site.plan.asking and not site.count_own_held_out(client):
        raise DataError(
            f"{client!r} has no held-out examples, on which its file is to say how the model does. "
            "Put examples that it did not train on into a test split of its data, or send no file"
        )


def contribute(
    invitation: Invitation,
    who: Contributor,
    key: "Ed25519PrivateKey | None",
    tick: Callable[[], None],
    store: Store | None = None,
) -> tuple[Header, bytes]:
    """Train, or count where the plan has no rounds, and give the file's header and bytes; `tick` is
    called after each batch, or once all are counted.

    Args:
      store: what the owner keeps, where files are masked.

    Raises:
      RunError: training or counting failed.
    """
    terms = invitation.terms
    site = replace(who.site, data=Counted(who.site.data, tick))
    engine = Keeping(Worker(site, store or Nowhere()), who.client)
    # The loop runs for what it asks alone: the state that it comes to is thrown away, and the reply
    # is the file.
    [(_, ledger)] = federate(site.plan, engine, invitation.state)
    if not site.plan.rounds:
        tick()
    reply = engine.replies[0]
    failed = [*ledger.failed.values(), *unmeasured(site.plan, ledger.reports).values()]
    if not isinstance(reply, Reply) or failed:
        raise RunError(f"{who.client!r} has nothing to send: {'; '.join(failed)}")
    examples = None if hides_size(site.plan) else who.counted
    told = examples, ledger.privacy, list(who.reads) or None
    return write_signed(terms, who.client, reply.payload, key, *told)


def _check_here(invitation: Invitation) -> None:
    """Make sure that training here is what the invitation means."""
    plan, terms = invitation.plan, invitation.terms
    if (own := base_fingerprint(plan)) != terms.base:
        raise RunError(
            f"the base model here ({own}) is not the study's ({terms.base}): "
            "take the same weights and the same versions of torch, transformers and peft"
        )
    if transforms_digest(plan.task) != terms.transforms:
        raise RunError(
            "what becomes of images or texts here is not what the study does: "
            "take the same version of fedpeft, and the same image processor or tokenizer with the "
            "base model"
        )
