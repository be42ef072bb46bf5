"""`fedpeft`: its commands, and how their errors are shown."""

import errno
import os
from itertools import pairwise
from typing import Annotated, Any

import click
import typer
from typer.core import TyperCommand, TyperGroup

from fedpeft.cli import (
    audit,
    bundle,
    contribute,
    diagnose,
    doctor,
    evaluate,
    export,
    invite,
    keygen,
    merge,
    node,
    partition,
    parts,
    plans,
    report,
    run,
    sample,
    supernode,
    sweep,
    watch,
)
from fedpeft.cli.options import Debug, is_debugging, said_once
from fedpeft.errors import NO_ROOM, FedpeftError

FORMERLY = "attack"
"""What `audit` was called before it measured epsilon too; it still works, and no list shows it."""


class Commands(TyperGroup):
    """What the user can mend is one line on standard error; with --debug, the whole traceback.

    Exit codes: 2 for a plan, data or a folder that cannot be used, 1 for a disk or file that fails,
      130 for Ctrl-C.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with said_once():
                return super().invoke(ctx)
        except (FedpeftError, OSError, KeyboardInterrupt) as error:
            if is_debugging(ctx) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
                raise
            code, line = _explain(error)
            typer.echo(line, err=True)
            raise typer.Exit(code) from None


class PlainCommand(TyperCommand):
    """Help in plain text, in which typer 0.20 would show the brackets of `[required]` escaped for
    rich."""

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace("\\[", "[")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_zeros(args, self.params))


def _with_zeros(args: list[str], params: list[click.Parameter]) -> list[str]:
    """Put a 0 after each option that takes a number or nothing, where no number follows.

    typer has no options whose value may be missing. Such an option has its metavar in brackets.
    """
    bare = {
        name
        for param in params
        if isinstance(param, click.Option) and (param.metavar or "").startswith("[")
        for name in param.opts
    }
    made: list[str] = []
    for word, after in pairwise([*args, ""]):
        made.append(word)
        if word in bare and not after.isdigit():
            made.append("0")
    return made


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, FedpeftError):
        return 2, f"error: {' '.join(str(error).split())}"
    if isinstance(error, OSError):
        reason = error.strerror or " ".join(str(error).split())
        where = f": {os.fsdecode(error.filename)}" if error.filename else ""
        remedy = ". Make room there and go on: what was whole before is kept"
        return 1, f"error: {reason}{where}{remedy if error.errno in NO_ROOM else ''}"
    return 130, "interrupted"


app = typer.Typer(
    name="fedpeft",
    cls=Commands,
    epilog="Begin with `fedpeft run`, which needs no arguments. Each command tells more with "
    "--help.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from fedpeft.cli.version import describe_version

        typer.echo(describe_version())
        raise typer.Exit()


@app.callback()
def apply_common_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the version, and the commit of a checkout.",
            callback=_version,
            is_eager=True,
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a foundation model on data that cannot leave its owners, for kilobytes per
    owner."""


for name, command, examples in (
    ("run", run.run, run.EXAMPLES),
    ("sweep", sweep.sweep_study, sweep.EXAMPLES),
    ("list", parts.list_parts, parts.EXAMPLES),
    ("show", plans.show, plans.SHOW_EXAMPLES),
    ("plan", plans.plan_ahead, plans.EXAMPLES),
    ("partition", partition.partition, partition.EXAMPLES),
    ("evaluate", evaluate.evaluate_run, evaluate.EXAMPLES),
    ("sample", sample.sample, sample.EXAMPLES),
    ("export", export.export, export.EXAMPLES),
    ("watch", watch.watch_runs, watch.EXAMPLES),
    ("report", report.report, report.EXAMPLES),
    ("invite", invite.write_invitation, invite.EXAMPLES),
    ("join", keygen.join_study, keygen.JOIN_EXAMPLES),
    ("roster", invite.write_roster, invite.ROSTER_EXAMPLES),
    ("contribute", contribute.contribute_file, contribute.EXAMPLES),
    ("withdraw", keygen.withdraw_from_study, keygen.WITHDRAW_EXAMPLES),
    ("keygen", keygen.keygen, keygen.EXAMPLES),
    ("merge", merge.merge_files, merge.EXAMPLES),
    ("node", node.node, node.EXAMPLES),
    ("supernode", supernode.start_supernode, supernode.EXAMPLES),
    ("app", bundle.bundle, bundle.EXAMPLES),
    ("bundle", bundle.bundle_plan, bundle.OFFLINE_EXAMPLES),
    ("doctor", doctor.doctor, doctor.EXAMPLES),
    ("diagnose", diagnose.diagnose_plan, diagnose.EXAMPLES),
    ("audit", audit.audit_plan, audit.EXAMPLES),
    (FORMERLY, audit.audit_plan, audit.EXAMPLES.replace("fedpeft audit", f"fedpeft {FORMERLY}")),
):
    epilog = f"\b\nExamples:\n{examples}"
    app.command(name, cls=PlainCommand, epilog=epilog, hidden=name == FORMERLY)(command)
