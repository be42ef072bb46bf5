"""Several merges of one round, of which the clients choose: each scores all of them on examples
that it set apart.

A merge is the round's with the plan's weights or uniform ones, and where rows of the head are
weighted also without; a candidate is w + λ·(merge − w), for w before the round and each λ of the
plan. Down go w and the merges, up a score for each candidate and by how many examples it is. Taken
is the best of the summed scores: accuracy, or where the task has none the loss. The examples that
clients set apart have, together, the labels of all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedpeft.codecs.dense import Dense
from fedpeft.core.objective import evaluate
from fedpeft.core.tensors import Layout, finite, prefixed, under
from fedpeft.core.trainable import is_statistic
from fedpeft.core.types import ClientId, Failure, Reply, State, Tensors, Update
from fedpeft.core.wire import pack, unpack
from fedpeft.errors import PlanError, WireError
from fedpeft.plan import Plan
from fedpeft.site import Site, threads

PHASE = "vote"
START = "start"
SCORES, WEIGHT = "scores", "weight"


def merges(plan: Plan) -> dict[str, Plan]:
    """By what they are called, the plans whose merges are candidates; the plan's own comes
    first."""
    weightings = dict.fromkeys((plan.weighting, "uniform"))
    rows = dict.fromkeys((plan.head_rows, None))
    return {
        f"weights {weighting}" + (f", rows {row}" if row else ""): replace(
            plan, weighting=weighting, head_rows=row
        )
        for row in rows
        for weighting in weightings
    }


def weighted(plan: Plan, updates: Sequence[Update]) -> Iterator[Update]:
    """The updates as they count in one of the merges."""
    return (
        replace(update, weight=1.0) if plan.weighting == "uniform" else update for update in updates
    )


def between(start: Tensors, end: Tensors, strength: float) -> dict[str, Tensor]:
    """start + strength·(end − start); counts and running statistics, which are measured, as at the
    end."""
    return {
        name: x
        if is_statistic(name) or not x.is_floating_point()
        else torch.lerp(start[name], x, strength)
        for name, x in end.items()
    }


def ballot(plan: Plan, before: State, ends: Sequence[State]) -> bytes:
    """What every client receives to vote on."""
    every = {START: before.params, **{str(number): end.params for number, end in enumerate(ends)}}
    return plan.downlink.encode(
        {n: x for key, params in every.items() for n, x in prefixed(key, params).items()}
    )


def scores(site: Site, client: ClientId, payload: bytes) -> bytes:
    """A client's message: the score of each candidate, and by how many examples.

    Raises:
      PlanError: the task has neither accuracy nor loss.
    """
    every = {name: x.to(site.device) for name, x in site.plan.downlink.decode(payload).items()}
    start, total, weight = under(START, every), [], 0.0
    with threads(site.plan.threads):
        for number in range(len(merges(site.plan))):
            for strength in site.plan.vote or ():
                score, weight = _score(
                    site, client, between(start, under(str(number), every), strength)
                )
                total.append(score)
    told = {
        SCORES: torch.tensor(total, dtype=torch.float64),
        WEIGHT: torch.tensor(weight, dtype=torch.float64),
    }
    return pack(Update(client, told), Dense())


def _score(site: Site, client: ClientId, params: Tensors) -> tuple[float, float]:
    apart = site.apart
    if apart is None or client not in apart.clients:
        return 0.0, 0.0
    batches = (site.on_device(batch) for batch in apart.held_out(client))
    found = evaluate(site.task, site.model, params, batches)
    for name, sign in (("accuracy", 1.0), ("loss", -1.0)):
        if name in found:
            return sign * found[name].total, found[name].weight
    raise PlanError(
        f"a vote is by accuracy or loss, and this task has {', '.join(found)}: leave out `vote`"
    )


@dataclass(frozen=True)
class Choice:
    """How a vote ended.

    Attributes:
      number: of the merge; `strength`: λ.
      told: both, with all scores, as plain values for the ledger.
    """

    number: int
    strength: float
    told: Mapping[str, Any]


def counted(plan: Plan, replies: Iterator[Reply | Failure]) -> Choice:
    """The candidate with the best mean score, of equals the first; without any vote the plan's own
    merge as it is."""
    names = list(merges(plan))
    candidates = [
        (number, strength) for number in range(len(names)) for strength in plan.vote or ()
    ]
    wanted: Layout = [(SCORES, [len(candidates)], "float64"), (WEIGHT, [], "float64")]
    sums, weight, failed = torch.zeros(len(candidates), dtype=torch.float64), 0.0, {}
    for reply in replies:
        try:
            own = _vote(reply, wanted)
        except WireError as error:
            failed[reply.client] = str(error)
            continue
        sums, weight = sums + own[SCORES], weight + float(own[WEIGHT])
    number, strength = candidates[int(sums.argmax())] if weight else (0, 1.0)
    told = {
        "merge": names[number],
        "strength": strength,
        "examples": weight,
        "failed": failed,
        "scores": [
            {"merge": names[n], "strength": s, "score": x / weight if weight else None}
            for (n, s), x in zip(candidates, sums.tolist(), strict=True)
        ],
    }
    return Choice(number, strength, told)


def _vote(reply: Reply | Failure, wanted: Layout) -> Tensors:
    """Raises WireError for one that did not come, or is none."""
    if isinstance(reply, Failure):
        raise WireError(reply.reason)
    told = unpack(reply.client, reply.payload, Dense(), wanted).delta
    if not finite(told) or told[WEIGHT] < 0:
        raise WireError("its scores are not finite, or by fewer examples than none")
    return told
