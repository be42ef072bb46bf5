"""Stochastic gradient descent with Nesterov's momentum (Sutskever et al., 2013), as
`torch.optim.SGD` computes it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import Tensors


@dataclass(frozen=True)
class SGD:
    """g ← g + λθ; v ← μv + g; θ ← θ − η(g + μv) with `nesterov`, θ − ηv without.

    Attributes:
      momentum: μ.
      nesterov: whether the step looks ahead along v.
      weight_decay: λ.

    Raises:
      ValueError: a value out of range, or `nesterov` without momentum.
    """

    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAIN_STEPS})

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be at least 0 and finite, got {self.weight_decay}")
        if self.nesterov and not self.momentum:
            raise ValueError(
                "nesterov = true needs a momentum above 0; set nesterov = false or a momentum"
            )

    def init(self, params: Tensors) -> Tensors:
        return map_tensors(torch.zeros_like, params) if self.momentum else {}

    def step(
        self, params: Tensors, memory: Tensors, gradient: Tensors, lr: Tensor
    ) -> tuple[Tensors, Tensors]:
        if self.weight_decay:
            gradient = map_tensors(lambda g, p: g.add(p, alpha=self.weight_decay), gradient, params)
        if not self.momentum:
            return map_tensors(lambda p, g: p - lr * g, params, gradient), memory
        velocity = {n: g.add(memory[n], alpha=self.momentum) for n, g in gradient.items()}
        along: Tensors = velocity
        if self.nesterov:
            along = map_tensors(lambda g, v: g.add(v, alpha=self.momentum), gradient, velocity)
        return map_tensors(lambda p, a: p - lr * a, params, along), {**memory, **velocity}
