"""Codecs whose numbers are known by hand."""

import zlib

import pytest
import torch

from fedpeft.core.interfaces import Codec, Coding
from fedpeft.core.projections import block_sizes, hadamard
from fedpeft.core.tensors import equal
from fedpeft.errors import PlanError, WireError
from fedpeft.plan.reading import read_plan
from fedpeft.registry import build
from fedpeft.wire.frames import frame


def rounded(spec: object, values: list[float]) -> list[float]:
    codec: Codec = build("codec", spec)
    found: list[float] = codec.decode(codec.encode({"a": torch.tensor(values)}))["a"].tolist()
    return found


FIVE = [4.0, -1.0, 0.5, -3.0, 0.1]
"""The mean of the magnitudes is 8.6 / 5 = 1.72."""


def test_ternary_by_hand() -> None:
    """D = 0.7 · 1.72 = 1.204: 4 and 3 are beyond it, and their mean is 3.5. With 0.05 it is 0.086,
    and all are."""
    assert rounded({"name": "ternary"}, FIVE) == [3.5, 0, 0, -3.5, 0]
    assert rounded({"name": "ternary", "threshold": 0.05}, FIVE) == pytest.approx(
        [1.72, -1.72, 1.72, -1.72, 1.72]
    )
    assert rounded("ternary", [0.0, 0.0]) == [0, 0] and rounded("ternary", [-7.0]) == [-7.0]
    assert rounded("ternary", []) == []


def test_sign_by_hand() -> None:
    assert rounded("sign", FIVE) == pytest.approx([1.72, -1.72, 1.72, -1.72, 1.72])
    assert rounded("sign", [0.0, -0.0]) == [0, 0] and rounded("sign", [-7.0]) == [-7.0]
    assert rounded("sign", [0.0, -4.0]) == [2.0, -2.0]  # no third value in one bit


def test_topk_of_signs_by_hand() -> None:
    spec = {"name": "topk", "density": 0.4, "values": "sign"}
    assert rounded(spec, FIVE) == [3.5, 0, 0, -3.5, 0]
    codec = build("codec", spec)
    x = {"a": torch.tensor(FIVE[:2]), "b": torch.tensor(FIVE[2:]), "n": torch.tensor([7])}
    got = codec.decode(codec.encode(x))
    assert got["a"].tolist() == [3.5, 0] and got["b"].tolist() == [0, -3.5, 0]
    assert got["n"].tolist() == [7]


def test_topk_in_float16_by_hand() -> None:
    spec = {"name": "topk", "density": 0.5, "values": "float16"}
    assert rounded(spec, [0.1, -0.01]) == [0.0999755859375, 0]
    with pytest.raises(ValueError, match='use the codec topk with values = "exact"'):
        rounded(spec, [70_000.0, 1.0])


def test_ranks_of_other_values_are_unknown() -> None:
    with pytest.raises(ValueError, match="values"):
        build("codec", "topk").__class__(0.1, "ternary")


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\)"):
        build("codec", "ternary").__class__(threshold)


