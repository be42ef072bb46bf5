"""A model's weights with the tuners computed into them, so that methods can be compared by how far
they move it."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import sqrt

from torch import Tensor, nn

from fedpeft.compute.objective import Objective
from fedpeft.compute.trainable import write
from fedpeft.core import low_rank
from fedpeft.core.interfaces import Task
from fedpeft.core.tensors import drop_prefixes, norm, sub, take_prefix, zeros_like
from fedpeft.core.types import Tensors


@dataclass(frozen=True)
class Change:
    """‖V − W‖ / ‖W₀‖, Frobenius norms.

    Attributes:
      whole: of all parameters as one vector.
      layers: by module, of its own parameters, where they differ; None where W₀ is zero.
    """

    whole: float
    layers: Mapping[str, float | None]


def merge_into_copy(model: nn.Module, params: Tensors) -> dict[str, Tensor]:
    """The parameters of a copy of the model with `params` written into it; LoRA's are W +
    (α/r)·B·A, without A and B.

    Layers that a method adds to the model, such as adapters and prompts, are parameters like
    others.
    """
    copy = deepcopy(model)
    write(copy, {**params, **low_rank.merge_exact(copy, take_prefix(low_rank.EXACT, params))})
    # This method is how peft's layers around a base layer are told from others.
    tuners = [name for name, module in copy.named_modules() if hasattr(module, "get_base_layer")]
    for name in tuners:
        copy.get_submodule(name).merge()  # type: ignore[operator]
    found = {}
    for name, x in copy.named_parameters():
        tuner = next((one for one in tuners if name.startswith(f"{one}.")), None)
        if tuner is None:
            found[name] = x.detach()
        elif name.startswith(f"{tuner}.base_layer."):
            found[name.replace(".base_layer.", ".", 1)] = x.detach()
    return found


def multiply_factors(model: nn.Module, state: Tensors) -> dict[str, Tensor]:
    """What is trained as weights alone: W + (α/r)·(E + B·A) by their names in the model, in place
    of A, B and E. E is what an aggregator merged into the base. They stand for the state where the
    model's B is zero."""
    sides = {layer: {"left": b, "right": a} for layer, (a, b) in low_rank.pairs(state).items()}
    products = {
        f"{layer}.{side}": state[name] for layer, two in sides.items() for side, name in two.items()
    }
    every = low_rank.accumulate(take_prefix(low_rank.EXACT, state), products)
    rest = {
        n: x
        for n, x in drop_prefixes((low_rank.EXACT,), state).items()
        if not low_rank.is_factor(n)
    }
    return {**rest, **low_rank.merge_exact(model, every)}


def measure_change(start: Tensors, end: Tensors, other: Tensors | None = None) -> Change:
    """How far `end` is from `other`, or from the start, in units of the start."""
    owners: dict[str, list[str]] = {}
    for name in start:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    moved, length, layers = 0.0, 0.0, {}
    for owner, names in owners.items():
        old, new, origin = (
            {name: side[name] for name in names} for side in (other or start, end, start)
        )
        far, size = float(norm(sub(new, old))), float(norm(origin))
        moved, length = moved + far**2, length + size**2
        if far:
            layers[owner] = far / size if size else None
    return Change(sqrt(moved / length), layers)


def objective_without(model: nn.Module, task: Task, tensors: Tensors) -> Objective:
    """The loss of a model in which these tensors are zero."""
    return Objective(model, task, held=zeros_like(tensors))
