"""A mean that is corrected for how old the clients' models are (Overlap-FedAvg; Zhou et al., 2020,
arXiv:2012.06706), read in the authors' code."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from fedpeft.aggregators.mean import Mean
from fedpeft.compute.trainable import is_statistic
from fedpeft.core.facts import Fact
from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import ClientId, State, Tensors, Update


@dataclass(frozen=True)
class Compensated:
    """Σ p·Δ − λ·(θ − θ_received) ⊙ c ⊙ c with c = Σ p·Δ ⊙ Δ, for the server's parameters θ and
    those from which clients trained, all from the same.

    The correction is of a Taylor series: c stands for the curvature (after DC-ASGD; Zheng et al.,
    2017, arXiv:1609.08326, which has c once). Where clients train from the server's own model it is
    the mean, to the bit. Running statistics and integers have no curvature, and go to their mean.

    Attributes:
      strength: λ; that of the authors is 0.04.

    Raises:
      ValueError: a value out of range; no update, or a weight that is not positive.
    """

    strength: float = 0.04
    # not the mean alone but that of squares too, which a sum of updates does not tell
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.COMPARES})
    forbids: ClassVar[Mapping[Fact, str]] = {
        fact: "compensated is for clients that train from one model: leave out {other}, or set "
        'aggregator = "mean"'
        for fact in (Fact.ASYNCHRONOUS, Fact.MIXED_RANKS, Fact.CONTROL)
    }

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise ValueError(f"strength must be 0 or positive, and finite, got {self.strength}")

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        curve = _Squares()
        mean = Mean()(curve.watch(updates), state, received)
        begun = received(curve.client)
        delta = dict(mean.delta)
        for name, x in mean.delta.items():
            if name not in begun or name not in state.params:
                continue
            drift = state.params[name] - begun[name]
            # where nothing drifted the mean stays as it is, to the bit
            if x.is_floating_point() and not is_statistic(name) and bool(drift.any()):
                delta[name] = x - (self.strength * drift * curve.mean[name].square()).to(x.dtype)
        return Update("", delta, mean.weight, mean.metrics)


@dataclass
class _Squares:
    """The weighted mean of the squares of the updates that pass.

    Attributes:
      client: the last one that passed.
    """

    mean: dict[str, Tensor] = field(default_factory=dict)
    weight: float = 0.0
    client: ClientId = ""

    def watch(self, updates: Iterable[Update]) -> Iterator[Update]:
        for update in updates:
            squares = map_tensors(lambda x: x.float().square(), update.delta)
            self.weight += update.weight
            # a weight that is not positive is an error of the mean
            by = update.weight / self.weight if self.weight > 0 else 0.0
            if self.client:
                squares = map_tensors(lambda m, s, by=by: m + by * (s - m), self.mean, squares)
            self.mean, self.client = dict(squares), update.client
            yield update
