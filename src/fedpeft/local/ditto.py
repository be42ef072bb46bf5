"""A model of each client's own beside the common one (Ditto: Li et al., 2021, arXiv:2012.04221,
Algorithm 1)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, ClassVar

from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Augment, Data, Local, LossFn, Term
from fedpeft.core.tensors import add_prefix, drop_prefixes, take_prefix
from fedpeft.core.types import Batch, Carry, Context, Event, Tensors
from fedpeft.local.descent import Descent
from fedpeft.registry import build, part

OWN = "own"
"""The prefix of a client's own model, in its memory and in what a step carries."""


@dataclass(frozen=True, kw_only=True)
class Ditto:
    """In each step v ← v − η·(∇F(v) + λ·(v − w)) beside the step of `inner`, on the same batch. w
    is the common model that the client received, and v its own one, which stays with it.

    The common model takes the way that it takes without Ditto, to the bit. Rate, batches, terms and
    optimizer of `inner` hold for both; its correction is for the common model alone. v begins as
    the first common model that a client receives. In the paper it is the very first one of the run.
    Held-out examples of a client's own judge v; the common ones judge the common model.

    Attributes:
      mu: λ. At 0 each client trains alone; the larger, the nearer v stays to w.
      inner: how the common model is trained: "descent".

    Raises:
      ValueError: `mu` is out of range, or the inner training is none that v can follow.
    """

    mu: float = 0.1
    inner: Local = part("local", "descent")
    remembers: ClassVar[bool] = True
    remembers_clients: ClassVar[bool] = True
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.PERSONAL})
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.PERSONAL: "ditto gives each client a model of its own, and {other} tensors of its "
        "own: choose one",
        Fact.MERGES_BASE: "ditto's own models were trained for other frozen weights than those "
        "that {other} makes: choose one",
        Fact.MIXED_RANKS: "a model of a client's own has one rank: leave out {other}, or ditto",
        Fact.TURNS: "ditto trains a client's own model as a whole, and {other} {what}: choose one",
    }
    _own: Descent = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (self.mu >= 0 and isfinite(self.mu)):
            raise ValueError(f"mu must be at least 0 and finite, got {self.mu}")
        inner = self.inner
        if not isinstance(inner, Descent) or inner.remembers or inner.as_published:
            raise ValueError(
                'ditto wraps plain descent: set local.inner = "descent", without restart_schedule '
                "= false, as_published and terms that compare with the previous model"
            )
        pull = build("correction", {"name": "prox", "mu": self.mu})
        object.__setattr__(self, "_own", replace(inner, correction=pull))

    @property
    def descent(self) -> Descent:
        """The common model's training."""
        assert isinstance(self.inner, Descent)
        return self.inner

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
        """With some, features are not kept: what comes in differs from step to step."""
        return self.descent.augments

    def steps_for(self, size: int) -> int:
        return self.inner.steps_for(size)

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        return self.inner.batches(data, received, context)

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        common = self.inner.begin(received, drop_prefixes((OWN,), memory), context)
        share = self.descent.correction.share
        params = drop_prefixes((share,), received) if share else received
        own = self._own.begin(params, {}, context)
        mine = {**params, **take_prefix(OWN, memory)}
        return {**common, **_nested({**own, "params": mine})}

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        common = {group: some for group, some in carry.items() if not _is_own(group)}
        own = {group[len(OWN) + 1 :]: some for group, some in carry.items() if _is_own(group)}
        common_ = self.inner.step(common, batch, losses)
        return {**common_, **_nested(self._own.step(own, batch, losses))}

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        common = {group: some for group, some in carry.items() if not _is_own(group)}
        delta, kept, totals = self.inner.finish(common, received, drop_prefixes((OWN,), memory))
        return delta, {**kept, **add_prefix(OWN, carry[f"{OWN}/params"])}, totals

    def own_model(self, memory: Tensors) -> Tensors:
        """A client's own model of what its local training remembers; empty before it has one."""
        return take_prefix(OWN, memory)


def _nested(carry: Carry) -> dict[str, Any]:
    return {f"{OWN}/{group}": some for group, some in carry.items()}


def _is_own(group: str) -> bool:
    return group.startswith(f"{OWN}/")
