"""What a plan is going to send, compute, hold and give away, before anything runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fedpeft.compute.device_memory import available
from fedpeft.errors import PlanError, say_count
from fedpeft.forecasts.backbone import Backbone, describe_backbone
from fedpeft.forecasts.blueprint import CPU, META, draw_blueprint, draw_with_numbers, fill_trained
from fedpeft.forecasts.costs import Training, cost_training
from fedpeft.forecasts.memory import MemoryNeed, Requirements, resident
from fedpeft.forecasts.rehearsal import SECONDS, Traffic
from fedpeft.forecasts.rehearsed import rehearse_anyhow
from fedpeft.forecasts.stand_in import (
    Holdings,
    data_bytes,
    find_holdings,
    largest_data_bytes,
    stand_in_site,
)
from fedpeft.plan.calibration import Spending
from fedpeft.plan.plan import Plan
from fedpeft.rounds.prepare import check_trained

COPIES = 6
"""Of the trained tensors, in a rehearsal."""


@dataclass(frozen=True)
class Forecast:
    """The account of a plan before its first round.

    Attributes:
      clients: how many there are; `cohort` of them take part in a round.
      base: None for a model that is no folder or hub name.
      columns: what the examples must have; empty where they were not read.
      memory: by "simulation", "client" and "server".
      free: bytes of memory that this machine has free.
      privacy: ε after all rounds, as rounds.jsonl will tell it; None where nothing is private.
      notes: what was assumed or left out.
    """

    plan: Plan
    clients: int
    cohort: int
    base: Backbone
    columns: tuple[str, ...]
    traffic: Traffic
    training: Training
    memory: Mapping[str, MemoryNeed]
    free: int
    privacy: Mapping[str, Any] | None
    notes: Sequence[str]


def forecast(plan: Plan, examples_each: int | None = None, seconds: float = SECONDS) -> Forecast:
    """Rehearse a plan without training: the model is shapes alone wherever that is enough.

    Args:
      examples_each: how many examples each client is taken to have, where they are not here; None
        to read the plan's own.
      seconds: how long the conversation is rehearsed at most.

    Raises:
      PlanError: the plan cannot run, or something that the forecast follows from is not here.
      DataError: see `divide`.
    """
    holdings = find_holdings(plan, examples_each)
    plan = holdings.plan
    blueprint = draw_blueprint(plan, holdings.classes)
    names = list(plan.method.names(blueprint.model))
    check_trained(plan, names)
    _check_room(plan, blueprint.model, names)
    libraries = resident() - (0 if holdings.examples is None else data_bytes(holdings))
    model = fill_trained(blueprint.model, names, plan.seed)
    params = stand_in_site(holdings, model).params()
    traffic, notes = rehearse_anyhow(_unsigned(holdings), model, seconds)
    training = cost_training(holdings, model, params, META)
    if training.error and blueprint.looks:
        real, _ = draw_with_numbers(plan, holdings.classes)
        training = cost_training(holdings, real, params, CPU)
    needs = Requirements(
        plan, model, params, training, libraries, data_bytes(holdings), largest_data_bytes(holdings)
    )
    columns = tuple(holdings.examples.train.columns) if holdings.examples else ()
    clients = list(holdings.data.clients)
    return Forecast(
        plan=plan,
        clients=len(clients),
        cohort=min(plan.cohort, len(clients)),
        base=describe_backbone(plan, holdings.classes, params),
        columns=columns,
        traffic=traffic,
        training=training,
        memory={
            "simulation": needs.simulation(),
            "client": needs.client(),
            "server": needs.server(),
        },
        free=available("cpu"),
        privacy=_spent(plan, clients),
        notes=[*_notes(holdings, blueprint.weights, traffic, training, plan), *notes],
    )


def _unsigned(holdings: Holdings) -> Holdings:
    """The same where nobody signs: the keys of the owners are theirs alone."""
    exchange: Any = holdings.plan.exchange
    if not exchange.signers:
        return holdings
    plain = replace(holdings.plan, exchange=replace(exchange, keys=()))
    return replace(holdings, plan=plain)


def _check_room(plan: Plan, model: nn.Module, names: Sequence[str]) -> None:
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    trained = sum(every[name].numel() * every[name].element_size() for name in names)
    free = available("cpu")
    if COPIES * trained > free:
        raise PlanError(
            f"{type(plan.method).__name__} trains {trained:,} bytes, of which a rehearsal, as any "
            f"server, holds {COPIES} copies, and this machine has {free:,} bytes free: set method "
            'to one that trains less, such as "lora", or plan on a machine with more memory'
        )


def _spent(plan: Plan, clients: Sequence[str]) -> Mapping[str, Any] | None:
    if plan.private_part is None:
        return None
    spending = Spending(plan, clients)
    spending.count_whole()
    return spending.so_far()


def _notes(
    holdings: Holdings, weights: bool, traffic: Traffic, training: Training, plan: Plan
) -> Iterator[str]:
    if holdings.why:
        yield holdings.why
    if not weights and plan.method.pretrained:
        yield "the base's weights are not here: all of its layers are taken to be in them"
    if holdings.examples is None:
        yield "no held-out examples are known: an evaluation is not counted"
    if not traffic.whole:
        done = len(traffic.rounds)
        yield (
            f"{done} of {say_count(plan.rounds, 'rounds')} were rehearsed; "
            "the others count as these on average"
        )
    for way, codec in traffic.varies.items():
        yield f"the sizes of the codec {codec!r} ({way}) depend on the numbers: they are about so"
    if training.error:
        yield (
            "operations and memory of a step could not be told without its numbers "
            f"({training.error}): they count as 0"
        )
    elif plan.local.precision != "float32":
        yield f"memory of a step is that of float32, not of {plan.local.precision}"
    if plan.exchange.signers:
        yield (
            "the owners' signatures are not counted: some hundred bytes for each of an owner's "
            "messages, and for each owner in the server's"
        )
    yield from traffic.notes
