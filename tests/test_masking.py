"""The parts of secure aggregation: room for the sum, masks, shares and keys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.core.tensors import equal, layout
from fedpeft.core.types import Update
from fedpeft.exchanges import masking, sharing


@given(bits=st.sampled_from([32, 64]), clients=st.integers(2, 1000), largest=st.floats(1e-3, 1e6))
def test_the_sum_has_room_and_not_twice_as_much(bits: int, clients: int, largest: float) -> None:
    by = masking.shift(bits, clients, largest)
    assert clients * (largest * 2.0**by + 0.5) < 2 ** (bits - 1)
    assert clients * (largest * 2.0 ** (by + 1) + 0.5) > 2 ** (bits - 1) - 2


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
        assert sharing.joined({place: shares[place] for place in places}) == secret
    assert sharing.joined({0: shares[0], 1: shares[1]}) != secret
    assert secret[:16] not in b"".join(shares.values())


def test_a_pair_agrees_on_keys_that_differ_by_purpose_and_pair() -> None:
    a, b = bytes([1] * 32), bytes([2] * 32)
    one = sharing.agreed(a, sharing.public(b), "mask", ["x", "y"])
    assert one == sharing.agreed(b, sharing.public(a), "mask", ["y", "x"]) and len(one) == 32
    others = {
        sharing.agreed(a, sharing.public(b), purpose, pair)
        for purpose, pair in (("shares", "xy"), ("mask", "xz"))
    }
    assert len(others | {one}) == 3
    sealed = sharing.seal(one, bytes(64), "x", "y")
    assert len(sealed) == sharing.SEALED and sharing.unseal(one, sealed, "x", "y") == bytes(64)
    with pytest.raises(ValueError, match="were changed on their way"):
        sharing.unseal(one, sealed, "x", "z")
