"""Laws of every registered codec. A new one is tested by being registered."""

import struct
import zlib
from random import Random
from typing import Any

import pytest
import torch
from fuzzing import counts
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.codecs import positions
from fedpeft.core.interfaces import Codec, Coding
from fedpeft.core.tensors import equal, layout
from fedpeft.core.types import Tensors
from fedpeft.errors import WireError
from fedpeft.registry import build, names
from fedpeft.wire.frames import frame, layout_of, unframe

SETTINGS = {
    "int8, deflated": {"name": "int8", "deflate": True},
    "dense, deflated": {"name": "dense", "deflate": True},
    "topk, float16": {"name": "topk", "values": "float16"},
    "topk, sign": {"name": "topk", "values": "sign"},
    "ternary, all": {"name": "ternary", "threshold": 0.0},
    "ternary, but vectors": {"name": "ternary", "spares_vectors": True},
    "ternary, but a and b": {"name": "ternary", "keeps": ["a", "b.*"]},
}
"""Codecs with other settings than their own, to which the same laws apply."""
every = pytest.mark.parametrize("name", [*sorted(names("codec")), *SETTINGS])


def built(name: str) -> Any:
    return build("codec", SETTINGS.get(name, name))


FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((), (0,), (1,), (7,), (3, 0, 2), (4, 5), (2, 3, 4))


def drawn(
    shape: tuple[int, ...], dtype: torch.dtype, scale: float, draws: torch.Generator
) -> torch.Tensor:
    if dtype.is_floating_point:
        return (torch.randn(shape, generator=draws) * scale).to(dtype)
    return torch.randint(0, 2, shape, generator=draws).to(dtype)


@st.composite
def named_tensors(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = FLOATS) -> Tensors:
    draws = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    called = draw(
        st.lists(
            st.sampled_from(["a", "b.weight", "c/d.é", "layer.0.bias", ""]), unique=True, max_size=4
        )
    )
    scales = st.sampled_from([0.0, 1e-3, 1.0, 300.0])
    kinds = [
        (draw(st.sampled_from(SHAPES)), draw(st.sampled_from(dtypes)), draw(scales)) for _ in called
    ]
    return {name: drawn(*kind, draws) for name, kind in zip(called, kinds, strict=True)}


def example() -> Tensors:
    draws = torch.Generator().manual_seed(5)
    return {
        "a": drawn((5, 7), torch.float32, 1.0, draws),
        "b": drawn((11,), torch.bfloat16, 0.1, draws),
        "c": drawn((3,), torch.float16, 1.0, draws),
        "s": torch.tensor(2.5),
    }


def resealed(blob: bytes) -> bytes:
    """The blob with a checksum that fits: what an attacker sends, and no accident of the line."""
    return struct.pack("<I", zlib.crc32(blob[4:])) + blob[4:]


@every
@given(x=named_tensors())
def test_names_shapes_and_types_are_kept_and_a_second_time_changes_nothing(
    name: str, x: Tensors
) -> None:
    codec: Codec = built(name)
    once = codec.decode(codec.encode(x))
    assert layout(once) == layout(x) == layout_of(codec.encode(x))
    assert equal(codec.decode(codec.encode(once)), once)


