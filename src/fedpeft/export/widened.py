"""All that a run's factors are, as those of one adapter: frozen ones too, and what was merged into
the base."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedpeft.compute.trainable import read
from fedpeft.core.low_rank import EXACT, A, B, pairs
from fedpeft.core.tensors import drop_prefixes, take_prefix
from fedpeft.core.types import Tensors
from fedpeft.results.result import Result


def widen_factors(result: Result) -> Result:
    """The same result without anything beside its factors: A's that never travelled are made again,
    and products that were added to frozen weights become further ranks, under an α that leaves the
    factors' scale as it is. What a method begins with beside the base as it is saved comes in too
    (`as_exported`)."""
    params = {**result.tensors, **_frozen_factors(result)}
    exact, own = take_prefix(EXACT, params), drop_prefixes((EXACT,), params)
    method: Any = result.plan.method
    if exact:
        factors = {
            layer: _stack_factors(own[a], own[b], layer, exact)
            for layer, (a, b) in pairs(own).items()
        }
        rank = max(len(a) for a, _ in factors.values())
        for layer, (a, b) in pairs(own).items():
            one, two = factors[layer]
            own[a] = torch.cat([one, one.new_zeros(rank - len(one), one.shape[1])])
            own[b] = torch.cat([two, two.new_zeros(len(two), rank - two.shape[1])], 1)
        by = rank / method.rank
        scaled = by**0.5 if result.method == "rslora" else by
        method = replace(method, rank=rank, alpha=method.alpha * scaled, init="")
    if hasattr(method, "as_exported"):
        # as it was when training began
        begun = result.plan.unquantized.of_one_rank.model(result.classes)
        method, own = method.as_exported(begun, own)
    state = replace(result.checkpoint.state, params=own, shared={})
    plan = replace(result.plan.of_one_rank, method=method)
    return replace(result, plan=plan, checkpoint=replace(result.checkpoint, state=state))


def _frozen_factors(result: Result) -> Tensors:
    """The A's of trained B's, where they are not among what was trained."""
    missing = [
        a for a in (n.replace(B, A) for n in result.tensors if B in n) if a not in result.tensors
    ]
    return read(result.plan.model(result.classes), missing) if missing else {}


def _stack_factors(a: Tensor, b: Tensor, layer: str, exact: Tensors) -> tuple[Tensor, Tensor]:
    whole = exact.get(f"{layer}.whole")
    if whole is None:
        left, right = exact[f"{layer}.left"], exact[f"{layer}.right"]
    elif len(whole) < whole.shape[1]:
        left, right = torch.eye(len(whole)), whole
    else:
        left, right = whole, torch.eye(whole.shape[1])
    return torch.cat([a, right]), torch.cat([b, left], 1)
