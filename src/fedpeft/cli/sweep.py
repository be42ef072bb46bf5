"""`fedpeft sweep`: every cell of a study, and the table of what came out."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.options import AsJson, Debug, Device
from fedpeft.core.units import duration
from fedpeft.errors import say_count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from fedpeft.studies.cell_store import CellStore
    from fedpeft.studies.study import Cell
    from fedpeft.studies.sweep import CellOutcome

EVERY = 25
"""Looks at the processes between two looks at how far their rounds are."""

WIDE = 130
"""Columns of a terminal that has room for the whole table."""

EXAMPLES = """\
  fedpeft sweep studies/communication-small.toml --estimate     how many runs, how many hours
  fedpeft sweep studies/communication-small.toml                run them all
  fedpeft sweep studies/communication-small.toml --resume       go on after Ctrl-C or a failure
  fedpeft sweep studies/capability-small.toml --only seed=1 --only method=bias
"""

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.toml", hidden=True)]
SweepFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Its run folders; else runs/<study>.")
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Cells at a time.")]
ResumeSweep = Annotated[
    bool, typer.Option("--resume", help="Go on: what is finished is not run again.")
]
OnlyCells = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="Only these cells: an axis, `row` or `seed`. Repeatable."
    ),
]
KeepFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Copy plan, rounds and summary of finished cells to DIR/<study>/<cell>.",
    ),
]
EstimateOnly = Annotated[
    bool, typer.Option("--estimate", help="Print cells and hours, from one round or few.")
]


def sweep_study(
    study: StudyFile,
    out: SweepFolder = None,
    jobs: Jobs = 1,
    resume: ResumeSweep = False,
    only: OnlyCells = None,
    keep: KeepFolder = None,
    estimate: EstimateOnly = False,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run every cell of a study and print the table.

    STUDY.toml has a base plan, axes and seeds; every combination is an ordinary run folder. Cells
    that are finished in --out or --keep, under any name, are not run again. The exit code is 1 if a
    cell failed.
    """
    from rich.console import Console

    from fedpeft.errors import RunError
    from fedpeft.studies.cell_store import CellStore
    from fedpeft.studies.study import read_study, select_cells
    from fedpeft.studies.sweep import find_reused

    _check_folder("--out", out)
    _check_folder("--keep", keep)
    read = read_study(study)
    cells = select_cells(read, only or ())
    console = Console(stderr=as_json, highlight=False, markup=False, soft_wrap=True)
    cell_store = CellStore(read, out or Path("runs") / read.name, keep)
    done = find_reused(cell_store, cells)
    options = [] if device == "cpu" else ["--device", device]
    if estimate:
        _estimate(console, cell_store, cells, done, jobs, options, as_json)
        return
    if not resume and cell_store.begun(cells):
        raise RunError(
            f"{cell_store.out} holds cells of this study: go on with --resume, or change --out"
        )
    outcomes = _sweep(console, cell_store, cells, done, jobs, options)
    # The table is of all that is finished.
    others = [cell for cell in read.cells if cell not in cells]
    _report(console, cell_store, [*outcomes, *find_reused(cell_store, others)], as_json)
    if any(one.error for one in outcomes):
        raise typer.Exit(1)


def _check_folder(option: str, folder: Path | None) -> None:
    from fedpeft.errors import RunError

    if folder is not None and folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: give {option} a folder")


def _estimate(
    console: "Console",
    cell_store: "CellStore",
    cells: "Sequence[Cell]",
    done: "Sequence[CellOutcome]",
    jobs: int,
    options: list[str],
    as_json: bool,
) -> None:
    from fedpeft.studies.estimate import estimate_study

    found = estimate_study(cell_store, cells, done, jobs, options)
    if as_json:
        typer.echo(json.dumps({"study": cell_store.study.name, **vars(found)}, indent=2))
        return
    together = f", {jobs} at a time" if jobs > 1 else ""
    console.print(
        f"{cell_store.study.name}: {say_count(found.cells, 'cells')}, "
        f"{found.finished} of them finished; "
        f"the rest takes about {duration(found.hours * 3600)}{together} ({found.source})"
    )


