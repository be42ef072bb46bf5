"""What a tracker of experiments is told of a run: plain names and numbers, and nothing else.

Training knows nothing of trackers. Whoever follows a run, live or from its folder, tells them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeAlias

from fedpeft.errors import FedpeftError, explain_install

Setting: TypeAlias = str | float | bool
"""A value of a plan that a tracker may be told."""


class MissingTracker(FedpeftError):
    """The library of a tracker is not installed."""


@dataclass(frozen=True)
class RunLabel:
    """What a tracker knows a run by.

    Attributes:
      name: the run's folder, from where it was looked for; never an absolute path.
      identity: hexadecimal digits, equal whenever the same run is followed again.
      settings: values of its plan, without paths, texts of the user's and names of clients.
    """

    name: str
    identity: str
    settings: Mapping[str, Setting]


class Journal(Protocol):
    """One run as a tracker keeps it.

    Attributes:
      done: the last round that it has already, 0 for none.
    """

    @property
    def done(self) -> int: ...
    def write(self, round: int, values: Mapping[str, float]) -> None: ...
    def close(self, finished: bool) -> None: ...


class Tracker(Protocol):
    """A kind of tracker with its settings.

    `require` raises MissingTracker where its library is not installed, and imports nothing else.
    `follow` opens a run, the one of before where the tracker has it. Each may raise any error: it
    ends the tracking and never a run.
    """

    def require(self) -> None: ...
    def follow(self, run: RunLabel) -> Journal: ...


def require_library(library: str, extra: str, what: str) -> Any:
    """Import a tracker's library.

    Args:
      what: what needs it, as the beginning of a sentence.

    Raises:
      MissingTracker: it is not installed; the message says what to install.
    """
    try:
        return import_module(library)
    except ImportError:
        raise MissingTracker(f"{what} need {library}: {explain_install(extra)}") from None


Say: TypeAlias = Callable[[str], object]
"""What is shown to whoever follows."""
