"""What training a plan's clients costs in operations and memory, told on the meta device."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import nn

from fedpeft.compute.frozen_linear import LEAST_WEIGHT
from fedpeft.compute.objective import Objective
from fedpeft.compute.scores import evaluate, outputs_of
from fedpeft.core.interfaces import Data
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import move_to
from fedpeft.core.types import Batch, ClientId, Context, Tensors
from fedpeft.engines.auto import typical
from fedpeft.forecasts.stand_in import Holdings, measured_batches
from fedpeft.forecasts.step_cost import Cost, Live, cost_of
from fedpeft.plan.plan import Plan
from fedpeft.rounds.prepare import kept_below

LOOKED_AT = 4
"""Batches of a client whose costs are told; the others cost as these on average."""
BLAS = (nn.Linear,)


@dataclass(frozen=True)
class Training:
    """What one client's training costs in a round.

    Attributes:
      client: the one of middle size, which is looked at.
      steps: its optimizer steps in a round.
      step_flop: of one step, on average.
      step_peak: bytes that live at once in a step, beside weights and data, of the largest batch.
      step_resident: bytes that a process holds for them, see `Live`.
      row_saved: bytes that a step keeps for the backward pass, for each example.
      evaluation: of all common held-out examples, in batches; its memory is that of one batch.
      round_steps: steps of all clients of a usual round.
      error: why nothing is known, in words; empty otherwise.
    """

    client: ClientId
    steps: int
    round_steps: float
    step_flop: int = 0
    step_peak: int = 0
    step_resident: int = 0
    batch: int = 0
    evaluation: Cost = Cost(0, 0, 0)
    error: str = ""

    @property
    def client_flop(self) -> int:
        """The operations of the client in a round."""
        return self.step_flop * self.steps

    @property
    def round_flop(self) -> float:
        """The operations of all clients in a round."""
        return self.step_flop * self.round_steps


def cost_training(holdings: Holdings, model: nn.Module, params: Tensors, device: str) -> Training:
    """The cost of a step and of an evaluation.

    Args:
      model: on the meta device except for what is trained, or on the CPU with numbers.
      params: what is trained, with numbers.
      device: where the model is.
    """
    plan, data = holdings.plan, holdings.data
    client = typical(data, data.clients)
    cohort = min(plan.cohort, len(data.clients))
    steps = [plan.local.steps_for(data.size(one)) for one in data.clients]
    known = Training(
        client, plan.local.steps_for(data.size(client)), cohort * sum(steps) / len(steps)
    )
    try:
        return _with_costs(known, holdings, model, params, device)
    except Exception as error:  # what a model or a part raises of tensors without numbers
        words = (str(error).strip().splitlines() or ["no reason given"])[0]
        return replace(known, error=f"{type(error).__name__}: {words}")


def _with_costs(
    known: Training, holdings: Holdings, model: nn.Module, params: Tensors, device: str
) -> Training:
    plan, data = holdings.plan, holdings.data
    context = _context(plan, data, known)
    shared = {
        f"{owner}/{name}": x
        for owner, some in _shares(plan, params).items()
        for name, x in some.items()
    }
    start = {**params, **shared}
    batches = list(islice(plan.local.batches(data, start, context), LOOKED_AT))
    objective = Objective(model, plan.task)
    begun = move_to(start, device)
    model.train()
    with Live():
        carry = plan.local.begin(begun, {}, context)
    private, reused = plan.local.event is not None, kept_below(plan)

    def step(batch: Batch) -> Cost:
        moved = move_to(batch, device)
        return cost_of(lambda: plan.local.step(carry, moved, objective), not private, reused)

    costs = [step(batch) for batch in batches]
    largest = max(range(len(costs)), key=lambda k: costs[k].peak)
    return replace(
        known,
        step_flop=sum(cost.flop for cost in costs) // len(costs),
        step_peak=costs[largest].peak,
        step_resident=max(cost.resident for cost in costs),
        batch=len(batches[largest]["mask"]),
        evaluation=_evaluation(plan, data, model, move_to(params, device)),
    )


def _shares(plan: Plan, params: Tensors) -> Mapping[str, Tensors]:
    state = plan.first_state(params)
    return {owner: state.shared[owner] for owner in plan.local_shares}


def _context(plan: Plan, data: Data, known: Training) -> Context:
    secret = Secret.fresh() if plan.private_part else None
    size = data.size(known.client)
    about = plan.run, 0, plan.rounds, known.client
    return Context(*about, size, known.steps, plan.seed, secret, 1.0)


def _evaluation(plan: Plan, data: Data, model: nn.Module, params: Tensors) -> Cost:
    """Of all examples that a round is measured on, told by the first batch of them. A batch is
    still there while the next one is made."""
    batches, reused = measured_batches(plan, data), kept_below(plan)
    making = Live(reused)
    with making:
        first = next(batches, None)
    if first is None:
        return Cost(0, 0, 0)
    moved = move_to(first, str(next(iter(params.values())).device))
    one = _measuring(plan, model, params, moved)
    further = [len(batch["mask"]) for batch in batches]
    rows = len(first["mask"]) + sum(further)
    beside = making.now if further else 0, making.resident_now if further else 0
    return Cost(
        one.flop * -(-rows // len(first["mask"])),
        max(making.now + one.peak, making.peak + beside[0]),
        max(making.resident_now + one.resident, making.resident + beside[1]),
    )


def _measuring(plan: Plan, model: nn.Module, params: Tensors, batch: Batch) -> Cost:
    """Of one batch of held-out examples.

    What a model writes of them counts as one more pass. It ends where the model says so, which no
    shape tells, and to write all that it may takes minutes on the meta device.
    """
    reused = kept_below(plan)
    if not hasattr(plan.task, "forward_measured"):
        return cost_of(lambda: evaluate(plan.task, model, params, [batch]), reused=reused)

    def read() -> list[object]:
        outputs = outputs_of(plan.task, model, params, [batch])
        return [plan.task.losses(made, part) for part, made in outputs]

    once = cost_of(read, reused=reused)
    return replace(once, flop=2 * once.flop)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return _bytes_of([*model.parameters(), *model.buffers()])


def frozen_linear_bytes(model: nn.Module) -> int:
    """Bytes of the frozen weights that may be laid out for the processor's kernels."""
    layers = (layer for layer in model.modules() if type(layer) in BLAS)
    weights: list[Any] = [layer.weight for layer in layers]
    return _bytes_of(x for x in weights if not x.requires_grad and x.numel() >= LEAST_WEIGHT)


def _bytes_of(tensors: Iterable[Any]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
