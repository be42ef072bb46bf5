"""Envelopes over a socket: what is sent arrives, what is not whole is refused, and nobody else can
send one."""

import socket
import stat
from contextlib import suppress
from pathlib import Path
from random import Random
from threading import Thread

import pytest
from fuzzing import counts
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import WireError
from fedpeft.wire.sockets import Envelope, ask, listen, read_envelope, receive, send


@pytest.mark.parametrize("size", [0, 1, 3 << 20])
def test_what_is_sent_arrives(tmp_path: Path, size: int) -> None:
    with listen(tmp_path / "socket") as server:

        def echo() -> None:
            connection, _ = server.accept()
            with connection:
                send(connection, receive(connection))

        thread = Thread(target=echo)
        thread.start()
        what = Envelope(
            {"kind": "job", "round": 3, "accepted": None},
            bytes(range(256)) * (size // 256) + b"x" * (size % 256),
        )
        assert ask(tmp_path / "socket", what, 10) == what
        thread.join()


def test_only_its_user_can_open_the_socket(tmp_path: Path) -> None:
    with listen(tmp_path / "socket"):
        assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o600
    # What a worker that was killed left does not stand in the way.
    listen(tmp_path / "socket").close()


def test_nobody_there_and_nobody_answering_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ask(tmp_path / "socket", Envelope({}))
    with listen(tmp_path / "socket"), pytest.raises(TimeoutError):
        ask(tmp_path / "socket", Envelope({}), 0.05)


@pytest.mark.parametrize(
    ("sent", "error", "words"),
    [
        (b"", ConnectionError, "gone in the middle of an envelope"),
        (b"\0\0\0\x02" + bytes(8) + b"{", ConnectionError, "gone in the middle of an envelope"),
        (
            b"\0\0\0\x02" + b"\xff" * 8 + b"{}" + b"x" * 100,
            ConnectionError,
            "gone in the middle of an envelope",
        ),
        (b"\xff\xff\xff\xff" + bytes(8), WireError, "longer than"),
        (b"\0\0\0\x02" + bytes(8) + b"[]", WireError, "no table"),
        (b"\0\0\0\x02" + bytes(8) + b"\xff{", WireError, "not readable"),
    ],
)
def test_what_is_not_whole_is_refused(sent: bytes, error: type[Exception], words: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(error, match=words):
            receive(theirs)


@given(st.binary(max_size=60), st.binary(max_size=9))
def test_any_head_is_a_table_or_refused(text: bytes, body: bytes) -> None:
    with suppress(WireError):
        assert isinstance(read_envelope(text, body).head, dict)


@pytest.mark.parametrize("times", counts(300, 10_000))
def test_fuzzed_envelopes(times: int) -> None:
    """Mutated on a socket: each is read as an envelope, or refused, and none is waited for."""
    draws = Random(times)
    head = Envelope(
        {"kind": "job", "round": 3, "accepted": None, "environment": {"torch": "2"}}
    ).text
    whole = len(head).to_bytes(4, "big") + (40).to_bytes(8, "big") + head + bytes(40)
    read = 0
    for _ in range(times):
        sent = bytearray(whole)
        for _ in range(draws.choice((1, 1, 2, 8))):
            at = draws.randrange(draws.choice((12, 12 + len(head), len(whole))))
            match draws.randrange(4):
                case 0:
                    sent[at : at + 1] = draws.randbytes(1)
                case 1:
                    sent[at : at + draws.choice((1, 8, 60))] = b""
                case 2:
                    sent[at:at] = draws.choice((b"[" * 2000, b'"', b"9" * 5000, b"{}", b"\\ud800"))
                case 3:
                    sent[at : at + 4] = draws.randbytes(4)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(sent)
            ours.shutdown(socket.SHUT_WR)
            theirs.settimeout(10)
            with suppress(WireError, ConnectionError):
                assert isinstance(receive(theirs).head, dict)
                read += 1
    assert 0 < read < times
