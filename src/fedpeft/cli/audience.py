"""The terminal and, by `--track`, trackers of experiments are told what comes of a run."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fedpeft.runs.folder import RunFolder
    from fedpeft.watching.tracking import Tracking


FEW_OWNERS = 12
"""Owners that get a line of their own at the end of a run; `fedpeft evaluate` shows more."""


def _trackers() -> list[str]:
    from fedpeft.registry import names

    return sorted(names("tracker"))


Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME[:KEY=VALUE,...]",
        help="Also tell a tracker of each round: mlflow, tensorboard or wandb; `fedpeft list "
        "tracker NAME` has its keys. Repeatable.",
        autocompletion=_trackers,
    ),
]


@contextmanager
def open_tracking(texts: Sequence[str]) -> "Iterator[Tracking]":
    """The trackers that the user named; what they still have open is closed at the end.

    Raises:
      PlanError: there is no such tracker, or it has no such key.
      MissingTracker: its library is not installed.
    """
    from fedpeft.watching.tracking import Tracking, read_trackers

    tracking = Tracking(read_trackers(texts), lambda words: typer.echo(words, err=True))
    try:
        yield tracking
    finally:
        tracking.close()


@dataclass(frozen=True)
class Audience:
    """Those who are told of a run: the terminal, and trackers.

    Attributes:
      quiet: whether there is a line for what goes wrong and for the end alone.
      as_json: whether standard output gets the summary as JSON, and nothing else.
    """

    console: "Console"
    tracking: "Tracking"
    quiet: bool
    as_json: bool

    def say(self, words: str) -> None:
        """A line, unless the user wants none."""
        if not self.quiet:
            self.console.print(words)


@contextmanager
def open_audience(trackers: Sequence[str], quiet: bool, as_json: bool) -> Iterator[Audience]:
    """The terminal and the named trackers, until the command ends; see `open_tracking`."""
    from rich.console import Console

    console = Console(stderr=as_json, highlight=False, markup=False, soft_wrap=True)
    with open_tracking(trackers) as tracking:
        yield Audience(console, tracking, quiet, as_json)


def report_run(told: Audience, folder: "RunFolder", summary: Mapping[str, Any]) -> None:
    """What a finished run came to, and what its user should not overlook.

    Raises:
      Exit: no round of it changed anything.
    """
    from fedpeft.cli.owners import owner_lines
    from fedpeft.cli.progress import summary_table, warnings
    from fedpeft.runs.record import changed_nothing

    for warning in warnings(summary):
        typer.echo(f"warning: {warning}", err=True)
    console = told.console
    if told.as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        console.print()
        if early := summary.get("ended_early"):
            console.print(early)
        console.print(summary_table(summary))
        for line in owner_lines(summary.get("owners"), FEW_OWNERS):
            console.print(line)
        console.print(f"results: {folder.path}")
    if why := changed_nothing(summary):
        typer.echo(f"error: {why}", err=True)
        raise typer.Exit(1)
