"""What of a model is trained: marking it, naming it, reading it, writing it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedpeft.core.types import Tensors
from fedpeft.errors import PlanError

HEADS = (
    *("classifier", "score", "head", "heads", "fc", "lm_head", "conv_out"),
    *("classification_head", "logits_proj"),
)
"""Where the models of the field keep their last layer."""

STATISTICS = ("running_mean", "running_var")
"""How torch calls the running statistics of a normalisation, the last part of their names."""


_MARK, _PARTS = "fedpeft_new_layers", "fedpeft_parts"


@dataclass(frozen=True)
class NewLayers:
    """What of a loaded model is new, so that nothing was pre-trained in it.

    Attributes:
      head: the head's module; "" where the usual names tell.
      beside: parameters outside the head that the checkpoint never had: they stand before it, or
        they are a further head.
      headless: whether the model has no head, as one that makes embeddings.
      unreached: what the method would train if the task's loss depended on it; it is left out.
    """

    head: str = ""
    beside: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    headless: bool = False


def mark_new_layers(model: nn.Module, **changes: object) -> None:
    """Note on the model itself what is new in it, for whoever trains it."""
    setattr(model, _MARK, replace(new_layers(model), **changes))  # type: ignore[arg-type]


def new_layers(model: nn.Module) -> NewLayers:
    """What is new in a model; nothing where nobody noted it."""
    noted = getattr(model, _MARK, None)
    return noted if isinstance(noted, NewLayers) else NewLayers()


def mark_parts(model: nn.Module, parts: Mapping[str, str]) -> None:
    """Note on the model itself which of its modules are which part of it, by the parts' names."""
    setattr(model, _PARTS, dict(parts))


def parts_of(model: nn.Module) -> Mapping[str, str]:
    """The module of each part of a model that has several, such as "vision" and "language"; none
    where nobody noted them."""
    noted = getattr(model, _PARTS, None)
    return noted if isinstance(noted, dict) else {}


def is_statistic(name: str) -> bool:
    """Whether a tensor is measured in training rather than learned."""
    return name.rpartition(".")[2] in STATISTICS


def head_of(model: nn.Module, head: str = "auto", key: str = "the method's key `head`") -> str:
    """The name of the head's module; "" for a model without one.

    Args:
      key: what names it in the plan, for the error.

    Raises:
      PlanError: there is no such module, or none of the usual ones.
    """
    names = dict(model.named_modules())
    if head != "auto":
        if head not in names:
            raise PlanError(
                f"the model has no module {head!r} to use as head; it has {', '.join(_top(model))}"
            )
        return head
    noted = new_layers(model)
    if noted.head or noted.headless:
        return noted.head
    for name in HEADS:
        if isinstance(getattr(model, name, None), nn.Module):
            return name
    raise PlanError(
        f"cannot tell the model's head among {', '.join(_top(model))}: set {key} to one of them, "
        "or to a module inside"
    )


def linear_head(params: Tensors, head: str, asked: str) -> str:
    """The name of the head's weight (classes, features) among what is trained and shared.

    Args:
      head: the name of the head's module; "auto" for the usual ones.
      asked: what needs it, for the error.

    Raises:
      PlanError: there is none.
    """
    for name, x in params.items():
        module = name.removesuffix(".weight")
        wanted = module in HEADS if head == "auto" else module == head
        if x.ndim == 2 and name != module and wanted:
            return name
    raise PlanError(
        f"{asked} needs a linear head that is trained and shared, and there is none: leave it out, "
        "or name the head's module with its key `head`"
    )


def _top(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_children()]


def within(name: str, module: str) -> bool:
    """Whether a parameter called `name` belongs to `module`."""
    return name == module or name.startswith(f"{module}.")


def train_only(model: nn.Module, wanted: Iterable[str]) -> nn.Module:
    """Freeze all but the parameters called `wanted`; in place."""
    keep = set(wanted)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in keep)
    return model


def trainable(model: nn.Module) -> list[str]:
    """The names of the parameters that are trained."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def persistent_buffers(model: nn.Module) -> list[str]:
    """Floating-point state that training changes without gradients: BatchNorm's running
    statistics."""
    saved = model.state_dict().keys()
    return [n for n, buffer in model.named_buffers() if n in saved and buffer.is_floating_point()]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by the names that `torch.func.functional_call` takes."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def read(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Copies of the named tensors, on the CPU."""
    every = tensors_of(model)
    return {name: every[name].detach().cpu().clone() for name in names}


def write(model: nn.Module, tensors: Tensors) -> None:
    """Copy the tensors into the model; names that the model does not have are not its own and are
    passed over."""
    every = tensors_of(model)
    with torch.no_grad():
        for name, value in tensors.items():
            if name in every:
                every[name].copy_(value)
