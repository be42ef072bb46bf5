"""Where clients' own memory lives between rounds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import torch

from fedpeft.core.secrets import Secret, secret_at
from fedpeft.core.tensors import add_prefix, take_prefix
from fedpeft.core.types import ClientId, Job, Tensors
from fedpeft.errors import RunError
from fedpeft.storage.files import (
    SECRET,
    dump_tensors,
    private_folder,
    read_tensors,
    write_atomically,
)

_Version: TypeAlias = tuple[int, int]
"""A round, and the number of a message in it."""


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
        return {} if version is None else take_prefix("memory", self._version(client, *version)[0])

    def reply(self, job: Job) -> bytes | None:
        """The reply to this message, if the client has given it before."""
        tensors, metadata = self._version(job.client, job.round, job.step)
        return tensors["reply"].numpy().tobytes() if metadata.get("run") == job.run else None

    def save(self, job: Job, memory: Tensors, payload: bytes) -> None:
        """Keep the client's memory after a message, with the reply to it."""
        # Without a memory the reply follows from the message and the data, and is made again.
        if not memory:
            return
        file = self._own(job.client) / self._file(job.client, job.round, job.step).name
        reply = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        metadata = {"run": job.run, "client": job.client}
        tensors = {**add_prefix("memory", memory), "reply": reply}
        dump_tensors(file, tensors, metadata, private=True)
        # Only now, when the new version is on the disk: a kill leaves one too many and never one
        # too few.
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
        what a file system takes for the same: the hash tells them apart, the words before it are
        for people."""
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
        # The pattern takes "3.safetensors" and "3.1.safetensors" and leaves "31.safetensors".
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
        tensors, metadata = read_tensors(file)
        if metadata.get("client") != client:
            raise RunError(f"{file} is the memory of {metadata.get('client')!r}, not of {client!r}")
        return tensors, metadata


def _numbers(file: Path) -> _Version:
    """The round and the step that a file of memory is of."""
    round, _, step = file.name.removesuffix(".safetensors").partition(".")
    return int(round), int(step or 0)
