"""A multilayer perceptron on the features of a row."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fedpeft.catalogue import CATALOGUE
from fedpeft.errors import PlanError
from fedpeft.registry import describe

WHOLE = ("full", "head", "scratch")
"""The methods that train a model of one layer."""


class Perceptron(nn.Module):
    """Linear layers with ReLU between them, from (n, inputs) to (n, outputs); the last one is the
    head. Without hidden layers it is the linear model.

    There is no normalisation: running means would differ from client to client, and those of a
    batch would let its examples change each other.

    Args:
      inputs: numbers of an example.
      hidden: the width of each hidden layer.
      outputs: numbers that the model gives of an example.
      bias: whether the head adds a constant. A loss that compares examples has no gradient for it,
        and an adaptive optimizer would make steps of rounding errors.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, bias: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """From (n, inputs) to (n, outputs)."""
        out: Tensor = self.head(self.body(x))
        return out


def check_widths(hidden: Sequence[int]) -> None:
    """Raises ValueError for a layer without a width."""
    if any(width < 1 for width in hidden):
        raise ValueError(
            f"hidden holds the width of each hidden layer, at least 1, got {list(hidden)}; [] is "
            "the linear model"
        )


def check_method(plan: Any, hidden: Sequence[int]) -> None:
    """Raises PlanError for a method that has nothing to train in a linear model."""
    method = str(describe("method", plan.method)["name"])
    if not hidden and method in CATALOGUE["method"] and method not in WHOLE:
        raise PlanError(
            f'method = "{method}" trains something beside a head, and task.hidden = [] is one '
            f'layer: use method = "{WHOLE[0]}", or give task.hidden a width, such as [32]'
        )
