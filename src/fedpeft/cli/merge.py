"""`fedpeft merge`: contributions as one model; more of them later, or fewer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedpeft.cli.options import AllowCode, AsJson, Debug, allowed_code
from fedpeft.cli.owners import owner_lines

EXAMPLES = """\
  fedpeft merge study *.safetensors -o merged --trust trusted    signed by those in the list only
  fedpeft merge merged --add hospital-c.safetensors              a late client
  fedpeft merge merged --add hospital-d.safetensors --trust hospital-d.pub    with a key that is new
  fedpeft merge study north/ south/ late.safetensors -o country  regions' merges: the files in them
  fedpeft merge merged --remove hospital-a                       as if it had never sent a file
"""
WIDTH = 40  # characters of an accuracy of 1


MergeFolder = Annotated[Path, typer.Argument(metavar="DIR", hidden=True)]
ContributionFiles = Annotated[list[Path] | None, typer.Argument(metavar="[FILE...]", hidden=True)]
MergedFolder = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="MERGED", help="The new run's folder.")
]
AddedFiles = Annotated[
    list[Path] | None, typer.Option("--add", metavar="FILE...", help="Merge these too.")
]
RemovedClients = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Take this client out. Repeatable.")
]
TrustedKeys = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="KEYS",
        help="Take only files signed with these keys; for a merge, with these too. Repeatable.",
    ),
]
NormFactor = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Refuse an update X times as long as the median of the others, or 10·X times "
        "as long as the only other one. Not given: X is 10.",
    ),
]
MaxNorm = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Refuse an update longer than X. Not given: X is 1000 times the length of what "
        "training starts from.",
    ),
]
EvaluateArrivals = Annotated[
    bool,
    typer.Option(
        "--evaluate", help="Measure after each arrival, on what the plan's data hold out."
    ),
]


def merge_files(
    folder: MergeFolder,
    files: ContributionFiles = None,
    out: MergedFolder = None,
    add: AddedFiles = None,
    remove: RemovedClients = None,
    trust: TrustedKeys = None,
    norm_factor: NormFactor = None,
    max_norm: MaxNorm = None,
    max_examples: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Refuse a file that counts as more than N examples. Not given: N is 100 times the "
            "median of the others.",
        ),
    ] = None,
    evaluate: EvaluateArrivals = False,
    as_json: AsJson = False,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Merge contribution files into a run's folder.

    DIR is the folder of an invitation, or with --add and --remove that of what was merged. A FILE
    may be a merged folder too, which stands for all files in it.
    A file that is not as it must be is named, and nothing is merged then. Masked files are merged
    when all of the roster are there, and none is added later or taken out. --trust, --norm-factor,
    --max-norm and --max-examples stay with the merge, and hold for the files that it has already
    too.
    """
    from fedpeft.oneshot.keys import Trust
    from fedpeft.oneshot.merge import change, is_merged
    from fedpeft.oneshot.merge import merge as begin
    from fedpeft.oneshot.rules import Rules

    came, gone = [*(files or ()), *(add or ())], remove or ()
    keys, code = Trust.read(trust or ()).keys, allowed_code(allow_code)
    bounds = norm_factor, max_norm, max_examples

    def asked(rules: Rules) -> Rules:
        return rules.but(keys, *bounds)

    if is_merged(folder):
        if out or not any((came, gone, evaluate, keys, bounds != (None, None, None))):
            raise click.UsageError(
                "a merge is changed in its place: give --add FILE or --remove NAME"
            )
        summary, out = change(folder, came, gone, evaluate, asked, code), folder
    else:
        out = _first_folder(out, came, gone)
        summary = begin(folder, came, out, asked(Rules()), evaluate, code)
    _show(summary, out, evaluate, as_json)


def _first_folder(out: Path | None, came: Sequence[Path], gone: Sequence[str]) -> Path:
    if out is None or gone or not came:
        raise click.UsageError("to merge an invitation's files give FILE... and -o MERGED")
    return out


def _show(summary: Mapping[str, Any], out: Path, evaluate: bool, as_json: bool) -> None:
    from fedpeft.runs.folder import RunFolder, read_json

    arrivals = (read_json(RunFolder(out).arrivals) or {}).get("arrivals", []) if evaluate else []
    if as_json:
        typer.echo(json.dumps({**summary, "arrivals": arrivals}, indent=2))
        return
    for line in _curve(arrivals):
        typer.echo(line)
    for line in owner_lines(summary.get("owners")):
        typer.echo(line)
    count = summary["clients"]
    typer.echo(f"{count} contribution{'' if count == 1 else 's'} merged in {out}")
    if withdrawn := count - summary.get("updates", count):
        typer.echo(f"files that add nothing, as their owners withdrew: {withdrawn}")


def _curve(arrivals: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each arrival, with the accuracy as a number and as a bar, or the loss where there
    is none."""
    names = [arrival["client"] or "(nobody)" for arrival in arrivals]
    left, lines = max(map(len, names), default=0), []
    for name, arrival in zip(names, arrivals, strict=True):
        measured = arrival["held_out"]
        metric = next((key for key in measured if key != "loss"), "loss")
        value = measured.get(metric)
        bar = "█" * round(WIDTH * value) if metric == "accuracy" and value is not None else ""
        lines.append(
            f"{name:<{left}}  {metric} {'not finite' if value is None else format(value, '.4f')}  "
            f"{bar}".rstrip()
        )
    return lines
