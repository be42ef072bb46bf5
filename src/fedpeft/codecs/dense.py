"""Every entry, as it is."""

from dataclasses import dataclass

from fedpeft.codecs.deflating import deflate_body, read_body
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Coding
from fedpeft.core.types import Tensors
from fedpeft.registry import unwritten
from fedpeft.wire.frames import cut, decode_tensors, encode_tensors, join, kinds


@dataclass(frozen=True)
class Dense:
    """Lossless: the tensors' own bytes, one after another.

    Attributes:
      deflate: whether the body is deflated where that is shorter. It pays for counts, most of which
        are 0; trained parameters are hardly shorter. Both kinds of body are read, whatever this is.
    """

    deflate: bool = unwritten(False)

    @property
    def offers(self) -> frozenset[Fact]:
        return frozenset({Fact.LENGTH_TELLS}) if self.deflate else frozenset()

    def encode(self, tensors: Tensors, how: Coding = Coding()) -> bytes:
        body = join(tensors.values())
        values, body = deflate_body(body, how) if self.deflate else ([], body)
        return encode_tensors(values, tensors, body)

    def decode(self, blob: bytes, how: Coding = Coding()) -> Tensors:
        """Raises WireError on anything that `encode` cannot have made."""
        shapes, values, body = decode_tensors(blob, extra=None)
        vectors = cut(read_body(values, body, how), kinds(shapes))
        rows = zip(shapes, vectors, strict=True)
        return {name: vector.reshape(shape) for (name, shape, _), vector in rows}
