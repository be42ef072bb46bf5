"""`fedpeft app`: a plan as a Flower app."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import AllowCode, Debug, PlanFile, Settings, allowed_code, resolve

EXAMPLES = """\
  fedpeft app plan.toml -o myapp; flwr run myapp my-federation     results in runs/ of the SuperLink
  flwr run myapp my-federation --run-config "run=\\"$PWD/runs/first\\""
"""


def bundle(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder.")],
    plan: PlanFile = None,
    settings: Settings = None,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Write a Flower app that runs a plan, for `flwr run`."""
    from fedpeft.deploy.bundle import write_app

    write_app(resolve(plan, settings, code=allowed_code(allow_code)), out)
    typer.echo(f"{out}: flwr run {out} NAME, where NAME is a SuperLink in Flower's config.toml")
