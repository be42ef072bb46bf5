"""`fedpeft invite`: what clients need to train once and send one file; `fedpeft roster`: who sends
one that is masked."""

from pathlib import Path
from typing import Annotated

import typer

from fedpeft.cli.options import AllowCode, Debug, PlanFile, Settings, allowed_code, resolve

EXAMPLES = """\
  fedpeft invite -o study                                          handwritten digits at five sites
  fedpeft invite plan.toml -o study --set rounds=1 --set local.epochs=10
  fedpeft invite plan.toml -o measuring --start merged --set rounds=0 \\
      --set 'evaluate_at=["owners"]'                       the owners measure what was merged
  fedpeft invite -o open --set weighting=uniform --set 'exchange={name="secure",threshold=3}'
"""
ROSTER_EXAMPLES = """\
  fedpeft roster open a.join b.join c.join -o study      study goes to all three, study.key stays
"""


def write_invitation(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The invitation's folder.")
    ],
    plan: PlanFile = None,
    settings: Settings = None,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Begin with what the run in this folder came to; with rounds = 0 its owners "
            "measure it.",
        ),
    ] = None,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Write what clients need to take part with one file each.

    Send the folder DIR to each; DIR.key beside it opens what they send, and stays with you. Without
    PLAN.toml: handwritten digits at five sites. With exchange = "secure" the files will be masked,
    so that you learn their sum alone: owners `fedpeft join` first, and you make the `fedpeft
    roster`.
    """
    from fedpeft.oneshot.invitation import invite as write
    from fedpeft.oneshot.invitation import server_key

    invited = resolve(plan, settings, "one-shot", allowed_code(allow_code))
    terms = write(invited, out, start)
    typer.echo(
        f"study {terms.study}\n{out} (for the clients)\n{server_key(out)} (keep it to yourself)"
    )
    if invited.exchange.sums:
        typer.echo(
            f"each owner: fedpeft join {out.name} --name NAME -o NAME.join\n"
            f"then you: fedpeft roster {out.name} *.join -o NEW, and send NEW to all owners"
        )
        return
    typer.echo(
        f"each client: fedpeft contribute {out.name} --data PATH --name NAME -o NAME.safetensors"
    )


def write_roster(
    folder: Annotated[Path, typer.Argument(metavar="DIR", hidden=True)],
    files: Annotated[list[Path], typer.Argument(metavar="JOIN...", hidden=True)],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="NEW", help="The new invitation's folder.")
    ],
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Write an invitation again with a roster of its owners.

    DIR is the folder that owners joined, JOIN... what each got from `fedpeft join`. NEW goes to all
    of them; NEW.key beside it stays with you. All owners of the roster must hand in a file: a sum
    of fewer is noise, and nobody can mend that afterwards.
    """
    from fedpeft.oneshot.invitation import read_invitation, server_key
    from fedpeft.oneshot.joining import make_roster

    owners = make_roster(read_invitation(folder, allowed_code(allow_code)), files, out)
    typer.echo(
        f"{out} (for {', '.join(owners)})\n{server_key(out)} (keep it to yourself)\n"
        f"each owner: fedpeft contribute {out.name} --data PATH --name NAME -o NAME.safetensors"
    )
