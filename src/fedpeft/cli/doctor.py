"""`fedpeft doctor`: what is not as it must be, before a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.options import Debug, PlanFile, Settings

if TYPE_CHECKING:
    from fedpeft.deploy.doctor import Finding

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
    debug: Debug = False,
) -> None:
    """Look for what would keep a federation from running.

    It looks at versions, certificates, keys, the way to the SuperLink, its clock, the worker, the
    plan and the data. Says what is to be done, and ends with 1 if there is something.
    """
    from fedpeft.deploy import doctor as look

    findings = list(look.versions())
    if root:
        findings += look.certificate(root)
    if key:
        findings += look.private_key(key)
    if superlink:
        findings += look.superlink(superlink, root)
    if node:
        findings += look.worker(node)
    if plan:
        findings += look.site(plan, settings, data, name)
    for one in findings:
        _show(one)
    if not all(one.good for one in findings):
        raise typer.Exit(1)


def _show(one: "Finding") -> None:
    if one.good:
        typer.echo(f"ok  {one.what}: {one.seen}")
    else:
        typer.secho(f"NO  {one.what}: {one.seen}", fg="yellow")
        typer.echo(f"      {one.remedy}")
