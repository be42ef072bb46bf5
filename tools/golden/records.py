"""What a run came to, read from plain files that every version of the library leaves.

No code of the library reads them: the present one could not read what an earlier one wrote.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

UNTOLD = ("seconds",)
"""Keys of a round that differ from run to run."""


@dataclass(frozen=True)
class Record:
    """What one run came to.

    Attributes:
      parameters: SHA-256 of each shared tensor: by its name in the model, or by "<owner>/<name>"
        where it is shared beside the model's.
      rounds: the lines of rounds.jsonl.
    """

    parameters: Mapping[str, str]
    rounds: Sequence[Mapping[str, Any]]


def read_record(folder: Path) -> Record:
    """The record of a finished run in its folder.

    Raises:
      ValueError: the checkpoint has a format that is not known here.
      OSError: a file is missing.
    """
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    rounds = [{k: x for k, x in json.loads(line).items() if k not in UNTOLD} for line in lines]
    return Record(read_parameters(folder / "checkpoint" / "state.safetensors"), rounds)


def read_parameters(path: Path) -> dict[str, str]:
    """The digests of a checkpoint's shared tensors.

    Raises:
      ValueError: the checkpoint has a format that is not known here.
    """
    digests, metadata = read_digests(path.read_bytes())
    kind = metadata.get("format", "")
    if kind not in FORMATS:
        raise ValueError(
            f"{path} has the format {kind!r}, and {', '.join(FORMATS)} are known: add a reader of "
            "its names to FORMATS in tools/golden/records.py"
        )
    named = {FORMATS[kind](name): digest for name, digest in digests.items()}
    return {name: named[name] for name in sorted(filter(None, named))}


def read_digests(content: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """By name the digest of each tensor of a safetensors file, type and shape included; and the
    file's metadata."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    digests = {}
    for name, what in header.items():
        begin, end = what["data_offsets"]
        told = json.dumps([what["dtype"], what["shape"]]).encode()
        digests[name] = sha256(told + content[start + begin : start + end]).hexdigest()
    return digests, metadata


def _first(name: str) -> str | None:
    """`params/<name>`, and for the owners "c" and "exact" `params/<owner>/<name>`; `memory/<name>`
    is left out."""
    kind, _, rest = name.partition("/")
    return rest if kind == "params" else None


def _second(name: str) -> str | None:
    """`params/<name>`, `shared/<owner>/<name>`; `memory/<owner>/<name>` is left out."""
    kind, _, rest = name.partition("/")
    return rest if kind in ("params", "shared") else None


FORMATS: Mapping[str, Callable[[str], str | None]] = {
    "fedpeft-state-1": _first,
    "fedpeft-state-2": _second,
}
"""By the format of a checkpoint how a tensor's name there becomes that in a record; None for what
is not shared."""
