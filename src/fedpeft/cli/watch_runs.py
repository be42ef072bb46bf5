"""Runs as `fedpeft watch` draws them in a terminal."""

from collections.abc import Mapping, Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from fedpeft.core.units import size
from fedpeft.watching.views import RunView, best, budget, curve, missing_answers, state, traffic

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from fedpeft.report.reading import KeptRun

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 32
ROOMY, NARROW = 100, 76
"""So wide is a terminal that has room for long bars, and for short ones."""
LEAST, LEAST_STATE = 10, 10
"""The least columns that names and states have."""


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
            name, Text(f"{values[-1]:.4f}  {spark(values)}  best {best(name, values):.4f}")
        )
    up, down = traffic(cell)
    table.add_row("bytes", Text(f"{size(up)} up, {size(down)} down"))
    if spent := budget(cell):
        table.add_row("epsilon", Text(spent))
    if failed := list(missing_answers(cell)):
        at, who, why = failed[-1]
        table.add_row(
            "failures", Text(f"{len(failed)}; the last: {who} in round {at}: {why}", style="yellow")
        )
    return Group(Text(f"{cell.plan.get('name', 'run')} in {cell.path}", style="bold"), table)


def _together(views: Mapping[str, RunView]) -> "RenderableType":
    from rich.text import Text

    columns = get_terminal_size().columns
    bars = WIDTH // 2 if columns >= ROOMY else WIDTH // 4 if columns >= NARROW else 0
    table = _headings(views, columns >= ROOMY)
    for name, view in views.items():
        cell = view.cell
        assert cell is not None
        _, values = curve(cell)
        failed = len(list(missing_answers(cell)))
        table.add_row(
            Text(name),
            f"{len(cell.rounds)}/{cell.planned}",
            spark(values, bars) if bars else "",
            f"{values[-1]:.4f}" if values else "-",
            size(traffic(cell)[0]),
            Text(f"{failed}", style="yellow" if failed else ""),
            state(view),
        )
    return table


def _headings(views: Mapping[str, RunView], roomy: bool) -> "Table":
    """A table without rows. A narrow terminal breaks names and states into lines; it leaves neither
    out."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    padding = (0, 1) if roomy else (0, 2, 0, 0)
    table = Table(box=SIMPLE if roomy else None, show_edge=False, pad_edge=False, padding=padding)
    over, longest = sum(view.over for view in views.values()), max(map(len, views), default=0)
    heading = Text(f"{len(views)} runs, {over} finished")
    table.add_column(heading, overflow="fold", min_width=min(LEAST, longest))
    for word in ("round", "", "last", "up", "failed"):
        table.add_column(word, justify="right" if word else "left", no_wrap=True)
    table.add_column("", overflow="fold", min_width=LEAST_STATE)
    return table


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
