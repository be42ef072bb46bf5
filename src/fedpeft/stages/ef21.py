"""EF21: send what is new since the last message (Richtárik et al., 2021, arXiv:2106.05203,
Algorithm 2)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.compute.trainable import is_statistic
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Codec, Coding
from fedpeft.core.types import Cohort, Context, Event, Tensors, Update
from fedpeft.registry import part


@dataclass(frozen=True)
class Ef21:
    """A client sends c = C(Δ − h), and both sides take h ← h + c; the server steps along the mean
    of all clients' h, whoever takes part in the round.

    h is this client's memory, zero at first. The server keeps the mean alone, one tensor for each
    that is trained and none for each client: it adds |S| / N times the mean of the c that the |S|
    of N clients sent. That is exactly the mean of h with `weighting = "uniform"`; by examples, a
    client with more of them counts more in it, as in the model. In the paper h follows a client's
    gradient; here it follows Δ, the change of its local training.

    Against `error_feedback`: what a codec drops is not added up and sent later, but what was sent
    is not sent again. Running statistics and integers, which are measured and not learned, pass as
    they are.

    Attributes:
      codec: C, the plan's uplink.
    """

    codec: Codec = part("codec", "topk")
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SENDS_LATER, Fact.REMEMBERS_MEAN})
    needs: ClassVar[Mapping[Fact, str]] = {
        Fact.PLAIN_MEAN: "the server adds up the mean of what is new, and another aggregator "
        'compares or rearranges it: with ef21 set aggregator = "mean"',
    }
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.SENDS_LATER: "two stages would each make good what the codec drops: take ef21 or "
        "error_feedback",
        Fact.CONTROL: "control variates change by what the clients of one round send, and ef21 "
        "steps along what all have sent: leave out {other}, or ef21",
    }

    @property
    def remembers(self) -> bool:
        return True

    @property
    def event(self) -> Event | None:
        return None

    def on_client(
        self, update: Update, memory: Tensors, context: Context
    ) -> tuple[Update, Tensors]:
        known = {name: _known(x, memory.get(name)) for name, x in update.delta.items()}
        new = {
            name: (x - known[name]).to(x.dtype) if _follows(name, x) else x
            for name, x in update.delta.items()
        }
        how = Coding("up", context.seed, context.round, budget=context.budget)
        sent = self.codec.decode(self.codec.encode(new, how), how)
        follows = [name for name, x in update.delta.items() if _follows(name, x)]
        return replace(update, delta=sent), {name: known[name] + sent[name] for name in follows}

    def on_arrival(self, update: Update) -> Update:
        return update

    def on_server(self, update: Update, cohort: Cohort) -> Update:
        return update

    def remember_update(
        self, update: Update, memory: Tensors, cohort: Cohort
    ) -> tuple[Update, Tensors]:
        """The mean of all clients' h, as the update and as what the server remembers."""
        share = len(cohort.weights) / cohort.population
        follows = {name: x for name, x in update.delta.items() if _follows(name, x)}
        mean = {n: _known(x, memory.get(n)).add(x, alpha=share) for n, x in follows.items()}
        delta = {name: mean[name].to(x.dtype) for name, x in follows.items()}
        return replace(update, delta={**update.delta, **delta}), {**memory, **mean}


def _follows(name: str, x: Tensor) -> bool:
    """Whether h follows a tensor."""
    return x.is_floating_point() and not is_statistic(name)


def _known(x: Tensor, memory: Tensor | None) -> Tensor:
    """h of a tensor, in float32 or wider."""
    if memory is not None:
        return memory
    return torch.zeros_like(x, dtype=x.dtype if x.dtype.itemsize >= 4 else torch.float32)
