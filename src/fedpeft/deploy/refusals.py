"""What a node did not answer, and why, for its owner to read without the server."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedpeft.core.units import now
from fedpeft.storage.files import private_folder, write_atomically

REFUSALS = "refusals.json"
REASONS = 100
"""The most different reasons that are kept: a server cannot fill an owner's disk with more."""
LONGEST = 400
"""The most characters of a reason, some of which may be a server's."""


@dataclass(frozen=True)
class Refusal:
    """A reason for which messages were not answered.

    Attributes:
      first, last: when, in local time.
    """

    reason: str
    count: int
    first: str
    last: str


@dataclass(frozen=True)
class Refusals:
    """The reasons of one plan's node, in a file of its folder.

    Attributes:
      folder: the plan's folder in the node's.
    """

    folder: Path

    def note(self, reason: str) -> None:
        """Count a reason. That this fails, as on a full disk, keeps no node from answering."""
        known, more = self.read()
        # Signs that move a terminal's cursor could come from a server.
        shown = "".join(sign if sign.isprintable() else "?" for sign in reason)[:LONGEST]
        same = {one.reason: one for one in known}
        if shown not in same and len(same) >= REASONS:
            more += 1
        else:
            old = same.get(shown, Refusal(shown, 0, now(), ""))
            same[shown] = Refusal(shown, old.count + 1, old.first, now())
        values = {"reasons": [asdict(one) for one in same.values()], "more": more}
        with suppress(OSError):
            private_folder(self.folder)
            content = json.dumps(values, indent=1).encode()
            write_atomically(self.folder / REFUSALS, content, private=True)

    def read(self) -> tuple[Sequence[Refusal], int]:
        """The reasons, and how often there was another one after `REASONS` of them. A
        damaged file counts as an empty one: it guards nothing."""
        try:
            values: Any = json.loads((self.folder / REFUSALS).read_bytes())
            known = [Refusal(**one) for one in values["reasons"]]
            return known, int(values["more"])
        except (OSError, ValueError, KeyError, TypeError):
            return [], 0
