"""Will one round do? What both ways of the same work come to, and the numbers that are said to tell
beforehand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from math import sqrt
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from fedpeft.compute.scores import score_batches
from fedpeft.core.low_rank import EXACT, B
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import norm, sub, take_prefix
from fedpeft.core.types import ClientId, State, Summed, Tensors
from fedpeft.core.units import is_less_better
from fedpeft.errors import PlanError, RunError
from fedpeft.oneshot.theory import beyond, coins, corrected_bound, paper_bound, secants
from fedpeft.oneshot.trajectories import Way, both_ways, check_comparable
from fedpeft.oneshot.verdict import answer
from fedpeft.oneshot.weight_change import (
    measure_change,
    merge_into_copy,
    multiply_factors,
    objective_without,
)
from fedpeft.plan.calibration import select_cohort
from fedpeft.plan.plan import Plan
from fedpeft.registry import REGISTERED, Code, describe
from fedpeft.rounds.client import weight
from fedpeft.rounds.site import Site, threads
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.folder import reopen

MOST_ROUNDS = 8
"""Beyond so many the default compares no more: a diagnosis is to be quick."""
BATCHES = 8
"""Mini-batches that smoothness is measured on."""


@dataclass(frozen=True)
class Budget:
    """What is compared: `rounds` rounds of all `clients` against one.

    Attributes:
      rounds: 0 for what a client of the plan takes part in on average, from 2 to `MOST_ROUNDS`.
      clients: 0 for the plan's cohort; those of the plan's first round.
      tolerance: the share of the gain that one round may lose.

    Raises:
      PlanError: a value out of range.
    """

    rounds: int = 0
    clients: int = 0
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if self.rounds < 0 or self.rounds == 1 or self.clients < 0 or not 0 < self.tolerance < 1:
            raise PlanError(
                "a diagnosis compares 2 or more rounds of 1 or more clients at a tolerance between "
                f"0 and 1, not {self.rounds} of {self.clients} at {self.tolerance}"
            )


def spread(plan: Plan) -> Plan:
    """The plan; one of a single round with its epochs as so many rounds of one, to compare it
    with."""
    epochs = getattr(plan.local, "epochs", 1)
    if plan.rounds > 1 or epochs == 1:
        return plan
    return replace(plan, rounds=epochs, local=replace(plan.local, epochs=1))  # type: ignore[type-var]


def work(site: Site, budget: Budget) -> tuple[list[ClientId], int]:
    """The clients that train, and the number of rounds.

    Raises:
      PlanError: one round of the plan is not the same local work as several.
    """
    check_comparable(site.plan)
    local: Any = site.plan.local
    if hasattr(local, "epochs") and getattr(local, "steps", 0) > 0:
        raise PlanError(
            "a diagnosis counts epochs, and local.steps are other epochs for each client: leave "
            "steps out, and set local.epochs"
        )
    every = site.data.clients
    plan = replace(site.plan, cohort=budget.clients or site.plan.cohort)
    clients = select_cohort(plan, every, 0)
    mean = site.plan.rounds * min(site.plan.cohort, len(every)) / len(every)
    return clients, budget.rounds or min(MOST_ROUNDS, max(2, round(mean)))


def batches_of(site: Site, clients: Sequence[ClientId], rounds: int) -> int:
    """How often the progress of a diagnosis ticks."""
    return 2 * rounds * sum(site.plan.local.steps_for(site.data.size(client)) for client in clients)


def diagnose(
    site: Site,
    budget: Budget,
    tick: Callable[[], None] = lambda: None,
    run: Path | None = None,
    code: Code = REGISTERED,
) -> dict[str, Any]:
    """Everything that `fedpeft diagnose` tells, as plain values.

    Args:
      run: a folder whose last checkpoint is measured too.
      code: which modules that run's plan may name.

    Raises:
      PlanError: one round of the plan is not the same local work as several.
      RunError: a client fails, or the run has no checkpoint.
    """
    clients, rounds = work(site, budget)
    own = None if run is None else _last(run, code)
    ways = both_ways(site, clients, rounds, tick)
    many, one = ways["rounds"], ways["one"]
    # Without the layout of frozen weights: tuners can be merged.
    plain = site.plan.unquantized.model(site.classes)
    at = {name: merge_into_copy(plain, way.states[-1]) for name, way in ways.items()}
    start = merge_into_copy(plain, many.states[0])
    smooth = _smoothness(site, clients, many, one)
    found = {
        "plan": site.plan.name,
        "method": describe("method", site.plan.method)["name"],
        "clients": len(clients),
        "rounds": rounds,
        "epochs": site.plan.local.passes,
        "steps": _steps(site, clients),
        "smoothness": smooth,
        "update": {name: asdict(measure_change(start, end)) for name, end in at.items()},
        "conflict": {
            "first_round": many.signs.conflict(),
            "one_round": one.signs.conflict(),
            "coins": coins(len(clients)),
        },
        "distance": {
            **_distance(site, clients, rounds, ways, smooth["max"]),
            "merged": asdict(measure_change(start, at["one"], at["rounds"])),
        },
        "held_out": _held_out(site, many, one, budget.tolerance),
    }
    if own is not None:
        found["run"] = _of_run(own, site, start, merge_into_copy(plain, own.flat), at["one"])
    return {**found, **answer(found, budget.tolerance)}


def _steps(site: Site, clients: Sequence[ClientId]) -> float:
    """k, the mean over the clients by what they count."""
    size = site.data.size
    weights = [weight(site.plan, size(client)) for client in clients]
    each = [site.plan.local.steps_for(size(client)) for client in clients]
    return sum(w * k for w, k in zip(weights, each, strict=True)) / sum(weights)


def _smoothness(site: Site, clients: Sequence[ClientId], many: Way, one: Way) -> dict[str, Any]:
    """Of the loss in what is trained; in merged weights where an aggregator moves frozen ones,
    since factors then stand for other weights in each round."""
    places = sorted({0, 1, len(many.states) // 2, len(many.states) - 1})
    states = [*(many.states[place] for place in places), one.states[-1]]
    points = [_on_device(site, state) for state in states]
    zero, of = {}, "what is trained"
    if any(take_prefix(EXACT, state) for state in states):
        of = "merged weights"
        zero = {name: x for name, x in points[0].items() if B in name}
        points = [multiply_factors(site.model, point) for point in points]
    objective = objective_without(site.model, site.task, zero)
    size = getattr(site.plan.local, "batch_size", 32)
    draws = generator(site.plan.seed, "diagnose")
    first = (next(iter(site.data.batches(client, size, 1, draws))) for client in clients)
    # Without dropout, as both gradients of a secant must be of one function.
    site.model.eval()
    with threads(site.plan.compute.threads):
        rows = (site.on_device(batch) for batch in islice(first, BATCHES))
        found = secants(lambda at, batch: objective.gradient(at, batch)[0], points, rows)
    if not found:
        raise RunError("training does not move the model, so that there is nothing to diagnose")
    return {"of": of, **_quartiles(found), "secants": len(found)}


def _on_device(site: Site, state: Tensors) -> Tensors:
    return {name: x.to(site.device) for name, x in state.items()}


def _quartiles(found: list[float]) -> dict[str, float]:
    low, _, high = quantiles(found, n=4) if len(found) > 1 else found * 3
    return {"median": median(found), "q25": low, "q75": high, "max": max(found)}


def _distance(
    site: Site, clients: Sequence[ClientId], rounds: int, ways: Mapping[str, Way], smoothness: float
) -> dict[str, Any]:
    """Of what is trained: how far apart the two ends are, and what the bounds say of it.

    Nothing where an aggregator moves frozen weights instead, as FLoRA does.
    """
    many, one = ways["rounds"], ways["one"]
    if take_prefix(EXACT, one.states[-1]):
        return dict.fromkeys(("trained", "farthest", "paper_bound", "corrected_bound")) | {
            "beyond": beyond(site.plan)
        }
    farthest, lr = max(many.farthest, one.farthest), getattr(site.plan.local, "lr", None)
    steps = _steps(site, clients)
    return {
        "trained": float(norm(sub(one.states[-1], many.states[-1]))),
        "farthest": farthest,
        "paper_bound": paper_bound(smoothness, farthest, rounds, steps, len(clients)),
        "corrected_bound": None
        if lr is None
        else corrected_bound(smoothness, farthest, rounds, steps, lr),
        "beyond": beyond(site.plan),
    }


def _held_out(site: Site, many: Way, one: Way, tolerance: float) -> dict[str, Any]:
    metric, first = _scores(site, many.states[0])
    curve = [first, *(_scores(site, state)[1] for state in many.states[1:])]
    single, last = _scores(site, one.states[-1])[1], curve[-1]
    sign = -1 if is_less_better(metric) else 1
    total = float(last.weights.sum())
    # Paired by example: what both models get right, or both wrong, makes the interval no wider.
    lost = sign * (last.totals - single.totals)
    gap, error = float(lost.sum()) / total, sqrt(len(lost) * float(lost.var(correction=0))) / total
    values = [_mean(each) for each in curve]
    gain = sign * (values[-1] - values[0])
    enough = [
        k
        for k, value in enumerate(values)
        if sign * (value - values[0]) >= (1 - tolerance) * gain > 0
    ]
    return {
        "metric": metric,
        "examples": len(lost),
        "rounds": values,
        "one": _mean(single),
        "gain": gain,
        "gap": gap,
        "gap_low": gap - 1.96 * error,
        "gap_high": gap + 1.96 * error,
        "epochs_to_target": enough[0] * site.plan.local.passes if enough else None,
    }


def _mean(each: Summed) -> float:
    return float(each.totals.sum() / each.weights.sum())


def _scores(site: Site, params: Tensors) -> tuple[str, Summed]:
    """The accuracy of each held-out example, or its loss where the task has no accuracy."""
    own = {name: x.to(site.device) for name, x in params.items()}
    metric, totals, weights = "", [], []
    with threads(site.plan.compute.threads):
        for batch, values in score_batches(
            site.task, site.model, own, map(site.on_device, site.data.held_out())
        ):
            metric = "accuracy" if "accuracy" in values else "loss"
            value = values[metric]
            each = (
                value
                if isinstance(value, Summed)
                else Summed(value, torch.ones_like(batch["mask"]))
            )
            totals.append(_count(each.totals, batch["mask"]))
            weights.append(_count(each.weights, batch["mask"]))
    return metric, Summed(torch.cat(totals), torch.cat(weights))


def _count(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask > 0].double().cpu()


def _last(path: Path, code: Code) -> State:
    folder, plan = reopen(path, code)
    saved = load_checkpoint(folder.checkpoint, plan)
    if saved is None:
        raise RunError(f"{path} has no checkpoint yet: no round of it is done")
    return saved.state


def _of_run(
    state: State, site: Site, start: Tensors, end: Tensors, single: Tensors
) -> dict[str, Any]:
    """How far the run itself went, and what one round of this budget comes to beside it."""
    metric, scores = _scores(site, state.flat)
    return {
        "rounds": state.round,
        "update": asdict(measure_change(start, end)),
        "to_one_round": measure_change(start, single, end).whole,
        metric: _mean(scores),
    }
