"""The parts of secure aggregation: room for the sum, masks, shares and keys."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fedpeft.core.tensors import equal, layout
from fedpeft.core.types import Update
from fedpeft.errors import PlanError
from fedpeft.exchanges.secure import masks as masking
from fedpeft.exchanges.secure import secret_sharing as sharing

settings_of_sums = given(
    bits=st.sampled_from([32, 64]),
    clients=st.integers(2, 10_000),
    largest=st.one_of(
        st.floats(1e-300, 1e300), st.floats(1e-3, 1e6), st.integers(-20, 20).map(lambda k: 2.0**k)
    ),
)


@settings_of_sums
@example(bits=64, clients=2, largest=8.0)
@example(bits=64, clients=4, largest=8.0)
def test_the_sum_has_room_and_not_twice_as_much(bits: int, clients: int, largest: float) -> None:
    """In fractions: in float64, 2^63 − 1 is 2^63."""
    by = masking.shift(bits, clients, largest)
    one, half = Fraction(largest) * Fraction(2) ** by, Fraction(1, 2)
    assert clients * (one + half) < 2 ** (bits - 1)
    assert clients * (2 * one + half) > 2 ** (bits - 1) - 1


@settings_of_sums
def test_any_number_of_the_largest_updates_comes_back(
    bits: int, clients: int, largest: float
) -> None:
    """To half a step, and to what float64 can tell."""
    delta = {"a": torch.tensor([largest, -largest, 0.7 * largest], dtype=torch.float64)}
    by = masking.shift(bits, clients, largest)
    each = masking.integers(Update("c", delta), bits, by)
    total = (each.astype(object) * clients % 2**bits).astype(each.dtype)
    got = masking.mean(total, by, layout(delta))
    assert got.weight == clients
    close = float(np.ldexp(0.5, -by)) + 2.0**-51 * largest
    torch.testing.assert_close(got.delta["a"], delta["a"], rtol=0, atol=close)


def test_the_shifts_of_ordinary_plans() -> None:
    """Results of finished runs follow from them."""
    known = {
        (32, 2, 8.0): 26,
        (32, 6, 8.0): 25,
        (32, 8, 400.0): 19,
        (32, 10, 8.0): 24,
        (32, 100, 1.0): 24,
        (32, 3, 0.1): 32,
        (32, 1000, 56.0): 15,
        (64, 3, 8.0): 58,
        (64, 10, 8.0): 56,
    }
    assert {setting: masking.shift(*setting) for setting in known} == known
    update = Update("c", {"b": torch.tensor([0.3, -8.0]), "a": torch.tensor(1e-9)}, 3.0)
    assert masking.integers(update, 32, 20).view(np.int32).tolist() == [0, 943_718, -25_165_824, 3]


def test_four_updates_of_the_limit_in_64_bits_keep_their_sign() -> None:
    delta = {"a": torch.full((3,), 8.0)}
    by = masking.shift(64, 4, 8.0)
    total = sum(masking.integers(Update(c, delta), 64, by) for c in "abc") + masking.integers(
        Update("d", delta), 64, by
    )
    assert equal(masking.mean(total, by, layout(delta)).delta, delta)


def test_what_the_bits_cannot_hold_is_refused() -> None:
    delta = {"a": torch.ones(1)}
    for update, bits, by in (
        (Update("c", delta), 64, 63),
        (Update("c", delta), 32, 31),
        (Update("c", delta, 2.0**31), 32, 0),
        (Update("c", {"a": torch.tensor([float("nan")])}), 32, 8),
    ):
        with pytest.raises(ValueError, match=f"beyond {bits} bits"):
            masking.integers(update, bits, by)
    with pytest.raises(ValueError, match="cannot hold a sum of"):
        masking.shift(32, 2**32, 1.0)


@pytest.mark.parametrize(
    ("bits", "clients", "limit", "max_weight", "reason"),
    [
        (32, 4, 8.0, 2_000_000_000, "sum of 4 weights of at most max_weight = 2000000000"),
        (32, 4, 1e-9, 2**29, "sum of 4 weights"),
        (64, 4, 8.0, 2**61, "sum of 4 weights"),
        (32, 4, float("inf"), 1, "4 updates of limit"),
        (64, 4, 1e308, 100, "4 updates of limit"),
        (32, 6, 1e9, 1, "6 updates of limit"),
    ],
)
def test_a_plan_whose_sum_could_overflow_is_refused(
    bits: int, clients: int, limit: float, max_weight: int, reason: str
) -> None:
    with pytest.raises(PlanError, match=reason):
        masking.check_room(bits, clients, limit, max_weight)
    masking.check_room(64, 4, 8.0, 2_000_000_000)
    masking.check_room(32, 4, 1e-9, 2**29 - 1)


@pytest.mark.parametrize("bits", [32, 64])
def test_largest_updates_of_either_sign_come_back(bits: int) -> None:
    expected = {"a": torch.tensor([[8.0, -8.0]]), "b": torch.tensor(0.5)}
    updates = [Update(f"c{k}", expected, 7.0) for k in range(5)]
    by = masking.shift(bits, 5, 7 * 8.0)
    total = sum(masking.integers(update, bits, by) for update in updates[1:]) + masking.integers(
        updates[0], bits, by
    )
    got = masking.mean(total, by, layout(expected))
    assert equal(got.delta, expected) and got.weight == 35
    with pytest.raises(ValueError, match="add up to 0"):
        masking.mean(total - total, by, layout(expected))


def test_masks_are_the_key_stream_of_chacha20_with_all_256_bits_of_the_seed() -> None:
    """The first block is that of RFC 8439, appendix A.1, test vector 1."""
    assert (
        masking.mask(bytes(32), 4, 32).astype("<u4").tobytes().hex()
        == "76b8e0ada0f13d90405d6ae55386bd28"
    )
    assert (
        masking.mask(bytes(32), 2, 64).astype("<u8").tobytes().hex()
        == "76b8e0ada0f13d90405d6ae55386bd28"
    )
    seeds = [bytes(32), *((1 << bit).to_bytes(32, "big") for bit in range(256))]
    assert len({masking.mask(seed, 8, 32).tobytes() for seed in seeds}) == 257


def test_a_threshold_of_shares_tells_the_secret_and_fewer_do_not() -> None:
    secret = bytes(range(32))
    shares = dict(enumerate(sharing.split(secret, 3, 5)))
    assert all(len(share) == 32 for share in shares.values())
    for places in ((0, 1, 2), (4, 2, 0), (0, 1, 2, 3, 4)):
        assert sharing.join_shares({place: shares[place] for place in places}) == secret
    assert sharing.join_shares({0: shares[0], 1: shares[1]}) != secret
    assert secret[:16] not in b"".join(shares.values())


def test_a_pair_agrees_on_keys_that_differ_by_purpose_and_pair() -> None:
    a, b = bytes([1] * 32), bytes([2] * 32)
    one = sharing.agree_on_key(a, sharing.public(b), "mask", ["x", "y"])
    assert one == sharing.agree_on_key(b, sharing.public(a), "mask", ["y", "x"]) and len(one) == 32
    others = {
        sharing.agree_on_key(a, sharing.public(b), purpose, pair)
        for purpose, pair in (("shares", "xy"), ("mask", "xz"))
    }
    assert len(others | {one}) == 3
    sealed = sharing.seal(one, bytes(64), "x", "y")
    assert len(sealed) == sharing.SEALED and sharing.unseal(one, sealed, "x", "y") == bytes(64)
    with pytest.raises(ValueError, match="were changed on their way"):
        sharing.unseal(one, sealed, "x", "z")
