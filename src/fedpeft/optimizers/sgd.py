"""Stochastic gradient descent with Nesterov's momentum (Sutskever et al., 2013), as `torch.optim.SGD` computes it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import Tensors


@dataclass(frozen=True)
class SGD:
    """g ← g + λθ; v ← μv + g; θ ← θ − η(g + μv) with `nesterov`, θ − ηv without.

    Raises:
      ValueError: `nesterov` without momentum.
    """

    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true needs a momentum above 0; set nesterov = false or a momentum")

    def init(self, params: Tensors) -> Tensors:
        return map_tensors(torch.zeros_like, params) if self.momentum else {}

    def step(self, params: Tensors, memory: Tensors, gradient: Tensors, lr: Tensor) -> tuple[Tensors, Tensors]:
        if self.weight_decay:
            gradient = map_tensors(lambda g, p: g.add(p, alpha=self.weight_decay), gradient, params)
        if not self.momentum:
            return map_tensors(lambda p, g: p - lr * g, params, gradient), memory
        velocity = {n: (memory[n] * self.momentum).add_(g) for n, g in gradient.items()}
        along: Tensors = velocity
        if self.nesterov:
            along = map_tensors(lambda g, v: g.add(v, alpha=self.momentum), gradient, velocity)
        return map_tensors(lambda p, a: p - lr * a, params, along), velocity
