"""Frames: what crosses a wire. No pickle; a file or message from outside is untrusted until it has passed here.

    frame = check (4 bytes, CRC-32 of all that follows) | flags (1) | header length (4) | header | body

The header is JSON, deflated where that is shorter. A codec's blob is a frame whose header begins with the layout of
its tensors; an update is a frame around such a blob.
"""

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.tensors import Layout, layout
from fedpeft.core.types import Codec, Tensors, Update, Weighted
from fedpeft.errors import WireError

_HEAD = struct.Struct("<IBI")
_DEFLATED = 1
_HEADER_LIMIT = 1 << 26  # bytes of an inflated header; names of 10^5 tensors take a tenth
_DTYPES = frozenset("float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split())


def frame(header: Any, body: bytes) -> bytes:
    """A header of plain JSON values and a body, as one checked blob."""
    text = json.dumps(header, separators=(",", ":")).encode()
    short = zlib.compress(text, 9)
    flags = _DEFLATED if len(short) < len(text) else 0
    head = short if flags else text
    rest = _HEAD.pack(0, flags, len(head))[4:] + head + body
    return struct.pack("<I", zlib.crc32(rest)) + rest


def unframe(blob: bytes) -> tuple[Any, bytes]:
    """The inverse of `frame`.

    Raises:
      WireError: the blob is truncated, corrupt, or no frame.
    """
    if len(blob) < _HEAD.size:
        raise WireError(f"a payload of {len(blob)} bytes is shorter than a frame's head of {_HEAD.size}")
    check, flags, length = _HEAD.unpack_from(blob)
    if zlib.crc32(memoryview(blob)[4:]) != check:
        raise WireError(f"a payload of {len(blob)} bytes is corrupt or truncated: its checksum does not match")
    start = _HEAD.size + length
    if start > len(blob) or flags not in (0, _DEFLATED):
        raise WireError("a payload's head is malformed")
    text = blob[_HEAD.size : start]
    try:
        return json.loads(_inflate(text) if flags else text), blob[start:]
    except (ValueError, RecursionError, zlib.error) as error:
        raise WireError(f"a payload's header is not readable: {error}") from None


def _inflate(text: bytes) -> bytes:
    stream = zlib.decompressobj()
    plain = stream.decompress(text, _HEADER_LIMIT)
    if stream.unconsumed_tail:
        raise ValueError(f"it inflates to more than {_HEADER_LIMIT} bytes")
    return plain


def encode_tensors(header: list[Any], tensors: Tensors, body: bytes) -> bytes:
    """A codec's blob: the layout of what `decode` will give back, the codec's own header values, its body."""
    return frame([layout(tensors), *header], body)


def decode_tensors(blob: bytes, extra: int = 0) -> tuple[Layout, list[Any], bytes]:
    """The layout, checked, the `extra` further header values, and the body of a codec's blob.

    Raises:
      WireError: the blob is no frame, or its layout is malformed.
    """
    header, body = unframe(blob)
    if not isinstance(header, list) or len(header) != 1 + extra or not isinstance(header[0], list):
        raise WireError("a payload's header is not this codec's")
    shapes: dict[str, tuple[str, list[int], str]] = {}
    for entry in header[0]:
        match entry:
            case [str(name), list(shape), str(dtype)] if dtype in _DTYPES and name not in shapes:
                if not all(type(side) is int and 0 <= side < 1 << 40 for side in shape):
                    raise WireError(f"tensor {name!r} has the impossible shape {shape}")
                shapes[name] = (name, shape, dtype)
            case _:
                raise WireError(f"a payload's layout has the malformed or repeated entry {str(entry)[:80]}")
    return list(shapes.values()), header[1:], body


def raw(x: Tensor) -> bytes:
    """The bytes of a tensor, little-endian, row by row."""
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def unraw(body: bytes, dtype: torch.dtype, counts: list[int]) -> list[Tensor]:
    """Cut a body of exactly sum(counts) entries into vectors of its own memory.

    Raises:
      WireError: the body has another length.
    """
    expected = sum(counts) * dtype.itemsize
    if len(body) != expected:
        raise WireError(f"a payload's body has {len(body)} bytes; its layout asks for {expected}")
    if not expected:
        return [torch.zeros(0, dtype=dtype) for _ in counts]
    whole = torch.frombuffer(bytearray(body), dtype=dtype)
    return list(whole.split(counts))


def counts_of(shapes: Layout) -> list[int]:
    return [torch.Size(shape).numel() for _, shape, _ in shapes]


def pack(update: Update, codec: Codec) -> bytes:
    """An update as a client sends it; its name travels with the job."""
    metrics = {name: [m.total, m.weight] for name, m in update.metrics.items()}
    return frame([update.weight, metrics], codec.encode(update.delta))


def unpack(client: str, blob: bytes, codec: Codec, expected: Layout) -> Update:
    """The inverse of `pack`. The declared layout is checked before a tensor is allocated.

    Raises:
      WireError: the blob is corrupt, or holds other names, shapes or dtypes than expected.
    """
    header, body = unframe(blob)
    match header:
        case [float() | int() as weight, dict(pairs)] if weight > 0:
            pass
        case _:
            raise WireError("an update's header is malformed or its weight is not positive")
    declared = decode_tensors_of(body)
    if sorted(declared) != sorted(expected):
        raise WireError(_difference(declared, expected))
    try:
        metrics = {str(name): Weighted(float(total), float(count)) for name, (total, count) in pairs.items()}
    except (TypeError, ValueError):
        raise WireError("an update's metrics are malformed") from None
    return Update(client, codec.decode(body), float(weight), metrics)


def decode_tensors_of(blob: bytes) -> Layout:
    """The layout that any codec's blob declares."""
    header, _ = unframe(blob)
    return decode_tensors(blob, extra=len(header) - 1 if isinstance(header, list) else 0)[0]


def _difference(declared: Layout, expected: Layout) -> str:
    got, want = {n: (s, d) for n, s, d in declared}, {n: (s, d) for n, s, d in expected}
    if missing := sorted(set(want) - set(got)):
        return f"an update lacks {len(missing)} tensors of the plan, first {missing[0]!r}"
    if extra := sorted(set(got) - set(want)):
        return f"an update holds {len(extra)} tensors that the plan does not send, first {extra[0]!r}"
    name = next(n for n in sorted(want) if got[n] != want[n])
    return f"tensor {name!r} came as {got[name]}; the plan sends {want[name]}"


def headers(payload: bytes) -> int:
    """How many bytes of a payload are frames and headers rather than tensors."""
    body, overhead = payload, 0
    measure: Callable[[bytes], int] = lambda blob: _HEAD.size + _HEAD.unpack_from(blob)[2]
    for _ in range(2):
        cut = measure(body)
        overhead, body = overhead + cut, body[cut:]
    return overhead
