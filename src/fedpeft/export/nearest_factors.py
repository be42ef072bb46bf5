"""What a run changed of its base's weights as LoRA of a rank, the nearest one (the second stage of
SLoRA begins with it; Babakniya et al., 2023, arXiv:2308.06522)."""

from dataclasses import replace
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.compute.trainable import head_of, tensors_of, within
from fedpeft.core.low_rank import A, B
from fedpeft.core.types import Tensors
from fedpeft.export.widened import widen_factors
from fedpeft.methods.full import Full
from fedpeft.methods.lora import LoRA
from fedpeft.methods.singular import largest_directions
from fedpeft.methods.targets import linear_layers
from fedpeft.results.result import Result

ALPHA = 16.0
"""α of the factors; that of `LoRA`, where a plan does not say."""


def prepare_result(read: Result, rank: int) -> Result:
    """What is written of a run's result: all of it, or what changed as LoRA of a rank above 0. It
    raises as `factor_change` does."""
    result = widen_factors(read)
    return factor_change(result, rank) if rank else result


def factor_change(result: Result, rank: int) -> Result:
    """The result as one of LoRA: for each linear layer whose weight changed by D the factors of the
    best (α/r)·B·A ≈ D, and the head as it is.

    A direction in which nothing changed has a zero in B and a direction of unit length in A, so
    that it can still learn. The log says how much of the change is kept.

    Args:
      rank: r, at least 1.

    Raises:
      RunError: the run has tensors of its own beside the base's weights, changed something else of
        the base than linear layers and the head, changed no linear layer, or one with fewer than r
        directions.
    """
    plan = replace(result.plan.unquantized.of_one_rank, method=Full())
    base = plan.model(result.classes)
    named: Any = getattr(result.plan.method, "head", None)
    head = head_of(base, "auto" if named is None else named) if named != "" else ""
    changes, heads = _changes(result, base, head)
    least = min(min(x.shape) for x in changes.values())
    if rank > least:
        raise result.refuse(
            f"a layer that changed has {least} directions, and rank {rank} asks for more: set "
            f"--lora-rank to {least} or less"
        )
    factors, kept = _factors(changes, rank)
    target = _targets(base, changes)
    getLogger("fedpeft").warning(
        "LoRA of rank %d keeps %.1f %% of the square of what changed in %d layers, and the rest is "
        "left out; a plan begins with it by rank = %d, alpha = %g, target = %s and init",
        *(rank, 100 * kept, len(changes), rank, ALPHA, list(target)),
    )
    method = LoRA(rank, ALPHA, target=target, head=head if heads else "")
    state = replace(result.checkpoint.state, params={**heads, **factors}, shared={})
    checkpoint = replace(result.checkpoint, state=state)
    return replace(result, plan=replace(plan, method=method), checkpoint=checkpoint)


def _changes(
    result: Result, base: nn.Module, head: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By layer the change of its weight (out, in), and the head's tensors.

    Raises:
      RunError: see `factor_change`.
    """
    begun, linear = tensors_of(base), linear_layers(base)
    changes: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for name, x in result.tensors.items():
        layer = name.removesuffix(".weight")
        if name not in begun:
            raise result.refuse(
                f"{name!r} is no weight of the base, and LoRA is made of changes of weights: leave "
                "out --lora-rank"
            )
        if head and within(name, head):
            heads[name] = x
        elif torch.equal(x, begun[name].detach().cpu()):
            continue
        elif layer in linear:
            change = x - begun[name].detach().cpu()
            # other layers, as GPT-2 has them, hold their weight transposed
            changes[layer] = change if isinstance(linear[layer], nn.Linear) else change.T
        else:
            raise result.refuse(
                f"it changed {name!r}, which is no weight of a linear layer, so that LoRA cannot "
                'hold it: leave out --lora-rank, or train linear layers with method = "sparse"'
            )
    if not changes:
        raise result.refuse("it changed no linear layer outside the head: leave out --lora-rank")
    return changes, heads


def _targets(base: nn.Module, changes: Tensors) -> tuple[str, ...]:
    """How LoRA names these layers: by the last parts of their names, where these mean no others."""
    last = {layer.rpartition(".")[2] for layer in changes}
    meant = {name for name in linear_layers(base) if name.rpartition(".")[2] in last}
    return tuple(sorted(last if meant == changes.keys() else changes))


def _factors(layers: Tensors, rank: int) -> tuple[dict[str, Tensor], float]:
    """The factors by their names, and what share they keep of the sum of all squares."""
    factors: dict[str, Tensor] = {}
    kept, whole = 0.0, 0.0
    for layer, change in layers.items():
        u, s, vt = largest_directions(change, rank, layer)
        kept, whole = kept + float(s.square().sum()), whole + float(change.double().square().sum())
        root = (s * rank / ALPHA).sqrt()
        # of a zero singular value both factors would be zero, and so would be their gradients
        none = s <= s.max() * 1e-7
        a = torch.where(none, 1.0, root)[:, None] * vt
        factors[f"{layer}{A}default.weight"] = a.to(change.dtype)
        factors[f"{layer}{B}default.weight"] = (u * torch.where(none, 0.0, root)).to(change.dtype)
    return factors, kept / whole
