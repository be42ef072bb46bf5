"""What a plan is going to send, compute, hold and give away, before anything runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fedpeft.compute.device_memory import available
from fedpeft.core.seeds import seed_torch
from fedpeft.core.types import Tensors
from fedpeft.data.client_data import Partitioned
from fedpeft.errors import FedpeftError, PlanError
from fedpeft.forecasts.blueprint import (
    CPU,
    MetaMethod,
    MetaPlan,
    MetaTask,
    draw_blueprint,
    fill_trained,
)
from fedpeft.forecasts.costs import Training, cost_training, weight_bytes
from fedpeft.forecasts.memory import Memory, Needs, resident
from fedpeft.forecasts.rehearsal import SECONDS, Traffic, rehearse
from fedpeft.forecasts.stand_in import (
    Holdings,
    data_bytes,
    find_holdings,
    largest_data_bytes,
    stand_in_site,
)
from fedpeft.plan.calibration import Spending
from fedpeft.plan.models import build_model
from fedpeft.plan.plan import Plan
from fedpeft.rounds.prepare import check_trained
from fedpeft.storage.locate import locate

MOST_OF_MEMORY = 0.25
"""The share of the free memory that a rehearsal with weights, or with the trained tensors, may
take."""
COPIES = 6
"""Of the trained tensors, in a rehearsal."""
WEIGHT_FILES = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Base:
    """The model that every owner must have.

    Attributes:
      name: as the plan calls it.
      parameters, trained: how many numbers it has, and how many of them are trained.
      disk: bytes of its weights' files, or of as many float32 numbers where they are not here.
      here: whether its weights are here.
    """

    name: str
    parameters: int
    trained: int
    disk: int
    here: bool


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
    base: Base
    columns: tuple[str, ...]
    traffic: Traffic
    training: Training
    memory: Mapping[str, Memory]
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
    traffic, notes = _rehearsed(holdings, model, seconds)
    training = cost_training(holdings, model, params)
    needs = Needs(
        plan, model, params, training, libraries, data_bytes(holdings), largest_data_bytes(holdings)
    )
    columns = tuple(holdings.examples.train.columns) if holdings.examples else ()
    clients = list(holdings.data.clients)
    return Forecast(
        plan=plan,
        clients=len(clients),
        cohort=min(plan.cohort, len(clients)),
        base=_base(plan, model, params),
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


def _rehearsed(holdings: Holdings, model: nn.Module, seconds: float) -> tuple[Traffic, list[str]]:
    """The traffic, with the base as shapes alone, or, where a part computes something with the
    model, with its weights.

    Raises:
      PlanError: neither is possible.
    """
    try:
        return rehearse(stand_in_site(holdings, model), seconds), []
    except Exception as error:  # whatever a part makes of tensors without numbers
        first = error
    size, free = weight_bytes(model), available("cpu")
    if size > MOST_OF_MEMORY * free:
        raise PlanError(
            f"{_words(first)}. Parts of this plan compute with the model, whose weights "
            f"({size:,} bytes) are too large for a rehearsal here ({free:,} bytes are free): plan "
            "on a machine with more memory"
        ) from first
    real, here = _with_weights(holdings)
    try:
        found = rehearse(stand_in_site(holdings, real), seconds)
    except FedpeftError:
        raise
    except Exception as error:  # parts that users write may raise anything
        raise PlanError(f"the plan's conversation fails: {_words(error)}") from error
    whose = "its weights" if here else "random weights"
    return found, [f"parts of this plan compute with the model: it was rehearsed with {whose}"]


def _with_weights(holdings: Holdings) -> tuple[nn.Module, bool]:
    """The model with numbers, and whether they are the base's own."""
    plan, classes = holdings.plan, holdings.classes
    try:
        return plan.model(classes), True
    except FedpeftError:
        task = MetaTask(plan.unquantized.task, False, CPU)
        drawn = MetaPlan(task, MetaMethod(plan.method, CPU), plan.local, plan.seed)
        with seed_torch(plan.seed):
            return build_model(drawn, classes), False


def _words(error: BaseException) -> str:
    words = (str(error).strip().splitlines() or ["no reason given"])[0]
    return words if isinstance(error, FedpeftError) else f"{type(error).__name__}: {words}"


def _base(plan: Plan, model: nn.Module, params: Tensors) -> Base:
    task: Any = plan.task
    name = str(getattr(task, "model", type(task).__name__))
    base = getattr(task, "base", name)
    numbers = sum(x.numel() for x in model.parameters())
    folder = locate(str(base))
    files = _weight_files(folder) if folder is not None and folder.is_dir() else []
    disk = sum(file.stat().st_size for file in files)
    trained = sum(x.numel() for x in params.values())
    return Base(name, numbers, trained, disk or 4 * numbers, bool(disk))


def _weight_files(folder: Path) -> list[Path]:
    """Those of the first form that there are, of which the others are copies."""
    for pattern in WEIGHT_FILES:
        if found := sorted(folder.rglob(pattern)):
            return found
    return []


def _spent(plan: Plan, clients: Sequence[str]) -> Mapping[str, Any] | None:
    if plan.private_part is None:
        return None
    spending = Spending(plan, clients)
    for round_ in range(plan.rounds):
        spending.count_round(round_)
    return spending.so_far()


def _notes(
    holdings: Holdings, weights: bool, traffic: Traffic, training: Training, plan: Plan
) -> Iterator[str]:
    if holdings.why:
        yield holdings.why
    if not weights and plan.method.pretrained:
        yield "the base's weights are not here: all of its layers are taken to be in them"
    if not isinstance(holdings.data, Partitioned):
        yield "no held-out examples are known: an evaluation is not counted"
    if not traffic.whole:
        done = len(traffic.rounds)
        yield (
            f"{done} of {plan.rounds} rounds were rehearsed; the others count as these on average"
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
    yield from traffic.notes
