"""`fedpeft doctor`: what is not as it must be, before a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpeft.cli.options import AllowCode, Debug, Settings, allowed_code

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fedpeft.core.types import Examples
    from fedpeft.deploy.doctor import Finding

EXAMPLES = """\
  fedpeft doctor pictures/                what is read of them, in data-report.txt too
  fedpeft doctor study --data pictures/ --name hospital-a        whether `contribute` will do
  fedpeft doctor --superlink fl.example.org:8443 --root-certificates ca.crt --key node.key
  fedpeft doctor plan.toml --federation here      at the server: who is waited for
  fedpeft doctor plan.toml --data pictures/ --name hospital-a    the plan, base and data too
"""

Federation = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="At the server: the SuperLink in config.toml whose nodes to count."
    ),
]
Report = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="Where the report on the data goes.")
]


def doctor(
    what: Annotated[Path | None, typer.Argument(metavar="[PLAN|STUDY|DATA]", hidden=True)] = None,
    settings: Settings = None,
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Whether it answers, and its time.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root-certificates", metavar="FILE", help="The certificate that vouches for it."
        ),
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
    federation: Federation = None,
    allow_code: AllowCode = None,
    out: Report = Path("data-report.txt"),
    debug: Debug = False,
) -> None:
    """Look for what would keep a federation from running.

    It looks at versions, certificates, keys, the way to the SuperLink, its clock, the worker, the
    plan and the data. Says what is to be done, and ends with 1 if there is something.

    DATA, or --data, is read, and what was found is written to a file too: classes, sizes, values
    and what is left out. It holds no name of a file and no example, so that an owner may send it.
    The data are read as `contribute` and `node` read an owner's: only a test split that lies there
    is held out. STUDY is the folder of an invitation, and needs --data and --name.
    """
    from fedpeft.deploy import doctor as look

    study = what if _is_invitation(what) else None
    plan, data = _plan_or_data(study / "plan.toml" if study else what, data)
    code, connects = allowed_code(allow_code), any((superlink, root, key, node, federation))
    seen: list[Examples] = []
    findings = list(look.libraries(plan, settings, code, connects, data))
    findings += _way(superlink, root, key)
    if federation:
        findings += look.nodes(plan, settings, federation, code)
    if node:
        findings += look.worker(node)
    if study:
        findings += look.invitation(study, settings, *_owner_of(study, data, name), code)
    elif plan:
        findings += look.site(plan, settings, data, name, code, seen)
    if data:
        findings += look.data(plan, settings, data, out, code, next(iter(seen), None))
    _tell(findings)


def _way(superlink: str | None, root: Path | None, key: Path | None) -> "Iterator[Finding]":
    """What lies between a node and the SuperLink."""
    from fedpeft.deploy import doctor as look

    if root:
        yield from look.certificate(root)
    if key:
        yield from look.private_key(key)
    if superlink:
        yield from look.superlink(superlink, root)


def _is_invitation(what: Path | None) -> bool:
    from fedpeft.oneshot.invitation import FILE

    return what is not None and (what / FILE).is_file()


def _owner_of(study: Path, data: str | None, name: str | None) -> tuple[str, str]:
    """Whose data are held against an invitation."""
    if data is None or name is None:
        raise typer.BadParameter(
            f"{study} is an invitation: add --data PATH --name NAME, as for `fedpeft contribute`"
        )
    return data, name


def _plan_or_data(what: Path | None, data: str | None) -> tuple[Path | None, str | None]:
    """What the argument names is a plan, or data unless --data names them."""
    if what is None or what.suffix == ".toml":
        return what, data
    return None, str(what) if data is None else data


def _tell(findings: "Sequence[Finding]") -> None:
    for one in findings:
        if one.good:
            typer.echo(f"ok  {one.what}: {one.seen}")
        else:
            typer.secho(f"NO  {one.what}: {one.seen}", fg="yellow")
            typer.echo(f"      {one.remedy}")
    if not all(one.good for one in findings):
        raise typer.Exit(1)
