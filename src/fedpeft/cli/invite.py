"""`fedpeft invite`: what clients need to train once and send one file."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import AllowCode, Debug, PlanFile, Settings, allowed, resolve

EXAMPLES = """\
  fedpeft invite -o study                                          handwritten digits at five sites
  fedpeft invite plan.toml -o study --set rounds=1 --set local.epochs=10
"""


def write_invitation(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The invitation's folder.")
    ],
    plan: PlanFile = None,
    settings: Settings = None,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Write what clients need to take part with one file each.

    Send the folder DIR to each; DIR.key beside it opens what they send, and stays with you. Without
    PLAN.toml: handwritten digits at five sites.
    """
    from fedpeft.oneshot.invitation import invite as write
    from fedpeft.oneshot.invitation import server_key

    terms = write(resolve(plan, settings, "one-shot", allowed(allow_code)), out)
    typer.echo(
        f"study {terms.study}\n{out} (for the clients)\n{server_key(out)} (keep it to yourself)"
    )
    typer.echo(
        f"each client: fedpeft contribute {out.name} --data PATH --name NAME -o NAME.safetensors"
    )
