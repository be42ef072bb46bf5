"""A head on random features of the last layer (Rahimi and Recht, 2007), as in FedRF-TCA
(arXiv:2311.04686)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedpeft.compute.trainable import trainable
from fedpeft.core.facts import Fact
from fedpeft.core.seeds import generator
from fedpeft.errors import PlanError
from fedpeft.methods.transformer_layout import name_model, train_parts, trained_head


class RandomFeatureHead(nn.Module):
    """h(√m·z/‖z‖) for z = W·[cos(xΩ); sin(xΩ)]/√N of an x that has length 1, and a linear h.

    Args:
      inputs, outputs: numbers that come in and go out.
      pairs: N. Ω has the shape (inputs, N), and is the same wherever `seed` is.
      components: m, the rows of W.
      width: Ω's entries are normal with the deviation 1 / width.
    """

    omega: Tensor

    def __init__(
        self, inputs: int, outputs: int, pairs: int, components: int, width: float, seed: int
    ) -> None:
        super().__init__()
        draws = generator(seed, "random_features")
        omega = torch.randn(inputs, pairs, generator=draws) / width
        self.register_buffer("omega", omega, persistent=False)
        self.components = nn.Linear(2 * pairs, components, bias=False)
        start = torch.linalg.qr(torch.randn(2 * pairs, components, generator=draws))[0]
        self.components.weight = nn.Parameter(start.T.contiguous())
        self.classifier = nn.Linear(components, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From (..., inputs) to (..., outputs)."""
        z = self.components(random_features(x, self.omega))
        told: Tensor = self.classifier(sqrt(z.shape[-1]) * normalize(z, dim=-1))
        return told


def random_features(x: Tensor, omega: Tensor) -> Tensor:
    """[cos(xΩ); sin(xΩ)]/√N of x (..., d) with length 1; each result has length 1 too."""
    angles = normalize(x.to(omega.dtype), dim=-1) @ omega
    return torch.cat([angles.cos(), angles.sin()], -1) / sqrt(omega.shape[1])


@dataclass(frozen=True)
class RandomFeatures:
    """A new head on random features of what comes into the model's own, with a projection W before
    its linear layer. Both are trained, unless `algorithms = ["transfer_components"]` makes W.

    Attributes:
      pairs: N, of cosines and of sines.
      components: m, the rows of W.
      width: σ of the Gaussian kernel that the features stand for.
      seed: of the random features, which all sites must have alike.
      head: the head that is replaced; "auto" finds the usual ones.

    Raises:
      ValueError: a value out of range.
    """

    pairs: int = 128
    components: int = 32
    width: float = 1.0
    seed: int = 1
    head: str = "auto"
    not_exported: ClassVar[str] = "a head on random features"
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.MOVES_START})

    def __post_init__(self) -> None:
        if not 1 <= self.components <= 2 * self.pairs:
            raise ValueError(
                "components must be at least 1 and at most twice the pairs, got "
                f"{self.components} for {self.pairs} pairs"
            )
        if not 0 < self.width < float("inf"):
            raise ValueError(f"width must be positive and finite, got {self.width}")

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        name = trained_head(model, self.head)
        old = model.get_submodule(name) if name else None
        if not isinstance(old, nn.Linear):
            raise PlanError(
                f"{name_model(model)} has no new linear head in whose place random features could "
                'stand: name its output layer, e.g. head = "classifier", or use method = "head"'
            )
        around, _, last = name.rpartition(".")
        head = RandomFeatureHead(
            old.in_features, old.out_features, self.pairs, self.components, self.width, self.seed
        )
        setattr(model.get_submodule(around), last, head.to(old.weight.device))
        return train_parts(model, (), name)

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)
