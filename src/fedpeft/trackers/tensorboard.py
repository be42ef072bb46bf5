"""Event files for `tensorboard --logdir`, without the name of the machine that wrote them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from fedpeft.core.tracking import RunLabel, require_library

FILE = "events.out.tfevents.fedpeft"
"""TensorBoard reads what has "tfevents" in its name. Its own writer adds the host and the time."""
VERSION = "brain.Event:2"


@dataclass(frozen=True)
class TensorBoard:
    """Event files below `place`, a folder for each run; whoever follows a run writes all of it.

    Attributes:
      place: the folder that `tensorboard --logdir` is given.
    """

    place: str = "logs"

    def require(self) -> None:
        require_library("tensorboard", "tensorboard", "event files")

    def follow(self, run: RunLabel) -> "EventFile":
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = Path(self.place) / run.name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            with suppress(FileNotFoundError):
                old.unlink()
        # The file stays open as long as the run is followed; `EventFile.close` closes it.
        file = EventFile(RecordWriter((folder / FILE).open("wb")))
        file.put(file_version=VERSION)
        return file


@dataclass(frozen=True)
class EventFile:
    """The event file of one run.

    Attributes:
      records: TensorBoard's writer of framed records.
      done: always 0, since the file is new.
    """

    records: Any
    done: int = 0

    def write(self, round: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        told = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.put(step=round, summary=Summary(value=told))

    def close(self, finished: bool) -> None:
        self.records.close()

    def put(self, **what: Any) -> None:
        """Write one event, and make it visible at once."""
        from tensorboard.compat.proto.event_pb2 import Event

        self.records.write(Event(wall_time=time(), **what).SerializeToString())
        self.records.flush()
