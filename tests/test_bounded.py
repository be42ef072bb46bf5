"""What comes from outside takes no more memory than 4 times its bytes and 64 MiB."""

import json
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from contributions import Study
from test_wire import DENSE, LAYOUT, UPDATE, by_hand, sent

from fedpeft.codecs import positions
from fedpeft.errors import WireError
from fedpeft.oneshot.rejections import ContributionError
from fedpeft.registry import build
from fedpeft.wire import bounded_json
from fedpeft.wire.frames import decode_tensors, frame, unframe
from fedpeft.wire.payloads import unpack
from fedpeft.wire.sockets import read_envelope

ROOM = 64 << 20


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that Python and numpy took at most beside what they had."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def deflated(text: bytes) -> bytes:
    head = zlib.compress(text, 9)
    return by_hand(1, len(head), head)


def layout_of(count: int, name: str = "") -> bytes:
    return json.dumps([[[f"{name}{k}", [0], "float32"] for k in range(count)]]).encode()


TEXTS = {
    "empty lists": b"[" + b"[]," * 1_300_000 + b"0]",
    "lists in lists": b"[" + b"[[[9]]]," * 500_000 + b"0]",
    "empty tables": b"[" + b"{}," * 1_300_000 + b"0]",
    "tables": b"[" + b'{"":1},' * 500_000 + b"0]",
    "a wide table": b"{" + b",".join(b'"%d":1' % k for k in range(350_000)) + b"}",
    "numbers": b"[" + b"1e9," * 1_000_000 + b"0]",
    "whole numbers": b"[" + b"999," * 1_000_000 + b"0]",
    "short texts": b"[" + b'"ab",' * 800_000 + b'"a"]',
    "a long text": b'"' + b"a" * 4_000_000 + '\U0001f600"'.encode(),
    "many blanks": b" " * (1 << 26) + b"[]",
    "blanks that are read": b" " * 4_000_000 + b"[]",
    "tensors": layout_of(60_000, "some.quite.long.name.of.a.module."),
    "tensors that are read": layout_of(5_000),
    "long names": layout_of(2_000, "n" * 350),
}
LARGE = {
    "tensors that are read": layout_of(30_000),
    "long names": layout_of(10_000, "n" * 350),
}
"""The same as large as they may be."""


@pytest.mark.parametrize("name", TEXTS)
def test_a_header(name: str) -> None:
    """Of a frame, a codec's blob, an update and an envelope, deflated where that can be."""
    text, blob = TEXTS[name], deflated(TEXTS[name])

    def refused(read: Callable[[], object]) -> None:
        try:
            read()
        except WireError:
            return

    for read in (
        lambda: unframe(blob),
        lambda: decode_tensors(blob),
        lambda: unpack("c1", sent([1.0, {}], blob), DENSE, LAYOUT),
        lambda: read_envelope(text, b""),
    ):
        assert peak_of(partial(refused, read)) < ROOM + 4 * len(blob)


def test_what_was_refused_is_not_kept() -> None:
    """20 headers of a hundred bytes that inflate to 60,000 and take a megabyte each."""
    blobs = [deflated(b"[[],%d,%s0]" % (k, b"[]," * 20_000)) for k in range(20)]
    tracemalloc.start()
    for blob in blobs:
        with pytest.raises(WireError, match="lacks 2 tensors"):
            unpack("c1", sent([1.0, {}], blob), DENSE, LAYOUT)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 4 << 20


def test_what_an_honest_header_holds_is_read() -> None:
    for name in ("tensors that are read", "long names"):
        shapes, _, _ = decode_tensors(deflated(TEXTS[name]))
        assert len(shapes) == len(json.loads(TEXTS[name])[0])


