"""Send next time what the codec dropped this time (Karimireddy et al., 2019, arXiv:1901.09847,
Algorithm 2)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Codec, Coding
from fedpeft.core.types import Cohort, Context, Event, Tensors, Update
from fedpeft.registry import part


@dataclass(frozen=True)
class ErrorFeedback:
    """p = Δ + e; what is sent is C(p); e ← p − C(p), in float32 or wider.

    e is this client's memory under the delta's names, zero at first. C is what the codec makes of
    its argument there and back, so what this sends passes the uplink unchanged. Integers have no
    residual.

    Attributes:
      codec: C, the plan's uplink.
    """

    codec: Codec = part("codec", "topk")
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SENDS_LATER})

    @property
    def remembers(self) -> bool:
        return True

    @property
    def event(self) -> Event | None:
        return None

    def on_client(
        self, update: Update, memory: Tensors, context: Context
    ) -> tuple[Update, Tensors]:
        wanted = {name: _plus(x, memory.get(name)) for name, x in update.delta.items()}
        how = Coding("up", context.seed, context.round, budget=context.budget)
        narrow = {n: x.to(update.delta[n].dtype) for n, x in wanted.items()}
        sent = self.codec.decode(self.codec.encode(narrow, how), how)
        floats = (name for name, x in wanted.items() if x.is_floating_point())
        return replace(update, delta=sent), {name: wanted[name] - sent[name] for name in floats}

    def on_arrival(self, update: Update) -> Update:
        return update

    def on_server(self, update: Update, cohort: Cohort) -> Update:
        return update


def _plus(x: Tensor, residual: Tensor | None) -> Tensor:
    if not x.is_floating_point():
        return x
    wide = x if x.dtype.itemsize >= 4 else x.float()
    return wide if residual is None else wide + residual
