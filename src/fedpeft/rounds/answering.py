"""The client that answers a message, as the handlers of algorithms see it."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedpeft.compute.held_out import HeldOut, score_held_out
from fedpeft.compute.scores import evaluate, outputs_of
from fedpeft.core.interfaces import Store
from fedpeft.core.outputs import Outputs
from fedpeft.core.types import Batch, ClientId, Job, Tensors, Weighted
from fedpeft.core.views import View
from fedpeft.errors import PlanError, RunError
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import has_kept
from fedpeft.rounds.noise_keys import NoiseKey, key_of_answer
from fedpeft.rounds.noise_keys import digest_examples as digest_examples
from fedpeft.rounds.received import Received
from fedpeft.rounds.site import Site, threads


def _unnamed(client: ClientId) -> str:
    raise RuntimeError(f"nobody names the examples of {client!r}, from which noise would follow")


@dataclass
class Client:
    """The client that answers a message, as a handler sees it.

    Attributes:
      view: what it sees of the server's tensors in this round.
      memory: what it remembers, by owner.
      changed: whether a handler has told it to remember something.
      digest: gives a name for the examples of a client, for `secret`.
    """

    site: Site
    store: Store
    job: Job
    view: View
    found: Received
    memory: dict[str, Tensors]
    changed: bool = False
    digest: Callable[[ClientId], str] = _unnamed

    @property
    def name(self) -> ClientId:
        return self.job.client

    @property
    def received(self) -> Tensors:
        """What of the server's parameters it trains."""
        return self.found.trained

    def secret(self) -> NoiseKey | None:
        """What the noise of an answer is drawn from, in private plans."""
        if not self.site.plan.private_part:
            return None
        return key_of_answer(self.store, self.job, self.digest(self.name))

    def recall(self, owner: str) -> Tensors:
        """What an algorithm of that name remembers here; empty at first."""
        return self.memory.get(owner, {})

    def remember(self, owner: str, tensors: Tensors) -> None:
        """Keep tensors until the next message of the algorithm; they never leave the client."""
        self.memory = {**self.memory, owner: dict(tensors)}
        self.changed = True

    def class_counts(self, classes: int) -> list[int]:
        """How many examples of each class it trains on.

        Raises:
          PlanError: its examples have no labels.
        """
        counts = torch.zeros(classes, dtype=torch.int64)
        for batch in self.site.data.training(self.name):
            if "label" not in batch:
                raise PlanError("class counts are for examples with labels: leave them out")
            # Rows with a mask of 0 fill a batch up and are nobody's examples.
            label, mask = batch["label"].cpu(), batch["mask"].cpu()
            counts += torch.bincount(label[mask > 0], minlength=classes)
        return [int(count) for count in counts]

    def outputs(
        self,
        head: str | None = None,
        params: Tensors | None = None,
        batches: Iterable[Batch] | None = None,
    ) -> Iterator[tuple[Batch, Outputs]]:
        """What a model makes of examples.

        Args:
          head: the module whose input comes as `features`.
          params: of all that it trains; None for the model that it received with its own tensors in
            their places.
          batches: of examples of its own; None for those that it trains on.
        """
        site = self.site
        params = {**self.received, **self.recall("personal")} if params is None else params
        batches = site.data.training(self.name) if batches is None else batches
        held = {**self.found.objective.held, **params}
        on = {name: x.to(site.device) for name, x in held.items()}
        with threads(site.plan.compute.threads):
            yield from outputs_of(site.task, site.model, on, map(site.on_device, batches), head)

    def score_held_out(self, classes: int, reads: Collection[str]) -> HeldOut:
        """What its model makes of the examples that it holds out, of which there may be none.

        Its model is the one that it received with its own tensors in their places; where local
        training makes it a model of its own, it is that one, once it has any.

        Args:
          classes: how many are counted by; 0 for a task without classes.
          reads: what metrics read beside the confusion matrix.
        """
        site, local = self.site, self.site.plan.local
        params = {**self.found.objective.held, **self.received, **self.recall("personal")}
        if hasattr(local, "own_model"):
            params |= local.own_model(self.recall("local"))
        on = {name: x.to(site.device) for name, x in params.items()}
        batches = map(site.on_device, site.data.held_out(self.name))
        with threads(site.plan.compute.threads):
            return score_held_out(site.task, site.model, on, batches, classes, reads)

    def measure(self, params: Tensors, batches: Any) -> Mapping[str, Weighted]:
        """The task's metrics of parameters on batches of its own."""
        site = self.site
        on = {name: x.to(site.device) for name, x in params.items()}
        with threads(site.plan.compute.threads):
            return evaluate(site.task, site.model, on, map(site.on_device, batches))

    def measure_apart(self, params: Tensors) -> Mapping[str, Weighted]:
        """The same on the examples that it sets apart; empty if it has none."""
        apart = self.site.apart
        if apart is None or self.name not in apart.clients:
            return {}
        return self.measure(params, apart.training(self.name))


def without_left_out(
    shared: Tensors,
    client: Client,
    leaves: Sequence[Callable[..., Collection[str]]],
    start: Tensors,
    delta: Tensors,
) -> dict[str, Tensor]:
    """What of its changes a client sends.

    Args:
      shared: those that its view sends.
      leaves: the `leave_out` of the plan's parts.
      start, delta: what it trained from, and all changes.
    """
    if not leaves:
        return dict(shared)
    trained = {name: start[name] + x for name, x in delta.items()}
    out = {name for leave_out in leaves for name in leave_out(client, trained)}
    return {name: x for name, x in shared.items() if name not in out}


def check_memory(memory: Mapping[str, Tensors], client: Client, plan: Plan) -> None:
    """Make sure that a client does not start afresh in the middle of a run.

    Args:
      memory: what it is to remember of this round, by owner.
      client: with what it remembered before.
      plan: of all rounds.

    Raises:
      RunError: it remembers nothing of the last round in which it took part, and would now.
    """
    last = client.job.accepted
    if last is None or client.memory or not any(memory.values()):
        return
    if has_kept(plan, last):
        raise RunError(f"its memory of round {last} is gone: it would start afresh, unseen")
