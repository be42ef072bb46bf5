"""Frames: what crosses a wire. No pickle; a file or message from outside is untrusted until it has
passed here.

    frame = check (4 bytes, CRC-32 of all that follows)
            | flags (1) | header length (4) | header | body

The header is JSON, deflated where that is shorter. A codec's blob is a frame whose header begins
with the layout of its tensors; an update is a frame around such a blob. Of that body the check
covers the check, the first 4 bytes, which covers the rest: no byte is summed twice.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedpeft.core.tensors import Layout
from fedpeft.core.types import Tensors
from fedpeft.errors import WireError
from fedpeft.wire import bounded_json

_HEAD = struct.Struct("<IBI")
_CHECK = 4  # bytes
_DEFLATED, _NESTED = 1, 2
_JSON = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one for each frame
# Of one tensor, a side of 0 counted as 1: beyond it torch's own arithmetic may overflow.
_ENTRIES_LIMIT = 1 << 48
_SIDES_LIMIT = 64
_TINY = 64  # bytes of a header below which deflating gains nothing
_SHORT = 1 << 12  # bytes of a header whose deflated form is remembered
_REPEATED = 1 << 15  # bytes of an inflated header whose layout is remembered
_DTYPES = frozenset(
    [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
    ]
)


Body: TypeAlias = bytes | memoryview
"""Bytes, or a view of some that are held elsewhere."""


def frame(header: Any, body: bytes, nested: bool = False) -> bytes:
    """A header of plain JSON values and a body, as one checked blob; `nested` if the body is such a
    blob itself."""
    return _framed(_JSON.encode(header).encode(), body, nested)


def _framed(text: bytes, body: bytes, nested: bool = False) -> bytes:
    head = _shorter(text) if _TINY < len(text) <= _SHORT else _deflate(text)
    flags = (_DEFLATED if len(head) < len(text) else 0) | (_NESTED if nested else 0)
    # Without the check, which is of all that follows it.
    start = _HEAD.pack(0, flags, len(head))[_CHECK:] + head
    check = zlib.crc32(body[:_CHECK] if nested else body, zlib.crc32(start))
    return b"".join([struct.pack("<I", check), start, body])


@lru_cache(maxsize=16)
def _shorter(text: bytes) -> bytes:
    """A short header; the same from all clients."""
    return _deflate(text)


def _deflate(text: bytes) -> bytes:
    """A header, deflated if that helps."""
    return text if len(text) <= _TINY else min(text, zlib.compress(text, 9), key=len)


def unframe(blob: bytes, nested: bool = False) -> tuple[Any, bytes]:
    """The inverse of `frame`; the body of a nested one is yet to be checked.

    Raises:
      WireError: the blob is truncated, corrupt, or no frame.
    """
    text, flags, body = _halves(blob, nested)
    return _read(text, flags), bytes(body)


def _halves(blob: bytes, nested: bool = False, check: bool = True) -> tuple[bytes, int, memoryview]:
    """Header, flags and body, a view of the blob."""
    if len(blob) < _HEAD.size:
        raise WireError(
            f"a payload of {len(blob)} bytes is shorter than a frame's head of {_HEAD.size}"
        )
    crc, flags, length = _HEAD.unpack_from(blob)
    start = _HEAD.size + length
    view = memoryview(blob)
    # The checksum comes first, so that an accident on the way is called that and not a malformed
    # head.
    if check and zlib.crc32(view[_CHECK : start + _CHECK if nested else None]) != crc:
        raise WireError(
            f"a payload of {len(blob)} bytes is corrupt or truncated: its checksum does not match"
        )
    if start > len(blob) or flags & ~_DEFLATED != (_NESTED if nested else 0):
        raise WireError("a payload's head is malformed")
    return blob[_HEAD.size : start], flags, view[start:]


def _read(text: bytes, flags: int) -> Any:
    try:
        return bounded_json.read(_plain(text, flags))
    except (ValueError, RecursionError, zlib.error) as error:
        raise WireError(f"a payload's header is not readable: {error}") from None


def _plain(text: bytes, flags: int) -> bytes:
    return _inflate(text) if flags & _DEFLATED else text


def _inflate(text: bytes) -> bytes:
    stream = zlib.decompressobj()
    plain = stream.decompress(text, bounded_json.LONGEST)
    # The limit is on what comes out: a few bytes may stand for gigabytes. What lies behind the end
    # of the stream would be read by nobody.
    if not stream.eof or stream.unused_data:
        raise ValueError(f"it does not inflate to at most {bounded_json.LONGEST} bytes")
    return plain


def encode_tensors(header: list[Any], tensors: Tensors, body: bytes) -> bytes:
    """A codec's blob: the layout of what `decode` will give back, the codec's own header values,
    its body."""
    text = _layout_text(tuple((name, x.shape, x.dtype) for name, x in tensors.items()))
    return _framed(
        b"[" + b",".join([text, *(_JSON.encode(x).encode() for x in header)]) + b"]", body
    )


@lru_cache(maxsize=16)
def _layout_text(entries: tuple[tuple[str, torch.Size, torch.dtype], ...]) -> bytes:
    """A layout as it stands in a header; all clients of a plan have one."""
    made = [[name, list(shape), str(kind).removeprefix("torch.")] for name, shape, kind in entries]
    return _JSON.encode(made).encode()


def decode_tensors(
    blob: bytes, extra: int | None = 0, check: bool = True
) -> tuple[Layout, list[Any], Body]:
    """The layout, checked, the `extra` further header values (None: any number), and the body of a
    codec's blob.

    Raises:
      WireError: the blob is no frame, or its layout is malformed.
    """
    text, flags, body = _halves(blob, check=check)
    shapes, values = _layout(text, flags)
    if extra is not None and len(values) != extra:
        raise WireError("a payload's header is not this codec's")
    return [(name, list(shape), dtype) for name, shape, dtype in shapes], list(values), body


def _layout(text: bytes, flags: int) -> tuple[list[tuple[str, list[int], str]], list[Any]]:
    """The layout and the further values of a codec's header, as it came.

    What is remembered is short as it is read, not as it came: what takes 4 KB may inflate to MB.
    """
    try:
        plain = _plain(text, flags)
    except (ValueError, zlib.error) as error:
        raise WireError(f"a payload's header is not readable: {error}") from None
    return _declared_again(plain) if len(plain) <= _REPEATED else _read_declared(plain)


def _read_declared(plain: bytes) -> tuple[list[tuple[str, list[int], str]], list[Any]]:
    match _read(plain, 0):
        case [list(entries), *values]:
            pass
        case _:
            raise WireError("a payload's header is not this codec's")
    shapes: dict[str, tuple[str, list[int], str]] = {}
    for entry in entries:
        match entry:
            case [str(name), list(shape), str(dtype)] if dtype in _DTYPES and name not in shapes:
                if not _possible(shape):
                    raise WireError(
                        f"tensor {name[:80]!r} has the impossible shape {show_value(shape)}"
                    )
                shapes[name] = (name, shape, dtype)
            case _:
                raise WireError(
                    f"a payload's layout has the malformed or repeated entry {show_value(entry)}"
                )
    return list(shapes.values()), values


# The clients of a plan send the same header again and again: short ones are read once.
_declared_again = lru_cache(maxsize=16)(_read_declared)


def show_value(value: Any) -> str:
    """A part of a hostile value, for a message: it may be long, or nested deeper than Python
    prints."""
    try:
        return str(value)[:80]
    except RecursionError:
        return f"a nested {type(value).__name__}"


def _possible(shape: list[Any]) -> bool:
    # `isinstance` would take true for the number 1.
    sides = all(type(side) is int and side >= 0 for side in shape)
    return (
        sides and len(shape) <= _SIDES_LIMIT and prod(side or 1 for side in shape) <= _ENTRIES_LIMIT
    )


def join(tensors: Iterable[Tensor]) -> bytes:
    """A body: the tensors' bytes one after another, little-endian, row by row."""
    return b"".join(map(_bytes_of, tensors))


