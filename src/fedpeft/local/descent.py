"""A client's training: epochs of mini-batch descent from what it received (arXiv:1602.05629, ClientUpdate).

An optimizer and a correction are its parts, so FedProx with AdamW is a matter of two keys.
"""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from fedpeft.core.objective import PRECISIONS
from fedpeft.core.tensors import beside, map_tensors, sub
from fedpeft.core.types import Batch, Carry, Context, Correction, LossFn, Optimizer, Tensors
from fedpeft.errors import unknown
from fedpeft.registry import part

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True, kw_only=True)
class Descent:
    """`epochs` passes in batches of `batch_size`; the optimizer is fresh for each client and round.

    Attributes:
      lr: the rate at its highest, in units of the optimizer.
      schedule: how it falls over the whole run, step by step: "constant", "linear" or "cosine".
      warmup: the share of the run's steps over which it rises from 0.
      clip_norm: the largest Euclidean norm of a step's gradient, all tensors as one vector; infinity for none.
      precision: of the pass: "float32", "bfloat16" or "float16".

    Raises:
      ValueError: a value out of range.
    """

    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.01
    schedule: str = "constant"
    warmup: float = 0.0
    clip_norm: float = float("inf")
    precision: str = "float32"
    optimizer: Optimizer = part("optimizer", "sgd")
    correction: Correction = part("correction", "none")

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if self.schedule not in SCHEDULES:
            raise ValueError(unknown("schedule", self.schedule, SCHEDULES))
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the run and must be in [0, 1), got {self.warmup}")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, PRECISIONS))

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        params = beside(self.correction.shares, received)
        device = next(iter(params.values())).device
        at, end = context.round * context.steps, context.rounds * context.steps
        return {
            "params": params,
            "optimizer": self.optimizer.init(params),
            "held": self.correction.begin(received, memory),
            "clock": {name: torch.tensor(float(value), device=device) for name, value in (("at", at), ("end", end))},
            "totals": {name: torch.zeros((), device=device) for name in ("loss", "examples", "path")},
        }

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        params, memory, clock, totals = carry["params"], carry["optimizer"], carry["clock"], carry["totals"]
        gradient, each, buffers = losses.gradient(params, batch)
        trained = {name: params[name] for name in gradient}
        gradient = self._clip(self.correction.apply(gradient, trained, carry["held"]))
        lr = self._rate(clock["at"], clock["end"])
        trained, memory = self.optimizer.step(trained, memory, gradient, lr)
        return {
            "params": {**params, **trained, **buffers},
            "optimizer": memory,
            "held": carry["held"],
            "clock": {"at": clock["at"] + 1, "end": clock["end"]},
            "totals": {
                "loss": totals["loss"] + (each * batch["mask"]).sum(),
                "examples": totals["examples"] + batch["mask"].sum(),
                "path": totals["path"] + lr,
            },
        }

    def finish(self, carry: Carry, received: Tensors, memory: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        delta = sub(carry["params"], beside(self.correction.shares, received))
        delta, memory = self.correction.finish(delta, received, memory, carry["totals"]["path"])
        return delta, memory, {name: carry["totals"][name] for name in ("loss", "examples")}

    def _clip(self, gradient: Tensors) -> Tensors:
        if self.clip_norm == float("inf"):
            return gradient
        length = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt()
        factor = (self.clip_norm / length.clamp_min(1e-12)).clamp_max(1.0)
        return map_tensors(lambda g: g * factor, gradient)

    def _rate(self, at: Tensor, end: Tensor) -> Tensor:
        done = at / end
        lr = torch.full_like(done, self.lr)
        if self.schedule != "constant":
            left = ((done - self.warmup) / (1 - self.warmup)).clamp(0, 1)
            lr = lr * ((1 - left) if self.schedule == "linear" else 0.5 * (1 + torch.cos(pi * left)))
        return lr * ((at + 1) / (self.warmup * end)).clamp_max(1.0) if self.warmup else lr
