"""`fedpeft app` and `fedpeft bundle`: a plan as a Flower app, and for a site without a network."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import AllowCode, Debug, PlanFile, Settings, allowed_code, resolve

EXAMPLES = """\
  fedpeft app plan.toml -o myapp; flwr run myapp my-federation     results in runs/ of the SuperLink
  flwr run myapp my-federation --run-config "run=\\"$PWD/runs/first\\""
"""

OFFLINE_EXAMPLES = """\
  fedpeft bundle plan.toml -o stick/hospital-a              fetches wheels as pip is set to do it
  fedpeft bundle plan.toml -o stick/hospital-a --wheels wheelhouse/      from a folder of wheels
  fedpeft bundle plan.toml -o stick/hospital-a --extra oneshot --extra medical
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


def bundle_plan(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder.")],
    plan: PlanFile = None,
    settings: Settings = None,
    extra: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="An extra of fedpeft that goes along; else oneshot alone. Repeatable.",
        ),
    ] = None,
    wheels: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Take wheels from here, and ask no index."),
    ] = None,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Pack a plan and all it needs for a site without a network.

    A plan, its base model and all packages go into one folder.

    The folder DIR is for the Python version and the kind of machine that this command runs on.
    There `sh install.sh` makes an environment of it.
    """
    from fedpeft.deploy.offline import EXTRAS, write_offline

    found = resolve(plan, settings, code=allowed_code(allow_code))
    for line in write_offline(found, out, EXTRAS if extra is None else extra, wheels):
        typer.echo(line)
