"""Files that are whole or not there, and where clients' own memory lives between rounds."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedpeft.core.tensors import prefixed, under
from fedpeft.core.types import ClientId, Job, Tensors
from fedpeft.errors import RunError


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a temporary file, fsync, rename."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def dump_tensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically."""
    write_atomically(path, save({n: x.detach().cpu().contiguous() for n, x in tensors.items()}, metadata))


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file and its metadata.

    Raises:
      RunError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


@dataclass(frozen=True)
class Nowhere:
    """For plans whose clients remember nothing."""

    def load(self, client: ClientId, accepted: int | None) -> Tensors:
        return {}

    def reply(self, job: Job) -> bytes | None:
        return None

    def save(self, job: Job, memory: Tensors, payload: bytes) -> None:
        if memory:
            raise RunError("this plan's clients have a memory; give the engine a folder for it")


@dataclass(frozen=True)
class Folder:
    """One file for each client and version, so that any worker process may serve any client.

    Two versions of a client are kept: the last whose reply the server counted, and the newest. A version holds the
    reply that went with it; asked again for the same (run, round), the client sends the same bytes and its memory
    does not advance twice.
    """

    path: Path

    def load(self, client: ClientId, accepted: int | None) -> Tensors:
        if accepted is None:
            return {}
        file = self._file(client, accepted)
        return under("memory", load_tensors(file)[0]) if file.exists() else {}

    def reply(self, job: Job) -> bytes | None:
        file = self._file(job.client, job.round)
        if not file.exists():
            return None
        tensors, metadata = load_tensors(file)
        return tensors["reply"].numpy().tobytes() if metadata.get("run") == job.run else None

    def save(self, job: Job, memory: Tensors, payload: bytes) -> None:
        if not memory:
            return
        file = self._file(job.client, job.round)
        file.parent.mkdir(parents=True, exist_ok=True)
        reply = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        dump_tensors(file, {**prefixed("memory", memory), "reply": reply}, {"run": job.run})
        kept = {file.name, self._file(job.client, -1 if job.accepted is None else job.accepted).name}
        for old in file.parent.glob("*.safetensors"):
            if old.name not in kept:
                old.unlink(missing_ok=True)

    def _file(self, client: ClientId, version: int) -> Path:
        return self.path / quote(client, safe="") / f"{version}.safetensors"
