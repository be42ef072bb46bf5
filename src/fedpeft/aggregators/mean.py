"""The weighted mean (McMahan et al., 2017, arXiv:1602.05629)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedpeft.core.tensors import map_tensors, scale
from fedpeft.core.types import ClientId, State, Tensors, Update, Weighted


@dataclass(frozen=True)
class Mean:
    """Σ w·Δ / Σ w in float32, holding one running sum however large the cohort.

    Raises:
      ValueError: no update, or a weight that is not positive.
    """

    def __call__(self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]) -> Update:
        total: Tensors | None = None
        weight = 0.0
        metrics: dict[str, Weighted] = {}
        for update in updates:
            if not update.weight > 0:
                raise ValueError(f"weight must be positive, got {update.weight}")
            w = update.weight
            if total is None:
                total = scale(update.delta, w)
            else:
                total = map_tensors(lambda t, d, w=w: t.add(d, alpha=w), total, update.delta)
            weight += w
            for key, value in update.metrics.items():
                metrics[key] = metrics[key] + value if key in metrics else value
        if total is None:
            raise ValueError("no update arrived")
        return Update("", scale(total, 1 / weight), weight, metrics)
