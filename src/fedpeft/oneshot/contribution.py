"""A contribution: what one client sends in the one round, in a file.

A safetensors file with one tensor of bytes, and two entries of metadata:

    sealed     the frame that a client sends in the loop, in round 0 or, without rounds, before it;
               sealed for the server and bound to the header
    header     who, for which study, made from what: readable by anyone, changed by nobody
    signature  Ed25519 over header and sealed bytes; empty for none

A file is untrusted until `read_contribution` gave it back. Its bytes must be those, to the last,
that writing the same content gives, so that no two files say the same.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.core.types import ClientId
from fedpeft.errors import RunError
from fedpeft.oneshot.answers import Size, most_numbers, size_of
from fedpeft.oneshot.contribution_header import (
    Header,
    Statement,
    cut_short,
    read_header,
)
from fedpeft.oneshot.invitation import Invitation, Terms
from fedpeft.oneshot.keys import SealError, Trust, is_signed, seal, sign, unseal
from fedpeft.oneshot.rejections import ContributionError, Rejection
from fedpeft.storage.files import open_regular
from fedpeft.wire import bounded_json
from fedpeft.wire.frames import Body

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

HEADER_LIMIT = 1 << 16
ENTRY_LIMIT, SLACK = 16, 1 << 20
"""A file may have so many bytes for each number that it may hold, and so many beside: above what
any codec makes of them."""


@dataclass(frozen=True)
class Contribution:
    """One that fits its study.

    Attributes:
      content: the whole file; `frame`: what the client sends; `size`: how much of it there is.
    """

    header: Header
    content: bytes
    frame: bytes
    size: Size

    @property
    def weight(self) -> float:
        return self.size.weight

    @property
    def length(self) -> float:
        return self.size.length


def write_contribution(
    header: Header, frame: bytes, server: str, key: "Ed25519PrivateKey | None"
) -> bytes:
    """The bytes of a file."""
    head = header.text().encode()
    sealed = seal(server, head, frame)
    signature = sign(key, head, sealed) if key else ""
    return _start(header.text(), len(sealed), signature) + sealed


def write_signed(
    terms: Terms,
    client: ClientId,
    frame: bytes,
    key: "Ed25519PrivateKey | None",
    examples: int | None = None,
    privacy: Statement | None = None,
    reads: list[str] | None = None,
) -> tuple[Header, bytes]:
    """The header and the bytes of a file for the study that has these terms."""
    header = Header(
        study=terms.study,
        client=client,
        examples=examples,
        plan=terms.plan,
        base=terms.base,
        start=terms.start,
        labels=terms.labels,
        transforms=terms.transforms,
        bytes=len(frame),
        signer=key.public_key().public_bytes_raw().hex() if key else None,
        privacy=privacy,
        reads=reads,
    )
    return header, write_contribution(header, frame, terms.server, key)


def _start(head: str, sealed: int, signature: str) -> bytes:
    """What a safetensors file begins with, before so many sealed bytes; written here, as the
    library puts the entries of metadata in an order of chance."""
    values = {
        "__metadata__": {"header": head, "signature": signature},
        "sealed": {"dtype": "U8", "shape": [sealed], "data_offsets": [0, sealed]},
    }
    text = json.dumps(values, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_contribution(
    file: Path, invitation: Invitation, key: "X25519PrivateKey", trust: Trust
) -> Contribution:
    """A file, if it is all that it must be.

    Raises:
      ContributionError: it is not.
      OSError: it cannot be read.
    """
    most = ENTRY_LIMIT * most_numbers(invitation) + SLACK
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            # No more than was measured, since a file may grow while it is read.
            content = stream.read(size) if size <= most else b""
    except RunError as error:
        raise ContributionError(Rejection.DAMAGED, file, f"{error}; name the file itself") from None
    if size > most:
        raise ContributionError(
            Rejection.LARGE,
            file,
            f"it has {size} bytes, more than the {most} that this plan may take; nothing is read",
        )
    return open_contribution(content, file, invitation, key, trust)


def open_contribution(
    content: bytes, file: Path | str, invitation: Invitation, key: "X25519PrivateKey", trust: Trust
) -> Contribution:
    """The same, of bytes."""
    text, signature, sealed = _parts(content, file)
    header = read_header(text, file)
    _check_terms(header, file, invitation)
    _check_owner(header, file, invitation)
    head = text.encode()
    trust = trust.or_plan_keys(invitation.plan.exchange.signers)
    _check_signature(header, signature, file, head, sealed, trust)
    try:
        frame = unseal(key, head, sealed)
    except SealError:
        words = (
            "it was changed after it was sealed, or is sealed for another server; "
            "ask the client for it again"
        )
        raise ContributionError(Rejection.TAMPERED, file, words) from None
    if len(frame) != header.bytes:
        raise ContributionError(
            Rejection.DAMAGED, file, f"it holds {len(frame)} bytes and says {header.bytes}"
        )
    return Contribution(header, content, frame, size_of(header, frame, file, invitation))


def _parts(content: bytes, file: Path | str) -> tuple[str, str, memoryview]:
    """Header, signature and sealed bytes, of a file that is exactly what writing them gives."""
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    try:
        if not 0 < length <= HEADER_LIMIT or start > len(content):
            raise ValueError(f"of {len(content)} bytes, its head should take {length}")
        match bounded_json.read(content[8:start]):
            case {"__metadata__": {"header": str(head), "signature": str(signature)}}:
                pass
            case _:
                raise ValueError("it has no header and signature of a contribution")
        sealed = memoryview(content)[start:]
        if not sealed or _start(head, len(sealed), signature) != content[:start]:
            raise ValueError(
                "its head and its body do not fit together: it is truncated, or was changed"
            )
        return head, signature, sealed
    except (ValueError, RecursionError) as error:
        raise ContributionError(
            Rejection.DAMAGED, file, f"{cut_short(error)}; ask the client for it again"
        ) from None


def _check_terms(header: Header, file: Path | str, invitation: Invitation) -> None:
    terms = invitation.terms
    # The study comes first: a file for another invitation differs in most of the others as well.
    wanted = (
        (
            Rejection.STUDY,
            "study",
            "it was made for another invitation; ask for a file for this one",
        ),
        (
            Rejection.PLAN,
            "plan",
            "the client's plan.toml is not the invitation's; send it the folder as it is",
        ),
        (
            Rejection.BASE,
            "base",
            "the client's base model is another, or another version; it needs the study's",
        ),
        (
            Rejection.START,
            "start",
            "it began from other tensors than the invitation holds; send it the folder as it is",
        ),
        (
            Rejection.LABELS,
            "labels",
            f"its outputs do not stand for {', '.join(map(repr, invitation.plan.classes[:8]))} ...",
        ),
        (
            Rejection.TRANSFORMS,
            "transforms",
            "the client's images or texts become other inputs than here; use one version",
        ),
    )
    for reason, name, advice in wanted:
        came, allowed = getattr(header, name), getattr(terms, name)
        if came != allowed:
            raise ContributionError(
                reason, file, f"it says {cut_short(came)[:32]}, here it is {allowed}: {advice}"
            )


def _check_signature(
    header: Header, signature: str, file: Path | str, head: bytes, sealed: Body, trust: Trust
) -> None:
    if header.signer is None and not signature:
        if trust.keys:
            words = (
                "this merge takes signed files only; the client needs `fedpeft contribute --key`"
            )
            raise ContributionError(Rejection.UNSIGNED, file, words)
        return
    # The header names the signer, and is signed too: else anybody could put a signature of his own
    # on another's sealed bytes.
    if header.signer is None or not is_signed(header.signer, signature, head, sealed):
        words = "its signature is not its signer's over these bytes; ask the client for it again"
        raise ContributionError(Rejection.TAMPERED, file, words)
    if not trust.keys:
        return
    owner = trust.keys.get(header.signer)
    if owner is None:
        words = (
            f"{header.signer} is none of the {len(trust.keys)} keys that --trust names; "
            "add it if you know whose it is"
        )
        raise ContributionError(Rejection.UNKNOWN_KEY, file, words)
    if owner not in ("", header.client):
        words = (
            f"it is from {header.client!r}, but the key is that of {owner!r}, "
            "who may sign for nobody else"
        )
        raise ContributionError(Rejection.UNKNOWN_KEY, file, words)


def _check_owner(header: Header, file: Path | str, invitation: Invitation) -> None:
    roster = invitation.roster
    if roster is not None and header.client not in roster.keys:
        words = (
            f"{header.client!r} is not in the roster of this study, which has "
            f"{', '.join(sorted(roster.keys))}: leave the file out"
        )
        raise ContributionError(Rejection.FOREIGN, file, words)
