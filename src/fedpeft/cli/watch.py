"""`fedpeft watch`: runs that are under way, live in the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.options import Debug
from fedpeft.core.units import LESS_IS_BETTER, duration, size
from fedpeft.errors import RunError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fedpeft.cli.events import Events
    from fedpeft.report.reading import KeptRun

EXAMPLES = """\
  fedpeft watch runs/mine                          until the run is finished
  fedpeft watch runs --once                        how far all runs below runs/ are
  fedpeft watch runs --tensorboard logs            also for `tensorboard --logdir logs`
"""
PAUSE = 1.0
"""Seconds between two looks."""
SETTLED = 30.0
"""Seconds to wait for the next run of a study when all that there are are finished."""
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 32


def watch_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", hidden=True)],
    once: Annotated[bool, typer.Option("--once", help="How it stands now, and no more.")] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="LOGDIR", help="Also write the rounds as TensorBoard's event files."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Follow runs until they are finished.

    DIR is the folder of a run, or one with runs below it. Ctrl-C ends the watching, not the runs.
    """
    from contextlib import ExitStack, closing

    from rich.console import Console
    from rich.live import Live

    from fedpeft.cli.events import Events

    console, seen = Console(highlight=False), look(folder, {})
    with ExitStack() as stack:
        events = stack.enter_context(closing(Events(tensorboard))) if tensorboard else None
        if once:
            _write(events, seen)
            console.print(picture(seen))
            return
        live = stack.enter_context(Live(console=console, auto_refresh=False))
        for views in _looks(folder, seen):
            _write(events, views)
            live.update(picture(views), refresh=True)


def _looks(folder: Path, seen: "dict[str, RunView]") -> "Iterator[dict[str, RunView]]":
    """What is seen now and then, until all runs are over; of a study the next one may yet begin."""
    wait = 0 if "" in seen else SETTLED
    over: float | None = None  # since when all are
    while over is None or monotonic() - over < wait:
        yield seen
        if not all(view.over for view in seen.values()):
            over = None
        elif over is None:
            over = monotonic()
        sleep(0 if over and "" in seen else PAUSE)
        seen = look(folder, seen)


@dataclass(frozen=True)
class RunView:
    """What was last seen of a run.

    Attributes:
      stamp: changes when one of its files does.
      cell: None if it cannot be read; `problem` then says why.
      touched: when its last round was written, in seconds since the epoch.
    """

    stamp: tuple[tuple[int, int], ...]
    cell: "KeptRun | None"
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
    from fedpeft.report.reading import find_runs

    found = {
        "" if path == folder else path.relative_to(folder).as_posix(): path
        for path in find_runs([folder])
    }
    if not found:
        raise RunError(f"there is no run at or below {folder}")
    return {name: _view(path, before.get(name)) for name, path in found.items()}


def _view(path: Path, before: RunView | None) -> RunView:
    from fedpeft.report.reading import read_cell
    from fedpeft.runs.folder import RunFolder

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


def _write(events: "Events | None", seen: Mapping[str, RunView]) -> None:
    if events:
        cells = [(name, view.cell) for name, view in seen.items() if view.cell]
        events.add({name or cell.path.resolve().name: cell for name, cell in cells})


def picture(seen: Mapping[str, RunView]) -> "RenderableType":
    """One run in several lines, several runs in a line each."""
    from rich.console import Group
    from rich.text import Text

    problems = [
        Text(f"cannot be read: {view.problem}", style="red")
        for view in seen.values()
        if view.problem
    ]
    cells = {name: view for name, view in seen.items() if view.cell}
    if list(cells) == [""]:
        return Group(_alone(cells[""]), *problems)
    return Group(_together(cells), *problems)


def _alone(view: RunView) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    cell = view.cell
    assert cell is not None
    name, values = curve(cell)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("round", Text(f"{len(cell.rounds)}/{cell.planned}  {_bar(cell)}  {state(view)}"))
    if values:
        table.add_row(
            name, Text(f"{values[-1]:.4f}  {spark(values)}  best {_best(name, values):.4f}")
        )
    up, down = (sum(getattr(r, f"bytes_{way}") for r in cell.rounds) for way in ("up", "down"))
    table.add_row("bytes", Text(f"{size(up)} up, {size(down)} down"))
    if budget := _epsilon(cell):
        table.add_row("epsilon", Text(budget))
    failed = [
        (r.round, who, c.failed)
        for r in cell.rounds
        for who, c in r.clients.items()
        if c.failed is not None
    ]
    if failed:
        at, who, why = failed[-1]
        table.add_row(
            "failures", Text(f"{len(failed)}; the last: {who} in round {at}: {why}", style="yellow")
        )
    return Group(Text(f"{cell.plan.get('name', 'run')} in {cell.path}", style="bold"), table)


def _together(views: Mapping[str, RunView]) -> "RenderableType":
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    over = sum(view.over for view in views.values())
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    table.add_column(Text(f"{len(views)} runs, {over} finished"))
    for heading in ("round", "", "last", "up", "failed", ""):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for name, view in views.items():
        cell = view.cell
        assert cell is not None
        _, values = curve(cell)
        failed = sum(c.failed is not None for r in cell.rounds for c in r.clients.values())
        table.add_row(
            Text(name),
            f"{len(cell.rounds)}/{cell.planned}",
            spark(values, WIDTH // 2),
            f"{values[-1]:.4f}" if values else "-",
            size(sum(r.bytes_up for r in cell.rounds)),
            Text(f"{failed}", style="yellow" if failed else ""),
            state(view),
        )
    return table


def curve(cell: "KeptRun") -> tuple[str, list[float]]:
    """The held-out metric that is no loss, as a rule the accuracy, and its values so far."""
    names = dict.fromkeys(name for r in cell.rounds for name in r.held_out or {})
    name = next((name for name in names if name != "loss"), "loss" if names else "accuracy")
    return name, list(cell.measured(name).values())


def _best(name: str, values: Sequence[float]) -> float:
    return min(values) if name in LESS_IS_BETTER else max(values)


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


def spark(values: Sequence[float], width: int = WIDTH) -> str:
    """Values as a line of bars, the lowest of them the lowest bar; the last of each stretch where
    there are many."""
    if len(values) > width:
        values = [values[(k + 1) * len(values) // width - 1] for k in range(width)]
    low, high = min(values, default=0), max(values, default=0)
    span = high - low or 1
    return "".join(BARS[min(len(BARS) - 1, int((x - low) / span * len(BARS)))] for x in values)


def _bar(cell: "KeptRun") -> str:
    done = WIDTH * len(cell.rounds) // max(1, cell.planned)
    return "━" * done + "╌" * (WIDTH - done)


def _epsilon(cell: "KeptRun") -> str:
    spent = [r.privacy for r in cell.rounds if r.privacy and r.privacy.epsilon is not None]
    return (
        f"{spent[-1].epsilon:.4g}" + (f" at delta {spent[-1].delta:g}" if spent[-1].delta else "")
        if spent
        else ""
    )