@pytest.mark.parametrize(
    "text", [b"\xff\xfe[\x00]\x00", b"[1,]", b"", b"[" * 100_000, b"9" * 5_000], ids=str
)
def test_what_is_no_json(text: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        bounded_json.read(text[:20] if len(text) == 5 else text)


def test_metrics_are_few_and_their_names_short() -> None:
    many = {f"m{k}": [1.0, 1.0] for k in range(64)}
    assert len(unpack("c1", sent([1.0, many]), DENSE, LAYOUT).metrics) == 64
    for metrics, words in (
        ({**many, "one more": [1.0, 1.0]}, "65 metrics, .*at most 64"),
        ({"n" * 101: [1.0, 1.0]}, "101 characters.* with 100"),
    ):
        with pytest.raises(WireError, match=words):
            unpack("c1", sent([1.0, metrics]), DENSE, LAYOUT)
    thousands = {f"m{k}": [1.0, 1.0] for k in range(30_000)}
    blob = sent([1.0, thousands])

    def refused() -> None:
        with pytest.raises(WireError):
            unpack("c1", blob, DENSE, LAYOUT)

    assert peak_of(refused) < ROOM + 4 * len(blob)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.001])
def test_positions_take_what_they_are(share: float) -> None:
    """8 bytes a position: for values of two bytes or more that is less than 4 times the payload."""
    n = 20_000_000
    k = round(share * n)
    index = torch.from_numpy(np.arange(k) * (n // k))
    body = positions.encode(index, n)
    assert peak_of(lambda: positions.decode(body, k, n)) < 4 * (len(body) + 2 * k) + (8 << 20)


def test_a_bitmap_of_more_bits_than_are_sent() -> None:
    n = 80_000_000
    k = n // 4
    assert positions.size(k, n) == n // 8
    body = b"\xff" * (n // 8)

    def refused() -> None:
        with pytest.raises(WireError, match="marks 80000000 positions; 20000000 are sent"):
            positions.decode(body, k, n)

    assert peak_of(refused) < 4 * (len(body) + 2 * k)


def test_topk_counts_the_values_before_it_looks_for_their_places() -> None:
    """With density 1 no places are sent, so that as many bytes could ask for 8 times as many."""
    n = 20_000_000
    blob = frame([[["a", [n], "float16"]]], bytes(n))

    def refused() -> None:
        with pytest.raises(WireError, match="20000000 entries, 40000000 bytes or more"):
            build("codec", {"name": "topk", "density": 1.0}).decode(blob)

    assert peak_of(refused) < ROOM


def test_a_contribution_s_head(four: Study, tmp_path: Path) -> None:
    text = b'{"__metadata__":' + b"[]," * 20_000
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(len(text).to_bytes(8, "little") + text)

    def refused() -> None:
        with pytest.raises(ContributionError):
            four.read(bad)

    four.read(four.files[0])
    assert peak_of(refused) < 4 << 20


def test_a_file_that_is_too_large_is_not_read(four: Study, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    with bad.open("wb") as file:
        file.truncate(1 << 33)

    def refused() -> None:
        with pytest.raises(ContributionError, match="8589934592 bytes, more than"):
            four.read(bad)

    four.read(four.files[0])
    assert peak_of(refused) < 4 << 20


MEASURED = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_bounded import LARGE, TEXTS, deflated
from test_wire import DENSE, LAYOUT, sent
from fedpeft.core.tensors import layout
from fedpeft.core.types import Update
from fedpeft.wire.payloads import pack, unpack
from fedpeft.errors import WireError
from fedpeft.registry import build

def held(which):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))

def measured(blob, read):
    before = held("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    try:
        read(blob)
    except WireError:
        pass
    print(held("VmHWM") - before - 4 * len(blob))

for text in ({{**TEXTS, **LARGE}}).values():
    blob = deflated(text)
    measured(blob, lambda blob: [build("codec", name).decode(blob) for name in ("dense", "topk")])
large = Update("c1", {{"a": torch.randn(20_000_000)}})
for name in ("dense", "float16", "topk"):
    codec = build("codec", name)
    blob, wanted = pack(large, codec), layout(large.delta)
    plan = 80_000_000 if name != "dense" else 0  # what the plan's own tensors take
    measured(blob, lambda blob: unpack("c1", blob, codec, wanted) and None)
    print(-plan)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_process_as_a_whole() -> None:
    """What torch takes too: the resident memory of a process at each input's peak."""
    script = MEASURED.format(tests=str(Path(__file__).parent))
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    numbers = list(map(int, told.stdout.split()))
    texts, pairs = numbers[: len(TEXTS)], numbers[len(TEXTS) :]
    assert len(pairs) == 6 and UPDATE is not None
    beyond = [*texts, *(peak + plan for peak, plan in zip(pairs[::2], pairs[1::2], strict=True))]
    assert max(beyond) < ROOM, beyond
