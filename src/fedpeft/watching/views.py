"""What is seen of runs that may be under way, read from their folders; unchanged files are not read
again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import time

from fedpeft.core.units import duration, is_less_better, say_epsilon
from fedpeft.deploy.status import is_node
from fedpeft.errors import RunError
from fedpeft.report.reading import KeptRun, find_runs, read_cell
from fedpeft.runs.folder import RunFolder


@dataclass(frozen=True)
class RunView:
    """What was last seen of a run.

    Attributes:
      stamp: changes when one of its files does.
      cell: None if it cannot be read; `problem` then says why.
      touched: when its last round was written, in seconds since the epoch.
    """

    stamp: tuple[tuple[int, int], ...]
    cell: KeptRun | None
    problem: str
    touched: float

    @property
    def over(self) -> bool:
        return self.cell is None or self.cell.finished


def look(folder: Path, before: Mapping[str, RunView]) -> dict[str, RunView]:
    """The runs at or below `folder`, by their path from there; only what has changed is read.

    Raises:
      RunError: there is none.
    """
    found = {
        "" if path == folder else path.relative_to(folder).as_posix(): path
        for path in find_runs([folder])
    }
    if not found:
        raise RunError(f"there is no run at or below {folder}{_nodes_below(folder)}")
    return {name: _view(path, before.get(name)) for name, path in found.items()}


def _nodes_below(folder: Path) -> str:
    """The nodes that lie in a folder, for whoever named the folder that holds them all."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    nodes = [f"`fedpeft watch {path}`" for path in inside if path.is_dir() and is_node(path)]
    return f", but nodes are: watch one of them, by {' or '.join(nodes)}" if nodes else ""


def _view(path: Path, before: RunView | None) -> RunView:
    files = RunFolder(path)
    stats = [file.stat() for file in (files.plan, files.summary, files.rounds) if file.exists()]
    stamp = tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
    if before and before.stamp == stamp:
        return before
    touched = max((stat.st_mtime for stat in stats), default=0.0)
    try:
        return RunView(stamp, read_cell(path), "", touched)
    except RunError as error:
        return RunView(stamp, None, str(error), touched)


def curve(cell: KeptRun) -> tuple[str, list[float]]:
    """The held-out metric that is no loss, as a rule the accuracy, and its values so far."""
    names = dict.fromkeys(name for r in cell.rounds for name in r.held_out or {})
    name = next((name for name in names if name != "loss"), "loss" if names else "accuracy")
    return name, list(cell.measured(name).values())


def best(name: str, values: Sequence[float]) -> float:
    """The best of a metric's values, of which there is at least one."""
    return min(values) if is_less_better(name) else max(values)


def state(view: RunView) -> str:
    """ "finished", or how long it will take, or how long nothing has come when that is longer than
    it should be."""
    cell = view.cell
    assert cell is not None
    if cell.finished:
        return f"finished in {duration(sum(r.seconds for r in cell.rounds))}"
    spent, silent = [r.seconds for r in cell.rounds], max(0.0, time() - view.touched)
    if len(spent) < 3:
        return f"begun {duration(silent)} ago" if not spent else "under way"
    usual = median(spent)
    if silent > 60 + 10 * usual:
        return f"no round for {duration(silent)}; usual is {duration(usual)}"
    left = usual * (cell.planned - len(spent))
    return f"{duration(left)} left" if left else "being summed up"


def budget(cell: KeptRun) -> str:
    """The ε that the rounds have spent so far; empty where nothing is private."""
    spent = [r.privacy for r in cell.rounds if r.privacy and r.privacy.epsilon is not None]
    if not spent:
        return ""
    where = f" at delta {spent[-1].delta:g}" if spent[-1].delta else ""
    return say_epsilon(spent[-1].epsilon) + where


def traffic(cell: KeptRun) -> tuple[int, int]:
    """Bytes up and down over all rounds so far."""
    return sum(r.bytes_up for r in cell.rounds), sum(r.bytes_down for r in cell.rounds)


def missing_answers(cell: KeptRun) -> Iterator[tuple[int, str, str]]:
    """Each answer that was not counted: its round, its client and why."""
    for r in cell.rounds:
        for client, told in r.clients.items():
            if told.failed is not None:
                yield r.round, client, told.failed
