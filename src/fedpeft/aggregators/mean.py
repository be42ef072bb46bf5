"""The weighted mean (McMahan et al., 2017, arXiv:1602.05629)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fedpeft.aggregators.gathering import back, plus, wide
from fedpeft.core.tensors import layout, map_tensors, together, vector
from fedpeft.core.types import ClientId, State, Tensors, Update, Weighted


@dataclass(frozen=True)
class Mean:
    """Σ w·Δ / Σ w in float32 or wider, holding one running mean however large the cohort.

    The mean moves by w / Σ w towards each update, the sum running to and with it: unlike a sum of
    w·Δ it is no larger than the updates are, and of one update, or of equal ones, it is that one to
    the bit. Updates of opposite sign near the end of their type still overflow, in the step from
    one to the other; the loop keeps its state then.

    Raises:
      ValueError: no update, or a weight that is not positive.
    """

    def __call__(
        self, updates: Iterable[Update], state: State, received: Callable[[ClientId], Tensors]
    ) -> Update:
        first: Update | None = None
        mean: Tensors = {}
        weight = 0.0
        metrics: Mapping[str, Weighted] = {}
        for update in updates:
            if not update.weight > 0:
                raise ValueError(f"weight must be positive, got {update.weight}")
            weight += update.weight
            share = update.weight / weight
            if first is None:
                first, mean = update, together(map_tensors(wide, update.delta))
            else:
                _move(mean, update.delta, share)
            metrics = plus(metrics, update.metrics)
        if first is None:
            raise ValueError("no update arrived")
        return Update(
            "", map_tensors(lambda m, d: back(m, d.dtype), mean, first.delta), weight, metrics
        )


def _move(mean: Tensors, delta: Tensors, by: float) -> None:
    """That much of the way to the update, in place; at once, where both lie alike in vectors."""
    one, other = vector(mean), vector(delta)
    if one is None or other is None or layout(mean) != layout(delta):
        map_tensors(lambda m, d: m.lerp_(wide(d), by), mean, delta)
    else:
        one.detach().lerp_(other.detach(), by)
