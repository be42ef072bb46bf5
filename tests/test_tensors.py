"""Lengths and clipping, also of numbers whose squares no type holds."""

from math import isfinite, isinf, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.core.tensors import clip_length, length, norm

SINGLE = st.floats(width=32, allow_nan=False, allow_infinity=False)
DOUBLE = st.floats(-1e300, 1e300)


@pytest.mark.parametrize(
    ("values", "dtype", "long"),
    [
        ([3.0, 4.0], torch.float32, 5.0),
        ([3e20, -4e20], torch.float32, 5e20),
        ([3e38, 0.0], torch.float32, 3e38),
        ([3e200, 4e200], torch.float64, 5e200),
        ([0.0, 0.0], torch.float64, 0.0),
    ],
)
def test_lengths_by_hand(values: list[float], dtype: torch.dtype, long: float) -> None:
    whole = {"a": torch.tensor(values, dtype=dtype)}
    split = {n: torch.tensor([x], dtype=dtype) for n, x in zip("ab", values, strict=True)}
    for tensors in (whole, split, {**whole, "none": torch.zeros(0, dtype=dtype)}):
        assert float(norm(tensors)) == pytest.approx(long, rel=1e-6)
        assert length(tensors) == float(norm(tensors))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-12, 1e18, 1e30])
def test_the_length_of_a_large_vector_is_its_norm_to_a_hundred_thousandth(
    scale: float,
) -> None:
    """Also with a rest beside the rows, and where float32 holds no square of its entries."""
    whole = torch.randn(70_001, generator=torch.Generator().manual_seed(0)) * scale
    parts = dict(zip("ab", torch.split_with_sizes(whole, [70_000, 1]), strict=True))
    assert length(parts) == pytest.approx(float(norm({"a": whole})), rel=1e-5, abs=0)
    whole[-1] = 3e5 * scale  # longer than all else
    assert length(parts) == pytest.approx(float(norm({"a": whole})), rel=1e-5, abs=0)
    for bad in (float("inf"), float("nan")):
        whole[7] = bad
        assert not isfinite(length(parts))


def test_a_length_that_no_type_holds_is_infinite_and_one_of_nothing_is_none() -> None:
    assert isinf(float(norm({"a": torch.full((4,), 1.7e308, dtype=torch.float64)})))
    assert isinf(float(norm({"a": torch.tensor([1.0, float("-inf")])})))
    for rest in (1.0, float("inf"), 1e300):
        tensors = {"a": torch.tensor([float("nan")]), "b": torch.tensor([rest])}
        assert not norm(tensors).isfinite()
        assert not any(x.any() for x in clip_length(tensors, 1.0).values())


@given(
    values=st.one_of(
        st.tuples(st.lists(SINGLE, min_size=1, max_size=9), st.just(torch.float32)),
        st.tuples(st.lists(DOUBLE, min_size=1, max_size=9), st.just(torch.float64)),
    ),
    copies=st.sampled_from([1, 1000]),
    limit=st.floats(1e-10, 1e10),
)
def test_what_is_clipped_is_no_longer_than_the_limit_and_no_shorter(
    values: tuple[list[float], torch.dtype], copies: int, limit: float
) -> None:
    tensors = {"a": torch.tensor(values[0], dtype=values[1]).repeat(copies)}
    length, got = float(norm(tensors)), clip_length(tensors, limit)
    assert float(norm(got)) <= limit
    if length <= limit:
        assert torch.equal(got["a"], tensors["a"])
    else:
        assert float(norm(got)) == pytest.approx(limit, rel=2e-6)
        cosine = (got["a"].double() / limit) @ (tensors["a"].double() / length)
        assert float(cosine) == pytest.approx(1, abs=1e-5)


def test_a_million_of_the_largest_numbers_are_clipped() -> None:
    """The factor has few bits left in float32, which would leave 1.0004 of the limit."""
    largest = torch.finfo(torch.float32).max
    got = clip_length({"a": torch.full((1_000_000,), largest)}, 1e-3)
    assert 1e-3 * (1 - 2e-6) <= float(norm(got)) <= 1e-3
    assert float(got["a"][0]) == pytest.approx(1e-3 / sqrt(1e6), rel=1e-5)