def _sweep(
    console: "Console",
    cell_store: "CellStore",
    cells: "Sequence[Cell]",
    done: "list[CellOutcome]",
    jobs: int,
    options: list[str],
) -> "list[CellOutcome]":
    """All outcomes; one bar over all cells, a line for each that ends."""
    from fedpeft.runs.folder import RunFolder, lock_run
    from fedpeft.studies.sweep import run_study as run_all

    cell_store.out.mkdir(parents=True, exist_ok=True)
    outcomes = list(done)
    left = _without(cells, done)
    again = f", {len(done)} of them finished before" if done else ""
    console.print(
        f"{cell_store.study.name}: {say_count(len(cells), 'cells')}{again}, in {cell_store.out}"
    )
    bar = _bar(console)
    shown = bar if console.is_terminal else nullcontext()
    with lock_run(RunFolder(cell_store.out)), _interruptible(cell_store), shown:
        for one in done:
            cell_store.store(one.cell, one.folder or cell_store.out)
        task = bar.add_task(
            cell_store.study.name, total=len(cells), completed=len(outcomes), left=""
        )
        for tick, ended in enumerate(run_all(cell_store, left, jobs, options)):
            for one in ended:
                outcomes.append(one)
                _store(cell_store, one)
                line = _line(one, len(outcomes), len(cells))
                console.print(line, _left(cell_store, cells, outcomes, jobs))
            if ended or tick % EVERY == 0:
                bar.update(
                    task, completed=len(outcomes), left=_left(cell_store, cells, outcomes, jobs)
                )
    return outcomes


def _without(cells: "Sequence[Cell]", done: "Sequence[CellOutcome]") -> "list[Cell]":
    """The cells that have no outcome yet."""
    ready = {one.cell.name for one in done}
    return [cell for cell in cells if cell.name not in ready]


def _store(cell_store: "CellStore", one: "CellOutcome") -> None:
    if one.folder and not one.error:
        cell_store.store(one.cell, one.folder)


def _bar(console: "Console") -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        transient=True,
    )


def _left(
    cell_store: "CellStore", cells: "Sequence[Cell]", outcomes: "Sequence[CellOutcome]", jobs: int
) -> str:
    """The time that the other cells are likely to take, from the seconds of those that are
    finished."""
    from fedpeft.studies.cell_store import rounds_done
    from fedpeft.studies.estimate import seconds_of

    ended, good = {one.cell.name for one in outcomes}, [one for one in outcomes if not one.error]
    total = 0.0
    for cell in cells:
        if cell.name not in ended:
            share = rounds_done(cell_store.out / cell.name) / max(1, cell.plan.rounds)
            total += (seconds_of(cell, good) or 0.0) * (1 - share)
    return f"{duration(total / jobs)} left" if total else ""


def _line(one: "CellOutcome", number: int, cells: int) -> str:
    if one.error:
        told = f"failed: {one.error}"
    else:
        held_out = one.summary.get("held_out_last") or {}
        name = next((name for name in ("accuracy", "loss") if name in held_out), None)
        told = "" if name is None else f"{name} {held_out[name]:.4f}"
    return f"[{number}/{cells}] {one.cell.name}  {told}  {duration(one.wall)}"


@contextmanager
def _interruptible(cell_store: "CellStore") -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted: what is done is kept in {cell_store.out}; the same command with "
            "--resume "
            "goes on",
            err=True,
        )
        raise typer.Exit(130) from None


def _report(
    console: "Console", cell_store: "CellStore", outcomes: "Sequence[CellOutcome]", as_json: bool
) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from fedpeft.studies.table import columns, rows_of, select_measures, texts, write_tables

    study = cell_store.study
    rows = rows_of(study, outcomes)
    write_tables(study, rows, cell_store.out, shlex.join(["fedpeft", *sys.argv[1:]]))
    for one in outcomes:
        if one.error:
            typer.echo(f"error: {one.cell.name} failed: {one.error}", err=True)
    if as_json:
        typer.echo((cell_store.out / "table.json").read_text())
        return
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    shown = select_measures(rows)
    if console.width < WIDE:
        shown = dict(islice(shown.items(), 1))
    for number, heading in enumerate(columns(study, shown)):
        is_label = number < len(study.axes or (1,))
        table.add_column(heading, justify="left" if is_label else "right", no_wrap=not is_label)
    for row in rows:
        table.add_row(*texts(study, row, shown))
    console.print(table)
    console.print(f"tables: {cell_store.out / 'table.md'}, {cell_store.out / 'table.json'}")
