"""Envelopes: a small JSON head and a body of bytes, which cross a network or a socket of this
machine.

A body is a payload and nothing else, the same for all who get it. On a socket an envelope is

    length of the head (4 bytes) | length of the body (8) | head | body

This file needs nothing but Python: a courier that lives for one envelope reads and writes them.
"""

import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpeft.errors import WireError
from fedpeft.wire import bounded_json

SOCKET = "socket"
"""What a worker's socket is called in its folder."""
_LENGTHS = struct.Struct(">IQ")
_HEAD_LIMIT = 1 << 20
_PIECE = 1 << 20  # bytes received at once, so that a length alone takes no memory


@dataclass(frozen=True)
class Envelope:
    """A head of plain values, and a body."""

    head: Mapping[str, Any]
    body: bytes = b""

    @property
    def text(self) -> bytes:
        """The head as it travels."""
        return json.dumps(dict(self.head), separators=(",", ":")).encode()


def read_envelope(text: bytes, body: bytes) -> Envelope:
    """An envelope from what travelled.

    Raises:
      WireError: the head is no table, or too long.
    """
    if len(text) > _HEAD_LIMIT:
        raise WireError(f"an envelope's head of {len(text)} bytes is longer than {_HEAD_LIMIT}")
    try:
        head = bounded_json.read(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"an envelope's head is not readable: {error}") from None
    if not isinstance(head, dict):
        raise WireError("an envelope's head is no table")
    return Envelope(head, body)


def send(connection: socket.socket, what: Envelope) -> None:
    """Write an envelope to a socket."""
    text = what.text
    connection.sendall(_LENGTHS.pack(len(text), len(what.body)) + text)
    if what.body:  # the other end may be gone already, content with the head
        connection.sendall(what.body)


def receive(connection: socket.socket) -> Envelope:
    """Read one envelope from a socket.

    Raises:
      WireError: it is none.
      ConnectionError: the other end is gone before the envelope is whole.
    """
    text, body = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    if text > _HEAD_LIMIT:
        raise WireError(f"an envelope's head of {text} bytes is longer than {_HEAD_LIMIT}")
    return read_envelope(_exactly(connection, text), _exactly(connection, body))


def _exactly(connection: socket.socket, count: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < count:
        piece = connection.recv(min(_PIECE, count - len(pieces)))
        if not piece:
            raise ConnectionResetError("the other end is gone in the middle of an envelope")
        pieces += piece
    return bytes(pieces)


def ask(path: Path, what: Envelope, seconds: float | None = None) -> Envelope:
    """Send an envelope to the socket at `path` and wait for the answer, not longer than `seconds`
    for any part of it.

    Raises:
      OSError: nobody listens there, or the other end is gone, or is too slow.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        send(connection, what)
        return receive(connection)


def listen(path: Path) -> socket.socket:
    """A socket at `path` that only the user of this process can open.

    Raises:
      OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file of a socket outlives its process, and nobody can bind to it again.
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)  # of the file from its beginning: a mode set later would come too late
    try:
        server.bind(str(path))
    finally:
        os.umask(before)
    server.listen()
    return server
