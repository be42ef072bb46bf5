"""`fedpeft doctor`: what is not as it must be, before a run."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import AllowCode, Debug, PlanFile, Settings, allowed

EXAMPLES = """\
  fedpeft doctor --superlink fl.example.org:8443 --root-certificates ca.crt --key node.key
  fedpeft doctor plan.toml --data pictures/ --name hospital-a    the plan, base and data too
"""


def doctor(
    plan: PlanFile = None,
    settings: Settings = None,
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Whether it answers, and its time.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root-certificates", metavar="FILE", help="Who vouches for it.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key of this machine's SuperNode.")
    ] = None,
    node: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of this machine's worker.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="The examples of this node.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the plan calls this node.")
    ] = None,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Look for what would keep a federation from running.

    It looks at versions, certificates, keys, the way to the SuperLink, its clock, the worker, the
    plan and the data. Says what is to be done, and ends with 1 if there is something.
    """
    from fedpeft.deploy import doctor as look

    findings = list(look.versions())
    findings += look.certificate(root) if root else ()
    findings += look.private_key(key) if key else ()
    findings += look.superlink(superlink, root) if superlink else ()
    findings += look.worker(node) if node else ()
    findings += look.site(plan, settings, data, name, allowed(allow_code)) if plan else ()
    for one in findings:
        typer.secho(
            f"{'ok ' if one.good else 'NO '} {one.what}: {one.seen}",
            fg=None if one.good else "yellow",
        )
        if not one.good:
            typer.echo(f"      {one.remedy}")
    if not all(one.good for one in findings):
        raise typer.Exit(1)
