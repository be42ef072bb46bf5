"""The noise of the published code of FedPEFT (arXiv:2210.01708, version 3), which is no
differential privacy."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import log, sqrt

from torch import Tensor

from fedpeft.core.interfaces import Added, Data, Local, LossFn, Optimizer
from fedpeft.core.tensors import add_prefix, clip_length, drop_prefixes, map_tensors, take_prefix
from fedpeft.core.types import Batch, Carry, Context, Event, Tensors
from fedpeft.local.descent import Descent
from fedpeft.registry import part

NOISE = "noise"


@dataclass(frozen=True, kw_only=True)
class DpAsPublished:
    """g = clip(∇, C) + N(0, σ²) for each tensor alone, ∇ the mean gradient of a batch, σ =
    2C·√(2·ln(1.25/δ)/ε).

    To compare with the paper's rows only. It guarantees nothing: a mean's sensitivity to one
    example is not what its clipping bounds, √ has swallowed ε, and no step is accounted; the loss
    and each client's size travel as they are.

    Attributes:
      epsilon, delta: of that formula; no run has them.
      clip_norm: C, for each tensor by itself.
      epochs, batch_size, lr, schedule, optimizer: as of `descent`.

    Raises:
      ValueError: a value out of range.
    """

    epsilon: float = 5.0
    delta: float = 1e-3
    clip_norm: float = 1.0
    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.01
    schedule: str = "constant"
    optimizer: Optimizer = part("optimizer", "sgd")
    _descent: Local = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and 0 < self.delta < 1 and 0 < self.clip_norm < float("inf")):
            raise ValueError(
                "epsilon and clip_norm must be positive and delta between 0 and 1, got "
                f"{self.epsilon}, {self.clip_norm} and {self.delta}"
            )
        descent = Descent(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            schedule=self.schedule,
            optimizer=self.optimizer,
        )
        object.__setattr__(self, "_descent", descent)

    @property
    def sigma(self) -> float:
        return 2 * self.clip_norm * sqrt(2 * log(1.25 / self.delta) / self.epsilon)

    @property
    def precision(self) -> str:
        return "float32"

    @property
    def passes(self) -> float:
        return self.epochs

    @property
    def event(self) -> Event | None:
        return Event("example", None, accounted=False)

    def steps_for(self, size: int) -> int:
        return self._descent.steps_for(size)

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        return self._with_noise(self._descent.batches(data, received, context), received, context)

    def _with_noise(
        self, batches: Iterable[Batch], received: Tensors, context: Context
    ) -> Iterator[Batch]:
        assert context.secret is not None
        for step, batch in enumerate(batches):
            secret = context.secret.at("step", step)
            noise = {
                n: (self.sigma * secret.at(n).normal(x.shape)).to(x.dtype)
                for n, x in received.items()
            }
            yield {**batch, **add_prefix(NOISE, noise)}

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        return self._descent.begin(received, memory, context)

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        return self._descent.step(carry, batch, Noisy(losses, self.clip_norm))

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        return self._descent.finish(carry, received, memory)


@dataclass(frozen=True)
class Noisy:
    """A loss whose gradient is clipped tensor by tensor and has noise added."""

    losses: LossFn
    clip_norm: float

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        return self.losses(params, batch, added)

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        return self.losses.gradients(params, batch, added)

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        mean, each, buffers = self.losses.gradient(params, drop_prefixes((NOISE,), batch), added)
        short = {name: clip_length({name: g}, self.clip_norm)[name] for name, g in mean.items()}
        noise = take_prefix(NOISE, batch)
        return map_tensors(Tensor.add, short, {name: noise[name] for name in short}), each, buffers
