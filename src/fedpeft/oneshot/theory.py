"""How far one round may end from many (Wang et al., 2024, arXiv:2412.04650, theorem 1), and what
the bound is made of.

With L-smooth client losses, no iterate farther than D = τ·‖w₀‖ from the start w₀, T rounds of k
steps and m clients the paper has ‖w_one − w_rounds‖ ≤ L·D·T·k·m. Its proof needs a step size, loses
a sum, and does not use that the first k steps of both ways are the same. With plain SGD of rate at
most η and a mean with weights p_i that add up to 1,

    w_one − w_rounds = −Σ_i p_i Σ_s η_s·(∇f_i,s(v_i,s) − ∇f_i,s(w_i,s)),    so
    ‖w_one − w_rounds‖ ≤ 2·η·L·D·(T − 1)·k

where s runs over the k·(T − 1) later steps, on the same batches in both ways, and ‖v − w‖ ≤ 2·D.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from math import comb

from fedpeft.core.tensors import norm
from fedpeft.core.types import Batch, Tensors
from fedpeft.plan.plan import Plan
from fedpeft.registry import describe

CLOSE = 1e-3
"""Points nearer to each other than this share of the farthest two are left out: their secants would
be rounding."""


def secants(
    gradient: Callable[[Tensors, Batch], Tensors],
    points: Sequence[Tensors],
    batches: Iterable[Batch],
) -> list[float]:
    """‖∇f(a; B) − ∇f(b; B)‖ / ‖a − b‖ for each batch B and each two points: what L is at least."""
    found = []
    for batch in batches:
        at = [gradient(point, batch) for point in points]
        pairs = list(combinations(range(len(points)), 2))
        apart = [_apart(points[i], points[j], at[0]) for i, j in pairs]
        least = CLOSE * max(apart, default=0.0)
        found += [
            _apart(at[i], at[j], at[0]) / far
            for (i, j), far in zip(pairs, apart, strict=True)
            if far > least
        ]
    return found


def _apart(a: Tensors, b: Tensors, names: Iterable[str]) -> float:
    return float(norm({name: a[name] - b[name] for name in names}))


def paper_bound(
    smoothness: float, farthest: float, rounds: int, steps: float, clients: int
) -> float:
    """L·D·T·k·m, as it is printed."""
    return smoothness * farthest * rounds * steps * clients


def corrected_bound(
    smoothness: float, farthest: float, rounds: int, steps: float, lr: float
) -> float:
    """2·η·L·D·(T − 1)·k; steps: the mean over the clients, weighted as they are in the
    aggregate."""
    return 2 * lr * smoothness * farthest * (rounds - 1) * steps


def coins(clients: int) -> float:
    """The sign conflict of updates whose signs are tossed: E[min(K, m − K)] / m for K of m
    heads."""
    fewer = sum(comb(clients, k) * min(k, clients - k) for k in range(clients + 1))
    return float(fewer / 2**clients / clients)


def beyond(plan: Plan) -> list[str]:
    """What of a plan the corrected bound is not made for."""
    local = plan.local
    optimizer, correction = getattr(local, "optimizer", None), getattr(local, "correction", None)
    sgd = optimizer is not None and describe("optimizer", optimizer)["name"] == "sgd"
    found = {
        f"steps are those of {type(optimizer or local).__name__}": not sgd,
        "SGD has momentum": sgd and getattr(optimizer, "momentum", 0) > 0,
        "SGD decays weights": sgd and getattr(optimizer, "weight_decay", 0) > 0,
        "gradients are clipped": getattr(local, "clip_norm", float("inf")) < float("inf"),
        "gradients are corrected": correction is not None
        and describe("correction", correction)["name"] != "none",
        "terms are added to the loss": any(term.weight for term in getattr(local, "terms", ())),
        "noise is added": plan.private_part is not None,
        "rows of the head have weights of their own": hasattr(plan.aggregator, "weights_rows"),
        "clients vote on the merge": bool(plan.sets_apart),
        "some clients attack": bool(plan.attacks),
        "the aggregator is no mean": describe("aggregator", plan.aggregator)["name"] != "mean",
        "the server does not take the mean as it is": describe("server", plan.server)
        != {"name": "average", "lr": 1.0},
        "codecs round what travels": {
            describe("codec", one)["name"] for one in (plan.uplink, plan.downlink)
        }
        != {"dense"},
    }
    return [words for words, holds in found.items() if holds]
