"""Tuners of Hugging Face `peft`, put into a model in place; its class and its forward stay."""

from typing import Any

from torch import nn

from fedpeft.core.trainable import within
from fedpeft.errors import PlanError

PROJECTIONS = {
    "q": ("q_proj", "query", "q_lin", "q"),
    "k": ("k_proj", "key", "k_lin", "k"),
    "v": ("v_proj", "value", "v_lin", "v"),
}
"""The last part of the names that models give their attention's projections."""


def attention_projections(model: nn.Module, which: str) -> list[str]:
    """The names, in this model, of the projections `which`, e.g. "qv".

    Raises:
      PlanError: the model's attention has none of the usual names.
    """
    present = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = [next((name for name in PROJECTIONS[one] if name in present), None) for one in which]
    if None in found:
        raise PlanError(
            "cannot tell the attention's projections in this model; set the method's key `target` to some of its "
            f"linear layers: {', '.join(sorted(present))}"
        )
    return [name for name in found if name]


def inject_tuner(config: Any, model: nn.Module, head: str) -> nn.Module:
    """Put the tuner of `config` in, train it and the head, freeze the rest.

    Raises:
      PlanError: the tuner finds no layer to work on.
    """
    from peft.functional import inject_adapter_in_model

    try:
        model = inject_adapter_in_model(config, model)
    except ValueError as error:
        raise PlanError(f"the method does not fit the model: {error}") from None
    for name, parameter in model.named_parameters():
        if within(name, head):
            parameter.requires_grad_(True)
    return model
