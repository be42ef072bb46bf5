"""Trackers that are told of runs as their rounds come; none of them can end a run."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from fedpeft.core.tracking import Journal, RunLabel, Setting, Tracker
from fedpeft.errors import FedpeftError, reason_of
from fedpeft.registry import build, find
from fedpeft.report.reading import KeptRun, read_cell, read_line
from fedpeft.report.schema import KeptRound

KIND = "tracker"
LONGEST = 300
"""The most characters of a tracker's error that are shown."""
FREE = ("arguments", "clients", "keys", "nodes", "settings", "test", "train")
"""Tables of a plan whose keys are the user's own: names of clients, columns of data, arguments."""
Record = TypeVar("Record", bound=Any)


def read_trackers(texts: Sequence[str]) -> dict[str, Tracker]:
    """Trackers by what the user called them, e.g. "mlflow" or "wandb:project=ours,mode=offline".

    A word without "=" is the value of the tracker's first key.

    Raises:
      PlanError: there is no such tracker, or it has no such key.
      MissingTracker: its library is not installed.
    """
    found: dict[str, Tracker] = {}
    for text in texts:
        name, _, told = text.partition(":")
        tracker = build(KIND, {"name": name, **_keys(name, told)})
        tracker.require()
        found[text] = tracker
    return found


def _keys(name: str, told: str) -> dict[str, str]:
    known = [one.name for one in fields(find(KIND, name))] if told else []
    keys: dict[str, str] = {}
    for piece in filter(None, told.split(",")):
        key, sign, value = piece.partition("=")
        # An address may have "=" in it too, behind what is no word.
        if sign and key.isidentifier():
            keys[key] = value
        else:
            keys[known[0]] = piece
    return keys


@dataclass
class Tracking:
    """Runs that are told to trackers, each round once.

    Attributes:
      trackers: by what they are called; one that fails is taken out.
      say: told of it, in one line.
    """

    trackers: dict[str, Tracker]
    say: Callable[[str], object]
    _journals: dict[tuple[str, str], Journal] = field(default_factory=dict)
    _told: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, cells: Mapping[str, KeptRun]) -> None:
        """Tell the rounds that are new, by run; a run without rounds is not begun."""
        for called, tracker in list(self.trackers.items()):
            try:
                for name, cell in cells.items():
                    self._tell(called, tracker, name, cell)
            except Exception as error:  # of a library, a network or a disk: never the run's own
                self._give_up(called, error)

    def follow(self, folder: Path, records: Iterable[Record]) -> Iterator[Record]:
        """Pass on the records of a run's rounds as they come, and tell each before the next."""
        cell: KeptRun | None = None
        for record in records:
            if self.trackers:
                try:
                    cell = _with_round(cell, folder, record)
                    self.add({folder.resolve().name: cell})
                except (FedpeftError, OSError) as error:  # the folder cannot be read
                    for called in list(self.trackers):
                        self._give_up(called, error)
            yield record

    def close(self, finished: bool = False) -> None:
        """End what is still open; `finished` says whether those runs are."""
        for key in list(self._journals):
            self._close(key, finished)

    def _tell(self, called: str, tracker: Tracker, name: str, cell: KeptRun) -> None:
        key = called, name
        if not cell.rounds or self._told.get(key) == -1:
            return
        if key not in self._journals:
            journal = tracker.follow(RunLabel(name, identity(cell), settings_told(cell.plan)))
            self._journals[key], self._told[key] = journal, journal.done
        for r in cell.rounds[self._told[key] :]:
            self._journals[key].write(r.round, dict(scalars(r)))
            self._told[key] = r.round
        if cell.finished:
            self._journals.pop(key).close(True)
            self._told[key] = -1

    def _close(self, key: tuple[str, str], finished: bool) -> None:
        try:
            self._journals.pop(key).close(finished)
        except Exception as error:
            self._give_up(key[0], error)

    def _give_up(self, called: str, error: Exception) -> None:
        if self.trackers.pop(called, None) is None:
            return
        why = reason_of(error)[:LONGEST]
        self.say(f"warning: {called} is told nothing more, and everything else goes on: {why}")
        for key in [key for key in self._journals if key[0] == called]:
            self._close(key, False)


def _with_round(cell: KeptRun | None, folder: Path, record: Any) -> KeptRun:
    """The run with one round more. The folder is read once: it has the rounds before a resume."""
    if cell is None:
        return read_cell(folder)
    return replace(cell, rounds=[*cell.rounds, read_line(record.values(), folder)])


def scalars(r: KeptRound) -> Iterator[tuple[str, float]]:
    """What any tracker is told of a round, by one name everywhere; what was not measured or is not
    finite is not there."""
    for kind, metrics in (("held_out", r.held_out or {}), ("clients", r.metrics)):
        for name, value in metrics.items():
            if value is not None:
                # MLflow takes no other signs.
                yield f"{kind}/{re.sub(r'[^A-Za-z0-9_./ -]', '_', name)}", value
    yield "bytes/up", r.bytes_up
    yield "bytes/down", r.bytes_down
    yield "round/failed", sum(client.failed is not None for client in r.clients.values())
    yield "round/seconds", r.seconds
    if r.privacy and r.privacy.epsilon is not None:
        yield "privacy/epsilon", r.privacy.epsilon


def identity(cell: KeptRun) -> str:
    """Digits by which a run with at least one round is known again, wherever it is followed.

    The time that its first round took tells it from other runs of the same plan.
    """
    first = cell.rounds[0]
    told = [cell.path.resolve().name, cell.identity, cell.seed, first.seconds, first.bytes_up]
    return blake2b(repr(told).encode(), digest_size=8).hexdigest()


def settings_told(plan: Mapping[str, Any]) -> dict[str, Setting]:
    """Values of a plan that a tracker may be told: numbers, switches, names of parts, and the base
    model's without the folder that it lies in.

    Lists of values, texts of the user's (paths, columns, labels) and tables with keys of the
    user's own are left out: they may have names of clients and of this machine.
    """
    found = dict(_plain("", plan))
    task = plan.get("task")
    model = task.get("model") if isinstance(task, Mapping) else None
    if isinstance(model, str):
        found["task.model"] = Path(model).name if _is_place(model) else model
    return found


def _plain(where: str, value: Any) -> Iterator[tuple[str, Setting]]:
    """What may be told of a value, and of those in it."""
    if isinstance(value, Mapping | list):
        for key, inner in _inside(value):
            yield from _plain(f"{where}.{key}" if where else key, inner)
    elif isinstance(value, str):
        if where.rpartition(".")[2] == "name" and not _is_place(value):
            yield where, value
    elif isinstance(value, bool | int | float) and isfinite(value):
        yield where, value


def _inside(value: Mapping[str, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    """The keys and values to look at; of a list only the tables, by their numbers."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in FREE or not isinstance(inner, Mapping):
                yield key, inner
        return
    for number, inner in enumerate(value):
        if isinstance(inner, Mapping):
            yield str(number), inner


def _is_place(text: str) -> bool:
    """Whether a text is a path of this machine rather than a name."""
    return Path(text).is_absolute() or text.startswith(("~", ".")) or "\\" in text