def large(dtype: torch.dtype, heavy: bool, seed: int) -> Tensors:
    """Tensors of some size, and one of zeros."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, generator=draws, dtype=torch.float64)
    x = x.sign() * x.abs() ** 5 if heavy else x
    return {
        "a": (x[:640] / 100).reshape(20, 32).to(dtype),
        "b": torch.zeros(9),
        "c": x[640:].to(dtype),
    }


@every
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
@pytest.mark.parametrize("heavy", [False, True])
def test_a_second_time_changes_nothing_where_there_is_much(
    name: str, dtype: torch.dtype, heavy: bool
) -> None:
    codec: Codec = built(name)
    for seed in range(5):
        x, how = large(dtype, heavy, seed), Coding(root=seed)
        blob = codec.encode(x, how)
        once = codec.decode(blob, how)
        assert layout(once) == layout(x) and codec.encode(x, how) == blob
        assert equal(codec.decode(codec.encode(once, how), how), once)
        assert not once["b"].any() or name == "ferret"  # whose directions cross tensors


@every
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_refused_or_comes_back(name: str, value: float) -> None:
    codec: Codec = built(name)
    x = {"a": torch.ones(200).index_fill(0, torch.tensor([17]), value)}
    try:
        blob = codec.encode(x)
    except ValueError:
        return
    got = codec.decode(blob)["a"]
    assert name == "randk" or not bool(got[17].isfinite())


@every
@given(x=named_tensors((torch.int64, torch.int32, torch.uint8, torch.bool)))
def test_integers_travel_exactly(name: str, x: Tensors) -> None:
    codec: Codec = built(name)
    assert equal(codec.decode(codec.encode(x)), x)


@every
def test_the_argument_is_not_touched_and_the_result_is_its_readers_own(name: str) -> None:
    codec: Codec = built(name)
    x = example()
    before = {n: t.clone() for n, t in x.items()}
    blob = codec.encode(x)
    mine = codec.decode(blob)
    kept = {n: t.clone() for n, t in mine.items()}
    for tensor in codec.decode(blob).values():
        tensor.add_(1)
    assert equal(x, before) and equal(mine, kept) and codec.encode(x) == blob


@every
def test_no_tensors_at_all(name: str) -> None:
    codec: Codec = built(name)
    assert codec.decode(codec.encode({})) == {}


@every
def test_every_truncation_is_a_wire_error(name: str) -> None:
    codec: Codec = built(name)
    blob = codec.encode(example())
    for length in range(len(blob)):
        with pytest.raises(WireError):
            codec.decode(blob[:length])
        if length >= 9:
            with pytest.raises(WireError):
                codec.decode(resealed(blob[:length]))


def mutated(blob: bytes, draws: Random, alphabet: bytes = bytes(range(256))) -> bytes:
    """A few bytes changed, put in or taken out."""
    changed = bytearray(blob)
    for _ in range(draws.randint(1, 4)):
        at = draws.randrange(len(changed))
        match draws.randrange(4):
            case 0:
                changed.insert(at, draws.choice(alphabet))
            case 1 if len(changed) > 1:
                del changed[at]
            case _:
                changed[at] = draws.choice(alphabet)
    return bytes(changed)


def rewritten(blob: bytes, draws: Random) -> bytes:
    """The header's text changed, mostly into other JSON, and framed anew."""
    _, body = unframe(blob)
    flags, length = blob[4], struct.unpack_from("<I", blob, 5)[0]
    text = blob[9 : 9 + length]
    text = mutated(zlib.decompress(text) if flags else text, draws, b'0123456789-.,[]"floatbeE')
    head = struct.pack("<BI", 0, len(text)) + text + body
    return struct.pack("<I", zlib.crc32(head)) + head


def fuzz(codec: Codec, times: int) -> None:
    """Whatever comes: a WireError, or tensors of the declared layout that are not much larger than
    the blob."""
    draws = Random(times)
    blob = codec.encode(example())
    for _ in range(times):
        changed = mutated(blob, draws)
        if changed != blob:
            with pytest.raises(WireError):
                codec.decode(changed)
        for hostile in (resealed(changed), rewritten(blob, draws)):
            try:
                got = codec.decode(hostile)
            except WireError:
                continue
            assert layout(got) == layout_of(hostile)
            assert sum(x.numel() * x.itemsize for x in got.values()) <= 100 * len(hostile)


@every
@pytest.mark.parametrize("times", counts(1_000, 100_000))
def test_fuzz(name: str, times: int) -> None:
    fuzz(built(name), times)


@every
@pytest.mark.parametrize(
    "shape", [[2**39] * 3, [0, 2**62, 2**62], [1] * 1000, [-1], [1.5], ["4"], [True], [[4]]]
)
def test_an_impossible_shape_is_a_wire_error(name: str, shape: list[object]) -> None:
    with pytest.raises(WireError, match="impossible shape"):
        built(name).decode(frame([[["a", shape, "float32"]]], b""))


@every
def test_a_huge_layout_with_a_small_body_allocates_nothing(name: str) -> None:
    with pytest.raises(WireError, match=r"body (has|of) 8 bytes|8 bytes of positions"):
        built(name).decode(frame([[["a", [2**40], "float32"]]], bytes(8)))


@given(x=named_tensors())
def test_dense_and_topk_of_all_are_exact(x: Tensors) -> None:
    for spec in ("dense", {"name": "topk", "density": 1.0}):
        codec: Codec = build("codec", spec)
        assert equal(codec.decode(codec.encode(x)), x)


def rounded(spec: object, values: list[float]) -> list[float]:
    codec: Codec = build("codec", spec)
    found: list[float] = codec.decode(codec.encode({"a": torch.tensor(values)}))["a"].tolist()
    return found


