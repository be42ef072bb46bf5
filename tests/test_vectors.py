"""Tensors that lie one after another in one vector, as what came by a wire does: the same results,
fewer operations."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedpeft.aggregators.mean import Mean
from fedpeft.codecs.dense import Dense
from fedpeft.core.tensors import equal, finite, move_to, norm, pieces, together, vector
from fedpeft.core.types import State, Tensors, Update

SHAPES = {"a": (3, 2), "b": (), "c": (5,), "d": (0, 4)}


def tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draws).to(dtype) for name, shape in SHAPES.items()}


def wired(a: Tensors) -> Tensors:
    return Dense().decode(Dense().encode(a))


def test_what_came_by_a_wire_lies_in_one_vector() -> None:
    whole = vector(wired(tensors()))
    assert whole is not None and torch.equal(
        whole, torch.cat([x.flatten() for x in tensors().values()])
    )
    copy = together(wired(tensors()))
    assert vector(copy) is not None and equal(copy, tensors())


def test_what_does_not_is_taken_one_by_one() -> None:
    base = torch.arange(6.0)
    other = torch.arange(6.0)
    strange: list[Tensors] = [
        {},
        tensors(),
        {"a": base[:3]},  # not to its end
        {"a": base[3:]},  # nor from its beginning
        {"b": base[3:], "a": base[:3]},  # in another order
        {"a": base[:3], "b": base[:3]},  # twice the same
        {"a": base[:3], "b": other[3:]},
        {"a": base.view(2, 3).T},
        {"a": base[::2]},
        {"a": base[:3], "b": base[3:].view(torch.int32)},
        {"a": torch.zeros(2, 3)[:]},  # in a table
        wired({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.int64)}),
    ]
    for one in strange:
        assert vector(one) is None and len(pieces(one)) == len(one)
        assert equal(together(one), one)


@given(
    st.sampled_from(sorted(SHAPES)), st.sampled_from([float("nan"), float("inf"), float("-inf")])
)
def test_a_number_that_is_not_finite_is_found_wherever_it_lies(name: str, value: float) -> None:
    plain = tensors()
    if plain[name].numel():
        plain[name].view(-1)[-1] = value
        assert not finite(plain) and not finite(wired(plain))
    assert finite(wired(tensors()))


def test_the_length_is_that_of_all_entries() -> None:
    for a in (tensors(), wired(tensors())):
        torch.testing.assert_close(
            norm(a), torch.cat([x.flatten() for x in tensors().values()]).double().norm()
        )
    huge = {"a": torch.full((3,), 3e38), "b": torch.full((2,), 3e38)}
    assert finite(wired(huge)) and float(norm(wired(huge))) == float(norm(huge))
    largest = {name: torch.full((1,), 1.7e308, dtype=torch.float64) for name in "ab"}
    assert finite(wired(largest)) and not finite(
        wired({**largest, "c": torch.full((1,), float("nan"), dtype=torch.float64)})
    )


def test_the_mean_is_the_same_to_the_bit_however_its_updates_lie() -> None:
    a, b, c = (tensors(seed) for seed in range(3))
    turned = dict(reversed(list(wired(c).items())))  # in a vector no more
    other_order = wired(dict(reversed(list(c.items()))))  # in a vector, in another order

    def mean(*deltas: Tensors) -> Tensors:
        updates = [Update(str(k), delta, 1.0 + k) for k, delta in enumerate(deltas)]
        return Mean()(updates, State(0, {}, {}), lambda _: {}).delta

    expected = mean(a, b, c)
    for deltas in [
        (wired(a), wired(b), wired(c)),
        (a, wired(b), c),
        (wired(a), b, turned),
        (wired(a), b, other_order),
    ]:
        before = [{name: x.clone() for name, x in delta.items()} for delta in deltas]
        assert equal(mean(*deltas), expected)
        assert all(equal(delta, kept) for delta, kept in zip(deltas, before, strict=True)), (
            "an update is written to"
        )


def test_the_mean_is_of_names_and_not_of_places() -> None:
    one, other = (
        {"a": torch.zeros(2), "b": torch.ones(2)},
        {"b": torch.ones(2), "a": torch.zeros(2)},
    )
    updates = [Update("x", wired(one), 1.0), Update("y", wired(other), 1.0)]
    assert equal(Mean()(updates, State(0, {}, {}), lambda _: {}).delta, one)


def test_what_is_repeated_is_sent_once() -> None:
    """To "cpu:0", which is the CPU under a name that is taken for another device."""
    grey = torch.arange(12.0).view(2, 1, 2, 3)
    rows = {
        "grey": grey.expand(2, 3, 2, 3),
        "blank": torch.zeros(()).expand(4, 5),
        "turned": grey.transpose(-1, -2),
        "one": torch.tensor(3),
        "none": torch.zeros(0, 4).expand(0, 4),
        "plain": grey,
    }
    found = move_to(rows, "cpu:0")
    assert equal(found, rows)
    assert found["grey"].stride()[1] == 0 and found["blank"].stride() == (0, 0)
    assert move_to(rows, "cpu") is rows
