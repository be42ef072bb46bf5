"""`fedpeft watch`: runs that are under way, or one's own node, in the terminal or as a page."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedpeft.cli.audience import Track, open_tracking
from fedpeft.cli.options import Debug
from fedpeft.cli.watch_node import watch_node

if TYPE_CHECKING:
    from fedpeft.watching.tracking import Tracking
    from fedpeft.watching.views import RunView

EXAMPLES = """\
  fedpeft watch runs/mine                          until the run is finished
  fedpeft watch runs --once                        how far all runs below runs/ are
  fedpeft watch runs/mine --serve                  a page for the browser, at an address it tells
  fedpeft watch runs --track tensorboard:logs      also for `tensorboard --logdir logs`
  fedpeft watch nodes/hospital-a                   an owner: what the own node answered and refused
"""
PAUSE = 1.0
"""Seconds between two looks."""
SETTLED = 30.0
"""Seconds to wait for the next run of a study when all that there are are finished."""

Port = Annotated[
    int | None,
    typer.Option(
        "--serve",
        metavar="[PORT]",
        min=0,
        max=65535,
        help="Serve a page that can only be read, until Ctrl-C; without PORT at a free one.",
    ),
]
Address = Annotated[
    str,
    typer.Option(metavar="ADDRESS", help="With --serve: an address of this machine."),
]
Beyond = Annotated[
    bool,
    typer.Option(
        "--beyond-this-machine",
        help="With --serve: take an address that other machines can reach. There is no password.",
    ),
]


def watch_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", hidden=True)],
    once: Annotated[bool, typer.Option("--once", help="How it stands now, and no more.")] = False,
    serve: Port = None,
    address: Address = "127.0.0.1",
    beyond: Beyond = False,
    track: Track = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="LOGDIR", help="The same as --track tensorboard:LOGDIR."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Follow runs until they are finished, or the node of an owner.

    DIR is the folder of a run, one with runs below it, or the folder of a `fedpeft node`. Ctrl-C
    ends the watching, not the runs.
    """
    from fedpeft.deploy.status import is_node
    from fedpeft.watching.serving import serving
    from fedpeft.watching.showing import pages_of_node, pages_of_runs

    if once and serve is not None:
        raise click.UsageError("--once ends at once, and --serve stays: give one of them")
    named = [*(track or ()), *([f"tensorboard:{tensorboard}"] if tensorboard else [])]
    node = is_node(folder)
    if node and named:
        raise click.UsageError("trackers are told of runs, and this is the folder of a node")
    with ExitStack() as stack:
        tracking = stack.enter_context(open_tracking(named))
        if serve is not None:
            render = pages_of_node(folder) if node else pages_of_runs(folder)
            page = stack.enter_context(serving(render, serve, address, beyond))
            typer.echo(f"{page} until Ctrl-C")
        if node:
            watch_node(folder, once)
        else:
            _watch(folder, once, tracking, serve is not None)


def _watch(folder: Path, once: bool, tracking: "Tracking", stays: bool) -> None:
    """Show runs, and tell trackers of them; `stays` for ever."""
    from rich.console import Console
    from rich.live import Live

    from fedpeft.cli.watch_runs import picture
    from fedpeft.watching.views import look

    console, seen = Console(highlight=False), look(folder, {})
    if once:
        _tell(tracking, seen)
        console.print(picture(seen))
        return
    with Live(console=console, auto_refresh=False) as live:
        for views in _looks(folder, seen, stays):
            _tell(tracking, views)
            live.update(picture(views), refresh=True)


def _looks(folder: Path, seen: "dict[str, RunView]", stays: bool) -> "Iterator[dict[str, RunView]]":
    """What is seen now and then, until all runs are over; of a study the next one may yet begin."""
    from fedpeft.watching.views import look

    wait = 0 if "" in seen else SETTLED
    over: float | None = None  # since when all are
    while over is None or monotonic() - over < wait:
        yield seen
        if stays or not all(view.over for view in seen.values()):
            over = None
        elif over is None:
            over = monotonic()
        sleep(0 if over and "" in seen else PAUSE)
        seen = look(folder, seen)


def _tell(tracking: "Tracking", seen: "Mapping[str, RunView]") -> None:
    cells: dict[str, Any] = {name: view.cell for name, view in seen.items() if view.cell}
    tracking.add({name or cell.path.resolve().name: cell for name, cell in cells.items()})