def _bytes_of(x: Tensor) -> memoryview:
    """A view of a tensor's bytes."""
    flat = x.detach().cpu().contiguous().view(-1)
    # As bytes, since numpy has no bfloat16.
    return flat.view(torch.uint8).numpy().data


def cut(body: Body, parts: Sequence[tuple[int, torch.dtype]]) -> list[Tensor]:
    """The inverse of `join`: vectors of so many entries of such a type; no two have an entry in
    common.

    Raises:
      WireError: the body has another length; nothing is allocated then.
    """
    expected = sum(count * dtype.itemsize for count, dtype in parts)
    if len(body) != expected:
        raise WireError(f"a payload's body has {len(body)} bytes; its layout asks for {expected}")
    view = memoryview(body)
    types = {dtype for _, dtype in parts}
    if len(types) == 1 and torch.bool not in types and expected:  # as most have: one copy for all
        whole = torch.frombuffer(bytearray(view), dtype=types.pop())
        return list(torch.split_with_sizes(whole, [count for count, _ in parts]))
    at, found = 0, []
    for count, dtype in parts:
        end = at + count * dtype.itemsize
        if dtype is torch.bool and count and max(view[at:end]) > 1:
            raise WireError("a payload has a truth value that is neither 0 nor 1")
        # bytearray: a tensor may be written to by its owner, and torch will not share memory that
        # may not
        found.append(
            torch.frombuffer(bytearray(view[at:end]), dtype=dtype)
            if count
            else torch.zeros(0, dtype=dtype)
        )
        at = end
    return found


def kinds(shapes: Layout) -> list[tuple[int, torch.dtype]]:
    """The number of entries and the type of each tensor, for `cut`."""
    # A layout that was read has no other types than those of `_DTYPES`, so nothing else of torch is
    # reached.
    return [(prod(shape), getattr(torch, dtype)) for _, shape, dtype in shapes]


def layout_of(blob: bytes) -> Layout:
    """The layout that any codec's blob declares."""
    # Who decodes the blob checks it: no byte is summed twice.
    return decode_tensors(blob, extra=None, check=False)[0]


def check_blob(blob: bytes) -> None:
    """Raises WireError for a blob whose checksum does not match."""
    _halves(blob)


def is_nested(blob: bytes) -> bool:
    """Whether a frame is around another one; of what is too short for a frame, False."""
    return len(blob) >= _HEAD.size and bool(_HEAD.unpack_from(blob)[1] & _NESTED)


def headers(payload: bytes) -> int:
    """How many bytes of a payload are frames and headers rather than tensors."""
    outer: int = _HEAD.size + _HEAD.unpack_from(payload)[2]
    if not is_nested(payload):
        return outer
    inner: int = _HEAD.size + _HEAD.unpack_from(payload, outer)[2]
    return outer + inner
