"""What a client has released: each file of a private plan is one more look at the same examples.

    releases.json   for its owner only; a line for each file: study, client, epsilon, delta
    agreements/     by study and client, what the owner agreed to before the first file

The noise of two files is independent, so what each guarantees adds up (basic composition, Dwork and
Roth, 2014, theorem 3.16): two of (ε, δ) are together (2ε, 2δ).
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedpeft.core.types import ClientId
from fedpeft.core.units import say_epsilon
from fedpeft.errors import RunError
from fedpeft.runs.folder import RunFolder, lock_run, read_json
from fedpeft.storage.files import write_atomically

FILE = "releases.json"


@dataclass(frozen=True)
class Release:
    """One file; `epsilon` and `delta` are None where it guarantees nothing."""

    study: str
    client: ClientId
    epsilon: float | None
    delta: float | None


_RELEASES = TypeAdapter(tuple[Release, ...])


@dataclass(frozen=True)
class Releases:
    """Those of the user of this machine.

    Attributes:
      folder: where they are written down.
    """

    folder: Path

    @classmethod
    def usual(cls) -> "Releases":
        """In the folder for users' own data (XDG): a second copy of an invitation, or another
        working folder, makes no release a first one."""
        named = os.environ.get("XDG_DATA_HOME")
        root = Path(named) if named else Path.home() / ".local" / "share"
        return cls(root / "fedpeft")

    def of(self, study: str, client: ClientId) -> list[Release]:
        return [one for one in self._read() if (one.study, one.client) == (study, client)]

    def agreement(self, study: str, client: ClientId) -> Path:
        """The folder of what a client agreed to before it made files for a study."""
        place = blake2b(json.dumps([study, client]).encode(), digest_size=8).hexdigest()
        return self.folder / "agreements" / place

    def check(self, study: str, client: ClientId) -> None:
        """Raises RunError where the client has released something for the study."""
        if before := self.of(study, client):
            count = "a file" if len(before) == 1 else f"{len(before)} files"
            raise RunError(
                f"{client!r} has made {count} for this study already, {words(before)}. One more is "
                "another release of the same examples: with one like the last they come to "
                f"{words([*before, before[-1]])}. Send the file that is there, or give --again if "
                "the earlier one was never sent or this is what you want"
            )

    def add(
        self, study: str, client: ClientId, privacy: Mapping[str, Any], again: bool
    ) -> list[Release]:
        """Write one more down, before its file is; returns all of this client for this study.

        Raises:
          RunError: there is one already, and not `again`.
        """
        self.folder.mkdir(0o700, parents=True, exist_ok=True)
        with lock_run(RunFolder(self.folder)):
            # Again, now with the lock: of two commands at once the later must see the first.
            if not again:
                self.check(study, client)
            new = Release(study, client, privacy.get("epsilon"), privacy.get("delta"))
            values = {"releases": [asdict(one) for one in (*self._read(), new)]}
            content = json.dumps(values, indent=2, allow_nan=False).encode() + b"\n"
            write_atomically(self.folder / FILE, content, private=True)
        return self.of(study, client)

    def _read(self) -> tuple[Release, ...]:
        path = self.folder / FILE
        values = read_json(path)
        try:
            return () if values is None else _RELEASES.validate_python(values["releases"])
        except (KeyError, ValidationError):
            raise RunError(
                f"{path} is damaged: it says what was released, so it is not written over. Mend "
                "it, or put it away"
            ) from None


def words(every: Sequence[Release]) -> str:
    """What releases of the same examples guarantee together."""
    spent = [(one.epsilon, one.delta) for one in every]
    if any(epsilon is None for epsilon, _ in spent):
        return "which guarantees nothing"
    epsilon = sum(epsilon or 0.0 for epsilon, _ in spent)
    delta = sum(delta or 0.0 for _, delta in spent)
    return f"epsilon {say_epsilon(epsilon)} at delta {delta:.4g}"
