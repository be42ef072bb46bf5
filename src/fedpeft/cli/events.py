"""The rounds of runs as TensorBoard's event files; training knows nothing of them."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpeft.errors import FedpeftError, explain_install
from fedpeft.report.reading import KeptRun
from fedpeft.report.schema import KeptRound


class MissingTensorBoard(FedpeftError):
    """What writes event files is not installed."""


@dataclass
class Events:
    """Event files below `root`, a folder for each run; written again when one begins to follow a
    run.

    Raises:
      MissingLibrary: TensorBoard is not installed.
    """

    root: Path
    writers: dict[str, Any] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise MissingTensorBoard(
                f"event files need tensorboard: {explain_install('tensorboard')}"
            ) from None

    def add(self, cells: Mapping[str, KeptRun]) -> None:
        """Write the rounds that are new, and make them visible."""
        for name, cell in cells.items():
            writer = self.writers[name] if name in self.writers else self._open(name)
            for r in cell.rounds[self.written[name] :]:
                for tag, value in scalars(r):
                    writer.add_scalar(tag, value, r.round)
            self.written[name] = max(self.written[name], len(cell.rounds))
            writer.flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()

    def _open(self, name: str) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.root / name
        for old in folder.glob("events.out.tfevents.*") if folder.is_dir() else ():
            with suppress(FileNotFoundError):
                old.unlink()
        self.writers[name], self.written[name] = SummaryWriter(str(folder)), 0
        return self.writers[name]


def scalars(r: KeptRound) -> Iterator[tuple[str, float]]:
    """What is told of a round; what was not measured or is not finite is not there."""
    for kind, metrics in (("held_out", r.held_out or {}), ("clients", r.metrics)):
        yield from (
            (f"{kind}/{name}", value) for name, value in metrics.items() if value is not None
        )
    yield "bytes/up", r.bytes_up
    yield "bytes/down", r.bytes_down
    yield "round/failed", sum(client.failed is not None for client in r.clients.values())
    yield "round/seconds", r.seconds
    if r.privacy and r.privacy.epsilon is not None:
        yield "privacy/epsilon", r.privacy.epsilon
