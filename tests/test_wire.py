"""Frames and updates: what comes through, and that nothing else does."""

import json
import struct
import tracemalloc
import zlib
from random import Random

import pytest
import torch
from fuzzing import counts
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.core.tensors import equal, layout
from fedpeft.core.types import Update, Weighted
from fedpeft.errors import WireError
from fedpeft.registry import build
from fedpeft.wire.frames import cut, decode_tensors, encode_tensors, frame, headers, unframe
from fedpeft.wire.payloads import pack, unpack

DENSE = build("codec", "dense")
UPDATE = Update(
    "c1", {"a": torch.tensor([1.0, -2.0]), "b": torch.ones(2, 3)}, 3.0, {"loss": Weighted(1.5, 3.0)}
)
LAYOUT = layout(UPDATE.delta)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def sent(header: object, body: bytes | None = None) -> bytes:
    return frame(header, DENSE.encode(UPDATE.delta) if body is None else body, nested=True)


def by_hand(flags: int, length: int, rest: bytes, covered: int | None = None) -> bytes:
    """A frame with a checksum that fits, whatever the rest of its head says."""
    head = struct.pack("<BI", flags, length) + rest
    return struct.pack("<I", zlib.crc32(head[:covered])) + head


@given(header=json_values, body=st.binary(max_size=50))
def test_a_frame_comes_back(header: object, body: bytes) -> None:
    assert unframe(frame(header, body)) == (header, body)


def test_a_long_header_is_deflated() -> None:
    assert len(frame(["layer"] * 1000, b"")) < 100


