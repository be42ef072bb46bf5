"""`fedpeft doctor`: what is not as it must be, before a run."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import AllowCode, Debug, Settings, allowed

EXAMPLES = """\
  fedpeft doctor pictures/                what is read of them, in data-report.txt too
  fedpeft doctor --superlink fl.example.org:8443 --root-certificates ca.crt --key node.key
  fedpeft doctor plan.toml --data pictures/ --name hospital-a    the plan, base and data too
"""


def doctor(
    what: Annotated[Path | None, typer.Argument(metavar="[PLAN.toml|DATA]", hidden=True)] = None,
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
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="Where the report on the data goes."),
    ] = Path("data-report.txt"),
    debug: Debug = False,
) -> None:
    """Look for what would keep a federation from running.

    It looks at versions, certificates, keys, the way to the SuperLink, its clock, the worker, the
    plan and the data. Says what is to be done, and ends with 1 if there is something.

    DATA, or --data, is read, and what was found is written to a file too: classes, sizes, values
    and what is left out. It holds no name of a file and no example, so that an owner may send it.
    """
    from fedpeft.deploy import doctor as look

    plan = what if what is not None and what.suffix == ".toml" else None
    data = str(what) if data is None and what is not None and plan is None else data

    alone = data and not any((plan, superlink, root, key, node))
    findings = [] if alone else list(look.versions())
    findings += look.certificate(root) if root else ()
    findings += look.private_key(key) if key else ()
    findings += look.superlink(superlink, root) if superlink else ()
    findings += look.worker(node) if node else ()
    code = allowed(allow_code)
    findings += look.site(plan, settings, data, name, code) if plan else ()
    findings += look.data(plan, settings, data, out, code) if data else ()
    for one in findings:
        typer.secho(
            f"{'ok ' if one.good else 'NO '} {one.what}: {one.seen}",
            fg=None if one.good else "yellow",
        )
        if not one.good:
            typer.echo(f"      {one.remedy}")
    if not all(one.good for one in findings):
        raise typer.Exit(1)
