"""The mean of integers: one result, whatever the order, the groups and the processor."""

from fractions import Fraction
from hashlib import sha256
from itertools import permutations
from math import ldexp
from random import Random

import pytest
import torch
from torch import Tensor

from fedpeft.aggregators.exact_mean import ExactMean, ExactSum
from fedpeft.core.tensors import equal
from fedpeft.core.types import State, Tensors, Update

STATE = State(0, {})
GOLDEN = "c69b4ff64307bd1d7b4c602a2579cee31039f268d08fb2929c77630f88d0baf9"


def mean(updates: list[Update]) -> Tensors:
    return ExactMean()(updates, STATE, lambda client: {}).delta


def cohort(size: int, spread: float = 8.0) -> list[Update]:
    """Updates whose entries are of very different sizes, with weights like numbers of examples."""
    draws = torch.Generator().manual_seed(size)
    return [
        Update(
            f"c{k}",
            {
                "a": torch.randn(40, generator=draws)
                * 10.0 ** (spread * (torch.rand(40, generator=draws) - 0.7))
            },
            float(3 + 7 * k),
        )
        for k in range(size)
    ]


def test_every_order_gives_the_same_bits() -> None:
    updates = cohort(5)
    first = mean(updates)
    assert all(equal(mean(list(order)), first) for order in permutations(updates))


def test_groups_may_be_added_first() -> None:
    """Hospitals by region, regions by country: a sum of sums is the sum of all."""
    updates = cohort(9)
    whole = ExactSum.of(updates[0].delta["a"])
    for update in updates:
        whole.add(update.delta["a"], update.weight)
    for cut in (1, 4, 8):
        parts = []
        for group in (updates[cut:], updates[:cut]):
            part = ExactSum.of(updates[0].delta["a"])
            for update in group:
                part.add(update.delta["a"], update.weight)
            parts.append(part)
        one, other = parts
        one.join(other)
        assert torch.equal(one.mean(), whole.mean())


def test_it_is_the_mean_of_fractions() -> None:
    updates = cohort(6)
    got, weight = mean(updates)["a"], sum(Fraction(one.weight) for one in updates)
    for k, value in enumerate(got.tolist()):
        terms = (Fraction(one.weight) * Fraction(one.delta["a"][k].item()) for one in updates)
        exact = float(sum(terms) / weight)
        assert value == pytest.approx(exact, rel=2**-23, abs=2**-60)


def entries(*values: float, kind: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=kind)


def test_what_cancels_leaves_the_small_ones() -> None:
    """A sum of float32 loses a millionth beside ten millions; this one does not."""
    numbers = (1e7, 1e-6, -1e7)
    updates = [Update(f"c{k}", {"a": entries(x)}, 1.0) for k, x in enumerate(numbers)]
    assert mean(updates)["a"].item() == pytest.approx(1e-6 / 3, rel=1e-6)


def test_one_alone_is_itself() -> None:
    [one] = cohort(1, spread=4.0)
    assert equal(mean([Update("c0", one.delta, 7.0)]), one.delta)


def test_too_large_a_sum_is_a_plain_one() -> None:
    huge = [Update(f"c{k}", {"a": entries(3e30, 1.0)}, 2.0) for k in range(3)]
    assert mean(huge)["a"].tolist() == [pytest.approx(3e30), 1.0]
    broken = [Update("c0", {"a": entries(float("inf"), float("nan"), 1.0)}, 1.0)]
    assert mean(broken)["a"].isfinite().tolist() == [False, False, True]


def test_weights_that_are_no_whole_numbers_count_alike_in_any_order() -> None:
    updates = [Update(f"c{k}", one.delta, 0.1 * (k + 1)) for k, one in enumerate(cohort(4))]
    first = mean(updates)
    assert all(equal(mean(list(order)), first) for order in permutations(updates))


def test_the_bits_are_those_of_every_machine() -> None:
    """Which were written down once; another processor must come to them. The entries are made of
    integers, as the random numbers of torch may differ in their last bits."""
    draw = Random(7)
    updates = []
    for k in range(8):
        numbers = [ldexp(draw.getrandbits(24) - 2**23, draw.randint(-60, -20)) for _ in range(1000)]
        updates.append(Update(f"c{k}", {"a": entries(*numbers)}, float(3 + 7 * k)))
    assert sha256(mean(updates)["a"].numpy().tobytes()).hexdigest() == GOLDEN


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_not_positive_is_an_error(weight: float) -> None:
    with pytest.raises(ValueError, match="weight must be positive"):
        mean([Update("c0", {"a": torch.ones(1)}, weight)])
