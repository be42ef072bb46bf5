"""Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101), as
`torch.optim.AdamW` has it."""

from dataclasses import dataclass
from math import inf, log

import torch
from torch import Tensor

from fedpeft.core.tensors import add_prefix, zeros_like
from fedpeft.core.types import Tensors
from fedpeft.optimizers.ranges import check_adam_settings


@dataclass(frozen=True)
class AdamW:
    """θ ← (1 − ηλ)·θ; m ← β₁m + (1 − β₁)g; v ← β₂v + (1 − β₂)g²; θ ← θ − η·m̂ / (√v̂ + ε).

    m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ) at step t. The memory holds `m/<name>`, `v/<name>` and
    `t`.

    Attributes:
      beta1, beta2: β₁ and β₂.
      eps: ε.
      weight_decay: λ.

    Raises:
      ValueError: a value out of range.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        check_adam_settings(self.beta1, self.beta2, self.eps, self.weight_decay)

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
        t = memory["t"] + 1
        first, second = _bias(self.beta1, t), _bias(self.beta2, t).sqrt()
        rate, keep = lr / first, 1 - lr * self.weight_decay
        moved, kept = {}, {**memory, "t": t}
        for name, g in gradient.items():
            m = memory[f"m/{name}"].lerp(g, 1 - self.beta1)
            v = (memory[f"v/{name}"] * self.beta2).addcmul(g, g, value=1 - self.beta2)
            moved[name] = params[name] * keep - rate * m / (v.sqrt() / second + self.eps)
            kept[f"m/{name}"], kept[f"v/{name}"] = m, v
        return moved, kept


def _bias(beta: float, t: Tensor) -> Tensor:
    """1 − βᵗ. Subtracted as written it would lose half its digits: 0.999 is close to 1, and t is
    float32."""
    return -torch.expm1(t * (log(beta) if beta else -inf))