@given(blob=st.binary(max_size=80))
def test_what_is_no_frame_is_a_wire_error(blob: bytes) -> None:
    with pytest.raises(WireError):
        unframe(blob)


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "shorter than a frame's head"),
        (by_hand(0, 100, b"[]"), "head is malformed"),
        (by_hand(2, 2, b"[]"), "head is malformed"),
        (by_hand(0, 2, b"[}"), "not readable"),
        (by_hand(0, 2, b"\xff\xff"), "not readable"),
        (by_hand(0, 200_000, b"[" * 200_000), "not readable"),
        (by_hand(0, 5_000, b"1" * 5_000), "not readable"),
        (by_hand(1, 4, b"none"), "not readable"),
        (by_hand(1, 10, zlib.compress(b"[1,2,3,4,5]")[:10]), "does not inflate"),
        (by_hand(1, 14, zlib.compress(b"[]") + b"extras"), "does not inflate"),
    ],
)
def test_malformed_frames(blob: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        unframe(blob)


def test_a_header_that_inflates_without_end_is_not_inflated() -> None:
    bomb = zlib.compress(b" " * (1 << 28), 9)
    tracemalloc.start()
    with pytest.raises(WireError, match="does not inflate"):
        unframe(by_hand(1, len(bomb), bomb))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26


@pytest.mark.parametrize(
    "header",
    [
        {},
        [],
        3,
        [3],
        [{}],
        [[["a", [1], "float32"]], 5],
        [[["a", [1]]]],
        [[["a", 1, "float32"]]],
        [[[1, [1], "float32"]]],
    ],
)
def test_malformed_layouts(header: object) -> None:
    with pytest.raises(WireError, match=r"header is not this codec's|malformed or repeated"):
        decode_tensors(frame(header, b""))


@pytest.mark.parametrize(
    "dtype", ["complex64", "float", "torch.float32", "load", "float8_e5m2", ""]
)
def test_a_type_that_does_not_travel(dtype: str) -> None:
    with pytest.raises(WireError, match="malformed or repeated"):
        decode_tensors(frame([[["a", [1], dtype]]], bytes(4)))


def test_a_repeated_name() -> None:
    with pytest.raises(WireError, match="repeated"):
        decode_tensors(frame([[["a", [1], "float32"], ["a", [1], "float32"]]], bytes(8)))


def test_a_nested_entry_is_shown_without_end() -> None:
    deep = json.loads("[" * 500 + "]" * 500)
    with pytest.raises(WireError, match="malformed"):
        decode_tensors(frame([[deep]], b""))


def test_a_truth_value_is_0_or_1() -> None:
    assert cut(b"\x00\x01", [(2, torch.bool)])[0].tolist() == [False, True]
    with pytest.raises(WireError, match="truth value"):
        cut(b"\x00\x02", [(2, torch.bool)])


def test_a_header_of_the_codecs_own() -> None:
    blob = encode_tensors([0.5, "x"], UPDATE.delta, b"body")
    assert decode_tensors(blob, extra=2) == (LAYOUT, [0.5, "x"], b"body")
    with pytest.raises(WireError, match="not this codec's"):
        decode_tensors(blob)


@pytest.mark.parametrize("name", ["dense", "bfloat16", "int8", "topk"])
def test_an_update_comes_back(name: str) -> None:
    codec = build("codec", name)
    back = unpack("c1", pack(UPDATE, codec), codec, LAYOUT[::-1])
    assert (back.client, back.weight, back.metrics) == ("c1", 3.0, UPDATE.metrics)
    assert equal(back.delta, codec.decode(codec.encode(UPDATE.delta)))


@pytest.mark.parametrize("name", ["dense", "int8", "topk"])
def test_an_update_of_which_any_byte_differs_is_refused(name: str) -> None:
    codec = build("codec", name)
    blob = pack(UPDATE, codec)
    for at in range(len(blob)):
        with pytest.raises(WireError):
            unpack("c1", blob[:at] + bytes([blob[at] ^ 16]) + blob[at + 1 :], codec, LAYOUT)
        with pytest.raises(WireError):
            unpack("c1", blob[:at], codec, LAYOUT)


def test_damage_is_not_taken_for_another_plan() -> None:
    update = Update("c1", {"a": torch.ones(1)})
    blob = bytearray(pack(update, DENSE))
    blob[blob.index(b'["a"') + 2] = ord("c")
    with pytest.raises(WireError, match="corrupt"):
        unpack("c1", bytes(blob), DENSE, layout(update.delta))


def test_headers_are_what_is_not_tensors() -> None:
    payload = pack(UPDATE, DENSE)
    assert len(payload) - headers(payload) == 8 * 4


@pytest.mark.parametrize(
    "weight", [0, -1, 0.0, float("nan"), float("inf"), 10**400, "3", None, [3]]
)
def test_a_weight_that_would_spoil_a_mean(weight: object) -> None:
    with pytest.raises(WireError, match="weight"):
        unpack("c1", sent([weight, {}]), DENSE, LAYOUT)


@pytest.mark.parametrize(
    "metric",
    [
        [float("nan"), 1],
        [1, float("inf")],
        [1, -1],
        [1],
        [1, 2, 3],
        "12",
        5,
        None,
        ["1", "2"],
        [10**400, 1],
    ],
)
def test_a_metric_that_would_spoil_a_mean(metric: object) -> None:
    with pytest.raises(WireError, match="loss"):
        unpack("c1", sent([1.0, {"loss": metric}]), DENSE, LAYOUT)


@pytest.mark.parametrize("header", [None, [], [1.0], [1.0, []], [1.0, {}, 3], {"weight": 1.0}])
def test_an_update_with_another_header(header: object) -> None:
    with pytest.raises(WireError, match="header is malformed"):
        unpack("c1", sent(header), DENSE, LAYOUT)


@pytest.mark.parametrize(
    ("delta", "reason"),
    [
        ({"a": torch.zeros(2)}, "lacks 1 tensors of the plan, first 'b'"),
        (
            {"a": torch.zeros(2), "b": torch.zeros(2, 3), "z": torch.zeros(1)},
            "holds 1 tensors .* first 'z'",
        ),
        (
            {"a": torch.zeros(2), "b": torch.zeros(3, 2)},
            "tensor 'b' came as .*3, 2.*; the plan sends .*2, 3",
        ),
        (
            {"a": torch.zeros(2).double(), "b": torch.zeros(2, 3)},
            "tensor 'a' came as .*float64.*; the plan .*float32",
        ),
        ({}, "lacks 2 tensors"),
    ],
)
def test_an_update_of_another_layout(delta: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        unpack("c1", pack(Update("c1", delta), DENSE), DENSE, LAYOUT)


def test_a_layout_that_is_not_the_plans_is_refused_before_anything_is_allocated() -> None:
    topk = build("codec", "topk")
    with pytest.raises(WireError, match="tensor 'a' came as"):
        blob = frame([[["a", [2**40], "float32"], ["b", [2, 3], "float32"]]], b"")
        unpack("c1", sent([1.0, {}], blob), topk, LAYOUT)


@pytest.mark.parametrize("times", counts(1_000, 100_000))
def test_fuzzed_updates(times: int) -> None:
    """With checksums that fit, outside and inside: a WireError, or an update that a mean can
    take."""
    draws = Random(times)
    inner = DENSE.encode(UPDATE.delta)
    for _ in range(times):
        body = bytearray(inner)
        text = bytearray(b'[3.0,{"loss":[1.5,3.0]}]')
        for _ in range(draws.randint(1, 3)):
            body[draws.randrange(4, len(body))] = draws.randrange(256)
            text[draws.randrange(len(text))] = draws.choice(b'0123456789-.,[]{}":eNI')
        body[:4] = struct.pack("<I", zlib.crc32(body[4:]))
        outside = by_hand(2, len(text), bytes(text) + inner, covered=5 + len(text) + 4)
        for blob in (outside, sent([3.0, {}], bytes(body))):
            try:
                update = unpack("c1", blob, DENSE, LAYOUT)
            except WireError:
                continue
            assert 0 < update.weight < float("inf") and layout(update.delta) == LAYOUT
