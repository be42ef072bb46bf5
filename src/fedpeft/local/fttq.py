"""Local training that is aware of ternary rounding (FTTQ of T-FedAvg; Xu et al., 2020,
arXiv:2003.03564, Algorithm 1), read in the authors' code."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Added, Augment, Data, Local, LossFn, Term
from fedpeft.core.ternary_weights import ternarise
from fedpeft.core.types import Batch, Carry, Context, Event, Tensors
from fedpeft.core.views import meets
from fedpeft.errors import PlanError, unknown
from fedpeft.local.descent import Descent
from fedpeft.registry import part

GRADIENTS = ("straight", "scaled")
ENDS = ("latent", "ternary")


@dataclass(frozen=True, kw_only=True)
class FTTQ:
    """θ ← θ − η·g for the gradient g of the loss at Q(θ): the step is of latent weights θ, and the
    pass sees ternary ones.

    Q(θ) is w·sign(θ) where |θ| > D = threshold·mean|θ| of its tensor, and 0 elsewhere, for w the
    mean of |θ| there. Tensors of two dimensions or more are rounded; biases and norms stay. With
    `downlink = "ternary"` of the same threshold clients start from what they train with, and the
    server's model is the latent one.

    The authors' code computes w from the latent weights too, by default. It also has a w that is
    trained, which then only scales the gradients; here nothing is trained for w. Its thresholds
    divide by a part of a tensor's size, so that they are 0.07 means for a linear layer and 0.63 for
    a convolution; 0.7 is that of ternary weight networks.

    Attributes:
      threshold: D in means of |θ|.
      gradient: "straight" takes g as it is; "scaled", as published, w·g where |θ| > D. With plain
        SGD the steps of these entries are then as small as w is.
      ends: what a client sends the change to: its "latent" weights, or Q of them ("ternary"), as
        published.
      keeps: patterns of names of tensors that are not rounded, as of file names; the authors leave
        the first and the last layer, e.g. ["classifier.*"].
      inner: how a step is taken: "descent".

    Raises:
      ValueError: a value out of range, or an inner training that this one cannot wrap.
    """

    threshold: float = 0.7
    gradient: str = "straight"
    ends: str = "latent"
    keeps: tuple[str, ...] = ()
    inner: Local = part("local", "descent")
    # `inner` begins, and it looks at nothing of the context but its rounds and steps
    begins_alike: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be in [0, 1), got {self.threshold}")
        if self.gradient not in GRADIENTS:
            raise ValueError(unknown("gradient", self.gradient, GRADIENTS))
        if self.ends not in ENDS:
            raise ValueError(unknown("ends", self.ends, ENDS))
        if not isinstance(self.inner, Descent) or self.inner.as_published:
            raise ValueError(
                'fttq wraps plain descent: set local.inner = "descent", without as_published'
            )

    @property
    def descent(self) -> Descent:
        """What takes the steps."""
        assert isinstance(self.inner, Descent)
        return self.inner

    @property
    def forbids(self) -> Mapping[Fact, str]:
        if self.ends == "latent":
            return {}
        words = (
            'control variates follow from the path of a client\'s steps, and ends = "ternary" '
            'leaves that path: set ends = "latent", or leave SCAFFOLD out'
        )
        return {Fact.CONTROL: words}

    @property
    def precision(self) -> str:
        return self.inner.precision

    @property
    def passes(self) -> float:
        return self.inner.passes

    @property
    def event(self) -> Event | None:
        return None

    @property
    def remembers(self) -> bool:
        return self.descent.remembers

    @property
    def lr(self) -> float:
        return self.descent.lr

    @property
    def batch_size(self) -> int:
        """By which `weighting = "batches"` rounds."""
        return self.descent.batch_size

    @property
    def group_by_length(self) -> bool:
        return self.descent.group_by_length

    @property
    def terms(self) -> tuple[Term, ...]:
        return self.descent.terms

    @property
    def augments(self) -> tuple[Augment, ...]:
        return self.descent.augments

    def check_params(self, params: Tensors) -> None:
        """Raises PlanError where nothing would be rounded."""
        if not any(self.is_rounded(name, x) for name, x in params.items()):
            raise PlanError(
                "fttq rounds trained tensors of two dimensions or more, and none is left: take "
                f"some of the patterns out of local.keeps = {list(self.keeps)}, or set local = "
                '"descent"'
            )

    def steps_for(self, size: int) -> int:
        return self.inner.steps_for(size)

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        return self.inner.batches(data, received, context)

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        return self.inner.begin(received, memory, context)

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        return self.inner.step(carry, batch, Rounded(losses, self))

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        if self.ends == "ternary":
            carry = {**carry, "params": self.rounded(carry["params"])[0]}
        return self.inner.finish(carry, received, memory)

    def is_rounded(self, name: str, x: Tensor) -> bool:
        kept = bool(self.keeps) and meets(name, [self.keeps])
        return x.ndim >= 2 and x.is_floating_point() and not kept

    def rounded(self, params: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Q(θ), and by what each gradient is multiplied on its way to θ, where by something else
        than 1."""
        ternary, factors = dict(params), {}
        for name, x in params.items():
            if not self.is_rounded(name, x):
                continue
            ternary[name], scale, inside = ternarise(x, self.threshold)
            if self.gradient == "scaled":
                factors[name] = torch.where(inside, scale, torch.ones_like(scale))
        return ternary, factors


@dataclass(frozen=True)
class Rounded:
    """A loss at ternary weights, with the gradients of the latent ones."""

    losses: LossFn
    by: FTTQ

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        return self.losses(self.by.rounded(params)[0], batch, added)

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        ternary, factors = self.by.rounded(params)
        gradient, each, buffers = self.losses.gradient(ternary, batch, added)
        return _scaled(gradient, factors), each, buffers

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        ternary, factors = self.by.rounded(params)
        return _scaled(self.losses.gradients(ternary, batch, added), factors)


def _scaled(gradient: Tensors, factors: Tensors) -> Tensors:
    return {name: g * factors[name] if name in factors else g for name, g in gradient.items()}
