"""Files that are whole or not there, and where clients' own memory lives between rounds."""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedpeft.core.secrets import Secret, secret_at
from fedpeft.core.tensors import prefixed, under
from fedpeft.core.types import ClientId, Job, Tensors
from fedpeft.errors import RunError

SECRET = "secret"
"""The file of the root that all keys of a folder come from."""
AHEAD = 4
"""Files that the system is asked for before they are read."""
READABLE, PRIVATE, PRIVATE_FOLDER = 0o666, 0o600, 0o700
"""Modes of files for all whom the user's umask lets read, and of what is its owner's alone."""
_NO_LINK, _AT_ONCE = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
"""Windows has neither."""


_Version: TypeAlias = tuple[int, int]
"""A round, and the number of a message in it."""


class StoreError(OSError):
    """The disk fails under clients' memory: no client's fault, so that it ends the run and not one
    client's round."""


@contextmanager
def storing() -> Iterator[None]:
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
    """
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # of a kill, or a link that somebody put there
    try:
        with new_file(part, PRIVATE if private else READABLE) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # a full disk needs the room; what went wrong first is what is told
            part.unlink(missing_ok=True)
        raise


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
    """Write a safetensors file atomically; a private one only its owner can read."""
    content = save({n: x.detach().cpu().contiguous() for n, x in tensors.items()}, metadata)
    write_atomically(path, content, private)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file and its metadata.

    Raises:
      RunError: the file cannot be read.
    """
    try:
        return _read(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        open_regular(path).close()  # the library would wait at a pipe
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise RunError(f"{path} cannot be read: {error}") from None


@dataclass(frozen=True)
class Nowhere:
    """For plans whose clients remember nothing. What their noise is drawn from lives as long as
    this does."""

    root: Secret = field(default_factory=Secret.fresh)

    def load(self, client: ClientId, accepted: int | None, before: Job | None = None) -> Tensors:
        return {}

    def reply(self, job: Job) -> bytes | None:
        return None

    def save(self, job: Job, memory: Tensors, payload: bytes) -> None:
        if memory:
            raise RunError("this plan's clients have a memory; give the engine a folder for it")

    def secret(self, client: ClientId) -> Secret:
        return self.root.at(client)

    def signer(self, client: ClientId) -> bytes | None:
        return None

    def note(self, client: ClientId) -> bytes:
        return b""

    def keep(self, client: ClientId, note: bytes) -> None:
        raise RunError("this plan's clients have a memory; give the engine a folder for it")


@dataclass(frozen=True)
class Folder:
    """One file for each client and version, so that any worker process may serve any client.

    Two versions of a client are kept: the last whose reply the server counted, and the newest. A
    version holds the reply that went with it; asked again for the same (run, round), the client
    sends the same bytes and its memory does not advance twice.

    Attributes:
      signing: by client the private key that it signs with, which lies elsewhere.
      secrets: the folder of the secret from which noise is drawn, where that is not `path`.
    """

    path: Path
    signing: Mapping[ClientId, bytes] = field(default_factory=dict, repr=False)
    secrets: Path | None = None

    def load(self, client: ClientId, accepted: int | None, before: Job | None = None) -> Tensors:
        """What the client remembers: as it was after its last message in the accepted round, or,
        where it has answered an earlier message of the round of `before`, after that one."""
        version = None if before is None else self._latest(client, before.round, before.step)
        if version is None and accepted is not None:
            version = self._latest(client, accepted)
        return {} if version is None else under("memory", self._version(client, *version)[0])

    def reply(self, job: Job) -> bytes | None:
        """The reply to this message, if the client has given it before."""
        tensors, metadata = self._version(job.client, job.round, job.step)
        return tensors["reply"].numpy().tobytes() if metadata.get("run") == job.run else None

    def save(self, job: Job, memory: Tensors, payload: bytes) -> None:
        """Keep the client's memory after a message, with the reply to it."""
        if not memory:
            return
        file = self._own(job.client) / self._file(job.client, job.round, job.step).name
        reply = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        metadata = {"run": job.run, "client": job.client}
        tensors = {**prefixed("memory", memory), "reply": reply}
        dump_tensors(file, tensors, metadata, private=True)
        needed = {job.round, job.accepted}
        for old in file.parent.glob("*.safetensors"):
            if _numbers(old)[0] not in needed:
                old.unlink(missing_ok=True)

    def secret(self, client: ClientId) -> Secret:
        """A key for each client from one file, `secret`, that stands for the one each would
        have."""
        return secret_at(private_folder(self.secrets or self.path) / SECRET).at(client)

    def signer(self, client: ClientId) -> bytes | None:
        return self.signing.get(client)

    def note(self, client: ClientId) -> bytes:
        """What the client kept last; nothing if it never did."""
        file = self.place(client) / "note"
        return file.read_bytes() if file.exists() else b""

    def keep(self, client: ClientId, note: bytes) -> None:
        write_atomically(self._own(client) / "note", note, private=True)

    def place(self, client: ClientId) -> Path:
        """A client's own folder. A name from the data may be "..", or differ from another only in
        what a file system
        takes for the same: the hash tells them apart, the words before it are for people."""
        words = re.sub(r"[^A-Za-z0-9]+", "_", client)[:32]
        return self.path / f"{words}-{blake2b(client.encode(), digest_size=8).hexdigest()}"

    def _own(self, client: ClientId) -> Path:
        """The client's own folder, made where it is not there."""
        private_folder(self.path)
        return private_folder(self.place(client))

    def _file(self, client: ClientId, round: int, step: int = 0) -> Path:
        """The first message of a round needs no number."""
        return self.place(client) / f"{round}{f'.{step}' if step else ''}.safetensors"

    def _latest(self, client: ClientId, round: int, before: int | None = None) -> _Version | None:
        """The last message of a round, before the one given, at which the client kept something."""
        versions = [_numbers(file) for file in self.place(client).glob(f"{round}.*safetensors")]
        steps = [s for r, s in versions if r == round and (before is None or s < before)]
        return (round, max(steps)) if steps else None

    def _version(self, client: ClientId, round: int, step: int) -> tuple[Tensors, dict[str, str]]:
        """A version's tensors and metadata, both empty where there is none.

        Raises:
          RunError: the file is damaged or another client's.
        """
        file = self._file(client, round, step)
        if not file.exists():
            return {}, {}
        tensors, metadata = _read(file)
        if metadata.get("client") != client:
            raise RunError(f"{file} is the memory of {metadata.get('client')!r}, not of {client!r}")
        return tensors, metadata


def _numbers(file: Path) -> _Version:
    """The round and the step that a file of memory is of."""
    round, _, step = file.name.removesuffix(".safetensors").partition(".")
    return int(round), int(step or 0)
