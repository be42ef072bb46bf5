"""A head whose weights another module holds too, as a language model's output layer often is its
embedding."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fedpeft.compute.trainable import within
from fedpeft.errors import PlanError


def tied_to(model: nn.Module, method: Any) -> Mapping[int, str]:
    """By identity, those weights of the head that a method names which another module holds too,
    each with its name there. A head that nobody named is in no question."""
    head = getattr(method, "head", "auto")
    if head in ("auto", "") or head not in dict(model.named_modules()):
        return {}
    every = list(model.named_parameters(remove_duplicate=False))
    inside = {id(x) for name, x in every if within(name, head)}
    return {id(x): name for name, x in every if id(x) in inside and not within(name, head)}


def check_tied(model: nn.Module, method: Any, tied: Mapping[int, str]) -> None:
    """Make sure that a named head is trained, though its weights go by another name.

    Args:
      model: with the method in it.
      tied: as they were before that.

    Raises:
      PlanError: none of them is trained.
    """
    trained = {id(x) for x in model.parameters() if x.requires_grad}
    if not tied or trained & set(tied):
        return
    name, other = type(method).__name__, next(iter(tied.values()))
    more = f', or let it work on this layer: target = [..., "{method.head}"]'
    raise PlanError(
        f'head = "{method.head}" would train nothing with {name}: the weights of this layer are '
        f"{other!r} (tied embeddings), so that there is no head of its own. Leave `head` out"
        f"{more if hasattr(method, 'target') else ''}"
    )
