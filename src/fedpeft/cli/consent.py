"""The owner is asked once, on one screen, whoever asks: a node, or one who writes a file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

if TYPE_CHECKING:
    from fedpeft.deploy.consent import Consent

WithoutAsking = Annotated[
    bool, typer.Option("--yes", "-y", help="Agree to the terms without being asked.")
]


def ask_for_consent(consent: "Consent", folder: Path, yes: bool) -> None:
    """Show what the owner agrees to, and go on only if he does.

    Raises:
      UsageError: nobody is there to be asked, and nothing was agreed to before.
    """
    typer.echo("You agree to:")
    for line in consent.text():
        typer.echo(line)
    if consent.given_at(folder):
        typer.echo(f"You agreed to this before ({folder}).")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody is there to agree: read the terms above, then say --yes")
        typer.confirm("Do you agree?", abort=True)
    consent.keep(folder)
