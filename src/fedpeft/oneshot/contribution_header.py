"""What a contribution file says of itself, readable by anyone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from fedpeft.core.types import ClientId
from fedpeft.errors import RunError
from fedpeft.oneshot.keys import check_name
from fedpeft.oneshot.rejections import ContributionError, Rejection
from fedpeft.plan.plan import Plan
from fedpeft.wire import bounded_json

FORMAT = "fedpeft-contribution-1"
MOST = 2**53
"""No count is above it: up to here a float holds each."""
LONGEST_LINE = 200
"""Characters of a line that a file says of its client's data."""
Statement: TypeAlias = Mapping[str, float | str | None]


@dataclass(frozen=True)
class Header:
    """What a file says of itself; see `Terms` for the digests.

    Attributes:
      examples: how many the client trained on; None where the plan does not tell, see `hides_size`.
      bytes: of the frame.
      signer: the public key of who signed, in hex; None for nobody.
      privacy: what the noise in the frame guarantees: epsilon, delta, the unit hidden, the
        accountant.
      reads: how its client's data are read otherwise than the plan says, in words; None where they
        are not.
    """

    study: str
    client: ClientId
    examples: int | None
    plan: str
    base: str
    start: str
    labels: str
    transforms: str
    bytes: int
    signer: str | None = None
    privacy: Statement | None = None
    format: str = FORMAT
    reads: list[str] | None = None

    def text(self) -> str:
        values = asdict(self)
        if self.reads is None:  # as files were before there was such an entry
            del values["reads"]
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


_HEADER = TypeAdapter(Header)


def hides_size(plan: Plan) -> bool:
    """Whether a file does not say how many examples its client has: in private plans all count the
    same, and masks hide the weight too."""
    return plan.exchange.sums or (plan.private_part is not None and plan.weighting == "uniform")


def read_header(text: str, file: Path | str) -> Header:
    """A header, if it is written exactly as this version writes it.

    Raises:
      ContributionError: it is not.
    """
    try:
        kind = bounded_json.read(text.encode())["format"]
        if kind != FORMAT:
            words = (
                f"it is {cut_short(kind)!r}, and this version reads {FORMAT!r}: "
                "use the same version on both sides"
            )
            raise ContributionError(Rejection.FORMAT, file, words)
        header = _HEADER.validate_json(text, strict=True)
        check_name(header.client)
        counts = (1 if header.examples is None else header.examples, header.bytes)
        _check_lines(header.reads)
        # One way to write it only: with another encoding or other spaces, two files could say the
        # same.
        if header.text() != text or not all(1 <= count <= MOST for count in counts):
            raise ValueError("a value is out of range, or written in another way")
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError, RunError) as error:
        words = f"its header is malformed ({cut_short(error)}); ask the client for it again"
        raise ContributionError(Rejection.DAMAGED, file, words) from None
    return header


def cut_short(value: object) -> str:
    """One printable line of what an untrusted file brings into a message."""
    text = " ".join(str(value).split())[:120]
    return "".join(c if c.isprintable() else "?" for c in text)


def _check_lines(lines: Sequence[str] | None) -> None:
    if lines is None:
        return
    if not lines:  # who has nothing to say has no such entry: one way to write it only
        raise ValueError("it has an empty list of what it says of its data")
    if any(len(line) > LONGEST_LINE or not line.isprintable() for line in lines):
        raise ValueError("what it says of its data is no line of text")