def bits_of(spec: object, n: int = 100_000) -> float:
    """Bits an entry of Gaussian ones."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(1))
    return len(build("codec", spec).encode({"a": x})) * 8 / n


def test_bits_of_an_entry() -> None:
    """With D = 0.7 · mean|x| = 0.5585 standard deviations, 57.6 % of Gaussian entries are beyond
    it."""
    assert bits_of("sign") == pytest.approx(1, abs=0.01)
    assert bits_of("ternary") == pytest.approx(1.576, abs=0.01)
    assert bits_of({"name": "topk", "density": 0.05, "values": "sign"}) < 0.38
    assert bits_of({"name": "randk", "density": 0.01}) == pytest.approx(0.32, abs=0.01)
    assert bits_of({"name": "ferret", "density": 0.01}) == pytest.approx(0.08, abs=0.02)
    assert bits_of({"name": "int8", "deflate": True}) < 7.1 < 8 <= bits_of("int8")


def test_randk_draws_by_seed_and_sends_no_place() -> None:
    codec = build("codec", {"name": "randk", "density": 0.25})
    x = {"a": torch.arange(1.0, 101.0), "b": torch.arange(101.0, 201.0).reshape(10, 10)}
    seen = torch.zeros(200)
    for seed in range(40):
        how = Coding("up", seed, 3)
        got = torch.cat([t.reshape(-1) for t in codec.decode(codec.encode(x, how), how).values()])
        kept = got != 0
        assert int(kept.sum()) == 50 and torch.equal(got[kept], torch.arange(1.0, 201.0)[kept])
        seen += kept
    assert bool((seen > 0).all())  # each with probability 1 − 0.75^40
    assert len(codec.encode(x)) < 200 + 80


def test_ferret_keeps_what_lies_in_its_directions_and_shortens_the_rest() -> None:
    """A projection: the lengths of what is kept and of what is lost are at right angles."""
    codec = build("codec", {"name": "ferret", "density": 0.25})
    draws = torch.Generator().manual_seed(3)
    x = {"a": torch.randn(1 << 12, generator=draws)}
    for seed in range(3):
        how = Coding("up", seed)
        got = codec.decode(codec.encode(x, how), how)["a"]
        kept, lost, whole = (float(t.square().sum()) for t in (got, x["a"] - got, x["a"]))
        assert kept + lost == pytest.approx(whole, rel=5e-3)
        assert kept / whole == pytest.approx(0.25, abs=0.05)


def test_ferret_at_density_1_is_int8_of_a_transform() -> None:
    codec = build("codec", {"name": "ferret", "density": 1.0})
    x = torch.randn(128 + 5, generator=torch.Generator().manual_seed(3))
    got = codec.decode(codec.encode({"a": x}))["a"]
    assert torch.equal(got[128:], x[128:])  # what is left beside a block
    assert float((got - x)[:128].norm() / x[:128].norm()) < 0.02


def test_the_mean_of_ferrets_over_seeds_goes_to_the_density_times_the_change() -> None:
    codec = build("codec", {"name": "ferret", "density": 0.25})
    x = torch.zeros(64)
    x[5] = 8.0
    times = 400
    total = sum(
        codec.decode(codec.encode({"a": x}, Coding("up", k)), Coding("up", k))["a"]
        for k in range(times)
    )
    mean = total / times
    assert float(mean[5]) == pytest.approx(2.0, rel=0.02)
    # The rest of each is 8·√(1/4 − 1/16) long, of 63 entries with random signs.
    assert float(mean.index_fill(0, torch.tensor(5), 0.0).abs().max()) < 5 * 3.46 / 63**0.5 / 20


def test_the_hadamard_transform_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert hadamard(x).tolist() == [5.0, -1.0, -2.0, 0.0]
    assert hadamard(hadamard(x)).tolist() == x.tolist()


def test_blocks_are_powers_of_two_down_to_64() -> None:
    assert block_sizes(1000) == [512, 256, 128, 64] and block_sizes(63) == []
    assert block_sizes(0) == [] and block_sizes(64) == [64]


def test_what_deflates_further_than_20_times_is_sent_as_it_is() -> None:
    codec = build("codec", {"name": "int8", "deflate": True})
    x = {"a": torch.zeros(10_000)}
    assert codec.encode(x) == build("codec", "int8").encode(x)
    some = {"a": torch.tensor([1.0, 0.01, -0.01, 0.0]).repeat(100) * torch.rand(400)}
    short = codec.encode(some)
    assert len(short) < len(build("codec", "int8").encode(some))
    assert equal(build("codec", "int8").decode(short), codec.decode(short))


def test_a_bomb_does_not_go_off() -> None:
    body = zlib.compress(bytes(4 + 10_000_000), 9)
    with pytest.raises(WireError, match="does not inflate to at most 194760 bytes"):
        build("codec", "int8").decode(frame([[["a", [10_000_000], "float32"]], "deflated"], body))
    with pytest.raises(WireError, match="header is not this codec's"):
        build("codec", "int8").decode(frame([[["a", [1], "float32"]], "inflated"], bytes(5)))


@pytest.mark.parametrize("uplink", ["ternary", {"name": "int8", "deflate": True}])
def test_a_length_that_tells_is_refused_where_the_server_adds_the_noise(uplink: object) -> None:
    central = {
        "stages": [{"name": "client_dp", "noise_multiplier": 1.0}],
        "weighting": "uniform",
        "delta": 1e-3,
    }
    with pytest.raises(PlanError, match="has the bytes of each client"):
        read_plan({"uplink": uplink, **central})
    assert read_plan({"uplink": "sign", **central}).uplink == build("codec", "sign")
    own = {**central, "stages": [{"name": "local_dp", "noise_multiplier": 1.0}]}
    assert read_plan({"uplink": uplink, **own})  # the noise is in what is encoded
