"""A recording as numbers, and why none can be made of a file."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, eq=False)
class Sound:
    """One recording.

    Attributes:
      samples: float32 (n,), from -1 to 1, of one channel; a NumPy array.
      rate: samples a second.
    """

    samples: Any
    rate: int


class UnreadableSound(Exception):
    """A file that is no recording, or a broken one. Its words follow a number: they say which clips
    it is one of, and quote nothing of a file."""


class Recordings(Protocol):
    """A column of recordings, which are decoded when they are asked for.

    `seconds` looks at the head of a file alone, so that a file of hours costs nothing. It and
    `[at]` raise UnreadableSound. `name` is what a log calls a recording.
    """

    def __getitem__(self, at: int) -> Sound: ...
    def seconds(self, at: int) -> float: ...
    def name(self, at: int) -> str: ...
