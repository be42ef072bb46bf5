"""YOCO's merge: of each tensor the mean without clients whose signs conflict most with the others'
(Xu et al., 2025, You Only Communicate Once, NeurIPS; the rule is that of the published code)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedpeft.aggregators.mean import Mean
from fedpeft.aggregators.reduce import collect_updates
from fedpeft.core.facts import Fact
from fedpeft.core.tensors import map_tensors
from fedpeft.core.types import ClientId, State, Tensors, Update
from fedpeft.core.views import meets


@dataclass(frozen=True)
class Agreeing:
    """A client's conflict in a tensor is the share of entries whose signs are opposite in it and in
    another client's, summed over the other clients. Of each tensor it takes the weighted mean over
    clients whose conflict is at most the mean plus one standard deviation of all conflicts, over
    clients and tensors; a tensor that all conflict in rests.

    Signs are those of the trained tensors and not of their changes, as in the published code, which
    judges LoRA's factors alone. The penalties that it trains with are not here.

    Attributes:
      judged: patterns of the names that conflicts are counted in; all others go to their mean.

    Raises:
      ValueError: no update, names that differ, or a weight that is not positive.
    """

    judged: tuple[str, ...] = ("*.lora_*",)
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.COMPARES})

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        cohort = collect_updates(updates)
        map_tensors(lambda *each: each[0], *(update.delta for update in cohort))  # equal names
        names = [n for n in cohort[0].delta if self._judges(n, state.params)]
        conflicts = {
            name: count_conflicts([received(u.client)[name] + u.delta[name] for u in cohort])
            for name in names
        }
        limit = _limit(conflicts)
        kept = [
            replace(
                u,
                delta={
                    n: x
                    for n, x in u.delta.items()
                    if n not in conflicts or conflicts[n][k] <= limit
                },
            )
            for k, u in enumerate(cohort)
        ]
        mean = Mean()(kept, state, received)
        rest = {n: torch.zeros_like(x) for n, x in cohort[0].delta.items() if n not in mean.delta}
        return replace(mean, delta={n: {**mean.delta, **rest}[n] for n in cohort[0].delta})

    def _judges(self, name: str, params: Tensors) -> bool:
        """Control variates and the like, which travel beside the parameters, are not judged."""
        return name in params and bool(self.judged) and meets(name, [self.judged])


def count_conflicts(each: Sequence[Tensor]) -> Tensor:
    """The share of entries of opposite sign, summed over the others, for each client:
    (clients,)."""
    signs = torch.stack([x.sign().flatten() for x in each]).double()
    entries = max(signs.shape[1], 1)
    opposite = (signs.abs() @ signs.abs().T - signs @ signs.T) / 2
    return opposite.sum(1) / entries


def _limit(conflicts: Mapping[str, Tensor]) -> float:
    if not conflicts:
        return 0.0
    every = torch.cat(list(conflicts.values()))
    # equal conflicts are all at the mean: rounding must not put them above it
    return float(every.mean() + every.std(correction=0)) * (1 + 1e-9) + 1e-12
