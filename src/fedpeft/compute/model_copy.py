"""A copy of a model for code that is not ours: its modules are new, and its frozen weights lie
where the model's own lie."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.compute.trainable import tensors_of
from fedpeft.core.types import Tensors
from fedpeft.errors import PlanError

WORD = 8
"""Bytes that are added up as one number."""


class BaseChangedError(PlanError):
    """Somebody wrote to frozen weights, which all clients of a process share."""


def copy_model(model: nn.Module, trained: Tensors, held: Tensors) -> Any:
    """A copy whose hooks, patches, configuration and buffers are its own, so that nothing but an
    entry of a frozen weight reaches the model. It takes the memory of `trained`, `held` and the
    buffers.

    Args:
      trained: the values of its trained tensors, by name; nothing else of it asks for a gradient.
      held: the values of further tensors that are not the model's own, by name.

    Raises:
      PlanError: the model has no tensor of such a name.
    """
    every = tensors_of(model)
    if foreign := [name for name in (*trained, *held) if name not in every]:
        raise PlanError(f"{type(model).__name__} has no tensor {foreign[0]!r} to train or to set")
    memo: dict[int, Any] = {}
    for name, x in every.items():
        own = trained.get(name, held.get(name))
        if not isinstance(x, nn.Parameter):
            memo[id(x)] = (x if own is None else own).detach().clone()
        elif own is not None:
            memo[id(x)] = nn.Parameter(own.detach().clone(), requires_grad=name in trained)
        elif type(x) is nn.Parameter:
            # of the same memory and the same count of writes
            memo[id(x)] = nn.Parameter(x.detach(), requires_grad=False)
        else:  # a library's own kind, such as weights in four bits
            memo[id(x)] = x
    return deepcopy(model, memo)


def checksums(model: nn.Module, besides: Tensors) -> dict[str, int]:
    """By name the sum of the bits of each parameter that is not among `besides`.

    A write that keeps the sum, as an exchange of two rows, is not seen. Each weight is read once,
    as in a forward pass of one token. PyTorch's own count of writes would cost nothing, but writes
    through `.data` are not counted.
    """
    return {name: _sum_bits(x) for name, x in model.named_parameters() if name not in besides}


def check_base(before: Mapping[str, int], after: Mapping[str, int], who: str) -> None:
    """Raises BaseChangedError where a frozen weight is not what it was; `who` wrote to it."""
    changed = [name for name, x in before.items() if after[name] != x]
    if changed:
        raise BaseChangedError(
            f"{who} wrote to {len(changed)} frozen weights, such as {changed[0]!r}, which other "
            "clients of this process share: train parameters with requires_grad alone, and copy "
            "a weight before you change it. The weights were loaded again"
        )


def restore(model: nn.Module, fresh: nn.Module) -> None:
    """Write the weights and buffers of `fresh`, which was made in the same way, into the model."""
    values = tensors_of(fresh)
    with torch.no_grad():
        for name, x in tensors_of(model).items():
            x.copy_(values[name])


def _sum_bits(x: Tensor) -> int:
    flat = x.detach().contiguous().view(-1).view(torch.uint8)
    whole = flat.numel() % WORD == 0 and flat.data_ptr() % WORD == 0
    # numbers of eight bytes are added four times as fast as ones of four
    return int((flat.view(torch.int64) if whole else flat).sum(dtype=torch.int64))
