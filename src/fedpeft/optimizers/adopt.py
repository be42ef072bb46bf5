"""ADOPT: Adam that converges with any β₂, Photon's inner optimizer (Taniguchi et al., 2024,
arXiv:2411.02853, Algorithm 1)."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from fedpeft.core.tensors import add_prefix, zeros_like
from fedpeft.core.types import Tensors
from fedpeft.optimizers.ranges import check_adam_settings


@dataclass(frozen=True)
class Adopt:
    """First v ← g². Then in step t = 1, 2, ... n ← g / max(√v, ε), cut to −t^c .. t^c;
    m ← β₁·m + (1 − β₁)·n; θ ← (1 − ηλ)·θ − η·m; v ← β₂·v + (1 − β₂)·g².

    The step divides by the v of the gradients before it, and the momentum is of what is divided
    already: these two are the whole difference from Adam. The first step only measures and moves
    nothing, so that a round of one step trains nothing, unless the optimizer is kept
    (`restart_schedule = false`). The cut is the authors' own, later than the paper's Algorithm 1:
    an entry whose first gradient is near zero would else take a step without bound. The memory
    holds `m/<name>`, `v/<name>` and `t`.

    Attributes:
      beta1, beta2: β₁ and β₂.
      eps: ε.
      clip: c; infinite for no cut, as in Algorithm 1.
      weight_decay: λ, decoupled as in AdamW.

    Raises:
      ValueError: a value out of range.
    """

    beta1: float = 0.9
    beta2: float = 0.9999
    eps: float = 1e-6
    clip: float = 0.25
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_adam_settings(self.beta1, self.beta2, self.eps, self.weight_decay)
        if not self.clip >= 0:
            raise ValueError(f"clip must be at least 0, got {self.clip}")

    def init(self, params: Tensors) -> Tensors:
        zero = zeros_like(params)
        device = next((x.device for x in params.values()), None)
        return {
            **add_prefix("m", zero),
            **add_prefix("v", zero),
            "t": torch.zeros((), device=device),
        }

    def step(
        self, params: Tensors, memory: Tensors, gradient: Tensors, lr: Tensor
    ) -> tuple[Tensors, Tensors]:
        moves = (memory["t"] > 0).to(lr)  # as a number, since clients may be stacked
        moved, kept = {}, {**memory, "t": memory["t"] + 1}
        bound = memory["t"].clamp_min(1.0) ** self.clip if isfinite(self.clip) else None
        for name, g in gradient.items():
            m, v = memory[f"m/{name}"], memory[f"v/{name}"]
            usual = g / v.sqrt().clamp_min(self.eps)
            if bound is not None:
                usual = usual.clamp(-bound, bound)
            m = moves * m.lerp(usual, 1 - self.beta1)
            # g² whole in the first step, and its share of 1 − β₂ in all others
            kept[f"v/{name}"] = v.lerp(g.square(), 1 - moves * self.beta2)
            moved[name] = params[name] * (1 - moves * lr * self.weight_decay) - lr * m
            kept[f"m/{name}"] = m
        return moved, kept
