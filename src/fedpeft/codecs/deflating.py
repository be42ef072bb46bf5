"""Deflated bodies, for codecs that offer them, and bounds on what unpacks of one."""

import zlib

from fedpeft.core.interfaces import Coding
from fedpeft.errors import WireError
from fedpeft.wire.frames import Body, kinds

DEFLATED = "deflated"
"""The header's word for a deflated body."""
LONGEST = 20
"""How many times as long as it came a deflated body may be, so that a short payload makes its
reader allocate little. Who knows the layout beforehand goes by its bytes instead."""


def deflate_body(body: bytes, how: Coding) -> tuple[list[str], bytes]:
    """What stands in the header of a body, and the body: deflated where that is shorter and the
    reader takes it."""
    short = zlib.compress(body, 9)
    taken = bool(how.layout) or len(body) <= LONGEST * len(short)
    return ([DEFLATED], short) if taken and len(short) < len(body) else ([], body)


def read_body(values: list[object], body: Body, how: Coding) -> Body:
    """The inverse of `deflate_body`.

    Raises:
      WireError: the header says something else, or more unpacks than may.
    """
    if not values:
        return body
    if values != [DEFLATED]:
        raise WireError("a payload's header is not this codec's")
    if how.layout:
        # a codec's body may hold some bytes beside the tensors' own, such as one scale a tensor
        most = sum(8 + count * dtype.itemsize for count, dtype in kinds(list(how.layout)))
    else:
        most = LONGEST * len(body)
    return _inflate(body, most)


def _inflate(body: Body, most: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(body, most + 1)  # so that the end is seen
    except zlib.error as error:
        raise WireError(f"a payload's body does not inflate: {error}") from None
    if not stream.eof or stream.unused_data:
        raise WireError(
            f"a payload's body of {len(body)} bytes does not inflate to at most {most} bytes, as "
            f"many as its layout has or {LONGEST} times as many"
        )
    return plain
