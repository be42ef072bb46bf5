"""Files that are whole or not there."""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedpeft.core.types import Tensors
from fedpeft.errors import NO_ROOM, RunError

SECRET = "secret"
"""The file of the root that all keys of a folder come from."""
AHEAD = 4
"""Files that the system is asked for before they are read."""
READABLE, PRIVATE, PRIVATE_FOLDER = 0o666, 0o600, 0o700
"""Modes of files for all whom the user's umask lets read, and of what is its owner's alone."""
_NO_LINK, _AT_ONCE = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
"""Windows has neither."""


class StoreError(OSError):
    """The disk fails under clients' memory: no client's fault, so that it ends the run and not one
    client's round."""


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the disk says inside is a `StoreError`, told from the errors of a client's own files.

    Raises:
      StoreError: with the number, the words and the file of the OSError.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(error.errno, error.strerror or str(error), error.filename) from error


def write_atomically(path: Path, content: bytes, private: bool = False) -> None:
    """Write a file whole or not at all: a temporary file, fsync, rename.

    Args:
      private: only its owner can read it, from its first byte on.

    Raises:
      OSError: with the file's name, which a full disk does not tell by itself.
    """
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # of a kill, or a link that somebody put there
    try:
        with new_file(part, PRIVATE if private else READABLE) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):  # a full disk needs the room; what went wrong first is what is told
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(path)
        raise


def check_writable(path: Path) -> None:
    """Make sure that something can be put at `path`, before the work of which it is the result.

    Nothing is left there: a file without a name is written beside it, or in the nearest folder
    above it that exists.

    Raises:
      RunError: nothing can be put there.
    """
    place = path if path.is_dir() else path.absolute().parent
    try:
        while not place.exists():
            place = place.parent
        with TemporaryFile(dir=place) as tried:
            tried.write(b"\0")
    except OSError as error:
        or_room = ", or make room there" if error.errno in NO_ROOM else ""
        why = error.strerror or error
        raise RunError(
            f"{path} cannot be made: {place}: {why}; name another place{or_room}"
        ) from None


def check_unsent(path: Path) -> None:
    """Make sure, before the work, that a file to send can be put at `path`, where none is yet.

    Raises:
      RunError: one is there, or nothing can be put there.
    """
    if path.exists():
        raise RunError(
            f"{path} is there already: a file that may have been sent is not written over; name "
            "another"
        )
    check_writable(path)


def new_file(path: Path, mode: int = READABLE) -> BinaryIO:
    """A new file to write; nothing that is there is opened, links included.

    Raises:
      FileExistsError: something is there.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")


def lock_file(path: Path) -> BinaryIO:
    """A file to hold a lock on; nothing is written to it, and no link is followed.

    Raises:
      RunError: something else is there.
    """
    try:
        return _regular(path, os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK | _AT_ONCE, PRIVATE))
    except OSError as error:
        if path.is_symlink():
            raise RunError(f"{path} is a link, and a lock is none: take it away") from None
        raise error


def open_regular(path: Path) -> BinaryIO:
    """A file to read. One that might wait for ever, such as a pipe, is not waited for.

    Raises:
      RunError: it is no regular file.
      OSError: it cannot be opened.
    """
    return _regular(path, os.open(path, os.O_RDONLY | _AT_ONCE))


def _regular(path: Path, opened: int) -> BinaryIO:
    # Of what was opened, since something else may lie at the path by now.
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise RunError(f"{path} is no regular file but a folder, a pipe or a device")
    return os.fdopen(opened, "rb")


def private_folder(path: Path) -> Path:
    """A folder that only its owner can open, made where it is not there."""
    path.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o077:  # of an earlier version
        path.chmod(PRIVATE_FOLDER)
    return path


def ahead(files: Sequence[Path]) -> Iterator[Path]:
    """The files in order; the disk fetches the next ones while the caller reads and works on this
    one."""
    for file in files[1:AHEAD]:
        _announce(file)
    for file, later in zip_longest(files, files[AHEAD:]):
        if later is not None:
            _announce(later)
        yield file


def _announce(file: Path) -> None:
    """What is wrong with it is told when it is read."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            if file.is_file():  # a pipe would be opened for its one reader
                with file.open("rb") as opened:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def dump_tensors(
    path: Path, tensors: Tensors, metadata: dict[str, str], private: bool = False
) -> None:
    """Write a safetensors file atomically; a private one only its owner can read. Equal tensors and
    metadata give equal bytes."""
    whole = {n: x.detach().cpu().contiguous() for n, x in tensors.items()}
    content = save(whole, metadata or None)  # of nothing with no metadata it writes no JSON
    write_atomically(path, _in_order(content), private)


def _in_order(content: bytes) -> bytes:
    """The same file with its metadata sorted: the library writes them in an order that it draws
    anew each time. The header is 8 bytes of length and JSON, filled up with spaces."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[end:]])


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file and its metadata.

    Raises:
      RunError: the file cannot be read.
    """
    try:
        return read_tensors(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        open_regular(path).close()  # the library would wait at a pipe
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise RunError(f"{path} cannot be read: {error}") from None
