"""A federation of canaries: what a plan's noise is to hide, at its most visible.

A canary's loss is linear, ℓᵢ(w) = s·L·⟨uᵢ, w⟩, so that its gradient is s·L·uᵢ wherever training
stands. The directions uᵢ are of length 1 and have no coordinate in common: a canary shows on its
own coordinates, and on no other's. They are the Dirac canaries of Nasr et al., 2023
(arXiv:2302.07956), and of Steinke et al., 2023 (arXiv:2305.08846), with some coordinates instead
of one. They may lie in different tensors, as a clip norm is that of all tensors as one vector. L
is ten times the clip norm: what reaches the noise is as long as anything may be.

What a coin decides is what the accountant's neighbours differ in:

    unit                      in                      out
    an example (dp_sgd)       among the only          not there
                              client's examples
    a client (client_dp)      a client that answers   a client that does not
    a client (local_dp)       a client with s = 1     a client with s = −1

All else is the plan's: the part that clips and adds noise, local steps, codecs, the bytes on their
way, admission, the mean. Replaced is what follows from noisy values and so can only hide more
(optimizers with a memory, aggregators, sums that are secret), and what is not there without real
examples (algorithms, routing, terms).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isfinite, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.compute.trainable import is_statistic
from fedpeft.core.outputs import PREDICTION, Outputs
from fedpeft.core.seeds import generator
from fedpeft.core.types import Batch, ClientId, Event, Table, Tensors
from fedpeft.data.client_data import Partitioned
from fedpeft.errors import PlanError
from fedpeft.plan.plan import Plan
from fedpeft.plan.tables import Nodes
from fedpeft.registry import build
from fedpeft.rounds.site import Site

FEWEST = 20
"""With fewer canaries no number of right guesses tells much, and all of them may be out."""
WIDTH = 4
"""Coordinates of a canary, where the plan trains enough of them."""
BY_CLIP = 10.0
"""A canary's gradient by the clip norm."""
PLAIN_STEP = {"lr": 1.0, "schedule": "constant", "warmup": 0.0, "terms": ()}


@dataclass(frozen=True)
class CanaryTask:
    """Losses that are linear in the trained tensors, ℓ = sign · length / √width · Σ w[places].

    Attributes:
      model: whose tensors these are.
      names: of the tensors; `places` count through them as one vector.
      length: L.
    """

    model: nn.Module
    names: tuple[str, ...]
    length: float

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return self.model

    def prepare(self, table: Table) -> Tensors:
        return dict(table.columns)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return rows

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        flat = torch.cat([_tensor(model, name).reshape(-1) for name in self.names])
        return {PREDICTION: flat[batch["places"]].sum(-1)}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        width = batch["places"].shape[-1]
        return batch["sign"] * self.length / sqrt(width) * outputs[PREDICTION]

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.losses(outputs, batch)}


def _tensor(model: nn.Module, name: str) -> Tensor:
    """The tensor that a module holds under a name, swapped in or not."""
    owner, _, own = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), own)
    return found


@dataclass(frozen=True)
class Canaries:
    """The canaries, their coins, and a site on which they train as the plan's clients would.

    Attributes:
      site: its plan is the audit's.
      event: what the plan's private part says that a participation gives away.
      included: (m,), true for what is in.
      places: (m, width), each canary's coordinates.
      names: of the tensors that the coordinates count through.
      numbers: by client which canary it is; empty where canaries are examples.
      absent: the clients that are out and do not answer.
      unit: the most that one unit moves the sum by.
      divisor: what makes a mean of the sum.
    """

    site: Site
    event: Event
    included: Tensor
    places: Tensor
    names: tuple[str, ...]
    numbers: Mapping[ClientId, int]
    absent: frozenset[ClientId]
    unit: float
    divisor: float

    @property
    def local(self) -> bool:
        """Whether the noise is in what each canary sends by itself."""
        return bool(self.numbers) and not self.event.central

    def along(self, tensors: Tensors, number: int | None = None) -> Tensor:
        """How far tensors go down each canary's gradient, (m,), or down that of one, (1,)."""
        places = self.places if number is None else self.places[number : number + 1]
        flat = torch.cat([tensors[name].reshape(-1) for name in self.names])
        return -flat[places].double().sum(1) / sqrt(places.shape[1])