def test_numbers_by_hand() -> None:
    assert rounded("float16", [0.1, -65504.0]) == [0.0999755859375, -65504.0]
    assert rounded("bfloat16", [0.1, -65504.0]) == [0.10009765625, -65536.0]
    codes = [127, -64, 13, 0]  # of 1, -0.5, 0.1, 0.001: 127 x, rounded to nearest, a half to even
    assert rounded("int8", [1.0, -0.5, 0.1, 0.001]) == pytest.approx(
        [q / 127 for q in codes], abs=1e-7
    )
    assert rounded({"name": "topk", "density": 0.5}, [1.0, -4.0, 2.0, 3.0]) == [0.0, -4.0, 0.0, 3.0]


def test_the_largest_are_of_all_tensors_as_one_vector() -> None:
    codec = build("codec", {"name": "topk", "density": 0.25})
    got = codec.decode(
        codec.encode(
            {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([[9.0, 8.0, 0.0, 0, 0]])}
        )
    )
    assert got["a"].tolist() == [0, 0, 0] and got["b"].tolist() == [[9, 8, 0, 0, 0]]


@pytest.mark.parametrize("value", [70_000.0, float("inf"), float("nan")])
def test_what_float16_cannot_hold_is_refused_when_it_is_sent(value: float) -> None:
    with pytest.raises(
        ValueError, match=r"'a' has an entry of magnitude .* use the codec bfloat16"
    ):
        build("codec", "float16").encode({"a": torch.tensor([1.0, value])})


@pytest.mark.parametrize("value", [1e39, -1e300, 3.4e38, float("inf"), float("nan")])
def test_what_bfloat16_cannot_hold_is_refused_when_it_is_sent(value: float) -> None:
    """float64, and what of float32 is rounded up past the end."""
    tensors = {"a": torch.tensor([1.0, value], dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"'a' has an entry of .* ends at 3.38953e\+38: .* dense"):
        build("codec", "bfloat16").encode(tensors)
    with pytest.raises(ValueError, match="'a' has an entry of magnitude"):
        build("codec", "bfloat16").encode({"a": tensors["a"].float()})
    assert rounded("bfloat16", [3.38e38, -3.38e38]) == pytest.approx([3.38e38, -3.38e38], rel=1e-2)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_has_no_scale_is_refused_when_it_is_sent(value: float) -> None:
    with pytest.raises(ValueError, match="'a' has an entry that is not finite"):
        build("codec", "int8").encode({"a": torch.tensor([1.0, value])})


@given(x=named_tensors())
def test_the_error_of_int8_is_half_a_level(x: Tensors) -> None:
    codec: Codec = build("codec", "int8")
    for name, got in codec.decode(codec.encode(x)).items():
        if x[name].numel():
            bound = x[name].abs().max().double() * (1 / 254 + torch.finfo(x[name].dtype).eps)
            assert (got.double() - x[name].double()).abs().max() <= bound


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, float("nan")])
def test_a_density_out_of_range(density: float) -> None:
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        build("codec", "topk").__class__(density)


def test_another_density_is_another_codec() -> None:
    blob = build("codec", {"name": "topk", "density": 0.5}).encode({"a": torch.arange(100.0)})
    with pytest.raises(WireError):
        build("codec", {"name": "topk", "density": 0.25}).decode(blob)


@given(n=st.integers(1, 3000), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_positions_come_back(n: int, share: float, seed: int) -> None:
    k = max(1, round(share * n))
    index = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:k].sort().values
    body = positions.encode(index, n)
    assert len(body) == positions.size(k, n) <= (n + 7) // 8
    assert torch.equal(positions.decode(body, k, n), index)


def test_positions_cost_little_more_than_their_information() -> None:
    n, k = 100_000, 1_000
    # The logarithm of n over k, to base 2, is 8.06 bits an entry.
    assert positions.size(k, n) * 8 / k < 9
    assert positions.size(n, n) == positions.size(0, 0) == 0


def test_a_position_beyond_the_end_is_a_wire_error() -> None:
    # 96 is 12 * 8 + 0 in blocks of 8; 12 * 8 + 7 would fit the code, not the 100.
    index = torch.tensor([3, 40, 96])
    n = 100
    body = bytearray(positions.encode(index, n))
    low = (n // len(index)).bit_length() - 1
    for bit in range(2 * low, 3 * low):
        body[bit // 8] |= 1 << bit % 8
    with pytest.raises(WireError, match="increasing numbers below 100"):
        positions.decode(bytes(body), 3, n)
