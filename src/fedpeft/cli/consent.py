"""The owner is asked once, on one screen."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import typer

if TYPE_CHECKING:
    from fedpeft.deploy.consent import Consent


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