def hatch(site: Site, count: int, rounds: int, seed: int) -> Canaries:
    """So many canaries for the plan of a site, each in or out by a coin from `seed`.

    Args:
      rounds: in which each takes part.

    Raises:
      PlanError: the plan promises nothing that could be audited, or there are too few canaries or
        too many.
    """
    event, part = _accounted(site.plan), site.plan.private_part
    draws = generator(seed, "canaries")
    included = torch.rand(count, generator=draws) < 0.5
    clients = [] if event.unit == "example" else [f"canary{k:06d}" for k in range(count)]
    plan = _audited(site.plan, max(1, len(clients)), rounds)
    names = _watched(plan, site.params())
    sizes = [site.params()[name].numel() for name in names]
    places = _places(sum(sizes), count, draws)
    unit = part.clip_norm if isfinite(part.clip_norm) else 1.0
    task = CanaryTask(site.model, names, BY_CLIP * unit)
    data = _data(task, places, included, clients, event)
    absent = [name for name, there in zip(clients, included, strict=False) if not there]
    return Canaries(
        site=Site(replace(plan, task=task), site.model, data, site.classes, site.device),
        event=event,
        included=included,
        places=places,
        names=names,
        numbers={name: k for k, name in enumerate(clients)},
        absent=frozenset(absent if event.central else ()),
        unit=unit,
        divisor=float(len(clients) or getattr(part, "batch_size", 1)),
    )


def _watched(plan: Plan, params: Tensors) -> tuple[str, ...]:
    """The names of what every client trains and sends, without what is measured."""
    trained = plan.view("", 0, ()).trained(params)
    return tuple(
        name for name, x in trained.items() if x.dtype == torch.float32 and not is_statistic(name)
    )


def _data(
    task: CanaryTask, places: Tensor, included: Tensor, clients: Sequence[ClientId], event: Event
) -> Partitioned:
    """One canary for each client; without clients, one client with the canaries that are in."""
    sign = torch.ones(len(places))
    if clients and not event.central:
        sign = torch.where(included, 1.0, -1.0)
    rows = {"places": places, "sign": sign}
    parts = {name: torch.tensor([k]) for k, name in enumerate(clients)}
    held_out = {name: x[:0] for name, x in rows.items()}
    return Partitioned(task, rows, held_out, parts or {"canaries": included.nonzero()[:, 0]})


def _accounted(plan: Plan) -> Event:
    """What the plan's private part gives away.

    Raises:
      PlanError: it has none, or one without a guarantee or a clip norm.
    """
    part = plan.private_part
    if part is None or not part.event.accounted:
        raise PlanError(
            "this plan promises no epsilon, so that there is nothing to hold an audit against: "
            'set local = "dp_sgd", or a stage "client_dp" or "local_dp"'
        )
    if any(part is one for one in plan.algorithms):
        raise PlanError(
            f"canaries train, and {type(part).__name__} adds noise to sums of features, which "
            "nobody trains: there is no audit of it; its noise is held to the accountant's by tests"
        )
    if not hasattr(part, "clip_norm"):
        raise PlanError(
            f"a canary is longer than the clip norm, and {type(part).__name__} has no clip_norm: "
            "give the part a field of that name"
        )
    event: Event = part.event
    return event


def _places(size: int, count: int, draws: torch.Generator) -> Tensor:
    """For each canary coordinates that no other has, (count, width).

    Raises:
      PlanError: there are not enough, or too few canaries.
    """
    if not FEWEST <= count <= size:
        raise PlanError(
            f"{count} canaries cannot be told apart: this plan trains {size} numbers, and an audit "
            f"takes {FEWEST} to {size} canaries"
        )
    width = min(WIDTH, size // count)
    return torch.randperm(size, generator=draws)[: count * width].view(count, width)


def _audited(plan: Plan, clients: int, rounds: int) -> Plan:
    """The plan with its private part, and without what only hides more."""
    part: Any = plan.private_part
    sgd = build("optimizer", {"name": "sgd", "momentum": 0.0, "nesterov": False})
    in_training: bool = part is plan.local
    stages = () if in_training else (part,)
    if in_training:
        settings: dict[str, Any] = {**PLAIN_STEP, "optimizer": sgd}
        own = {slot.name for slot in fields(part)}
        local = replace(part, **{key: x for key, x in settings.items() if key in own})
    else:
        local = replace(build("local", {"name": "descent", "lr": 1.0}), optimizer=sgd)
    return replace(
        plan,
        local=local,
        stages=stages,
        sampler=build("sampler", "uniform"),
        algorithms=(),
        routing=(),
        exchange=build("exchange", "plain"),
        aggregator=build("aggregator", "mean"),
        server=build("server", "average"),
        server_steps=(),
        attacks=(),
        rounds=rounds,
        cohort=clients,
        classes=(),
        privacy=replace(plan.privacy, target_epsilon=None),
        nodes=Nodes(),
        phase=(),
        schedule=(),
    )
