"""`fedpeft merge`: contributions as one model; more of them later, or fewer."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedpeft.cli.options import AsJson, Debug

EXAMPLES = """\
  fedpeft merge study *.safetensors -o merged --trust trusted    signed by those in the list only
  fedpeft merge merged --add hospital-c.safetensors              a late comer
  fedpeft merge merged --add hospital-d.safetensors --trust hospital-d.pub    with a key that is new
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
        help="Refuse an update X times as long as the median of the others; 10 at first.",
    ),
]
MaxNorm = Annotated[
    float | None,
    typer.Option(metavar="X", help="Refuse an update longer than X; any length at first."),
]
EvaluateArrivals = Annotated[
    bool,
    typer.Option(
        "--evaluate", help="Measure after each arrival, on what the plan's data hold out."
    ),
]


def merge(
    folder: MergeFolder,
    files: ContributionFiles = None,
    out: MergedFolder = None,
    add: AddedFiles = None,
    remove: RemovedClients = None,
    trust: TrustedKeys = None,
    norm_factor: NormFactor = None,
    max_norm: MaxNorm = None,
    evaluate: EvaluateArrivals = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Merge contribution files into a run's folder.

    DIR is the folder of an invitation, or with --add and --remove that of what was merged.
    A file that is not as it must be is named, and nothing is merged then. --trust, --norm-factor
    and --max-norm stay with the merge, and hold for the files that it has already too.
    """
    from fedpeft.oneshot.keys import Trust
    from fedpeft.oneshot.merge import Rules, change, is_merged
    from fedpeft.oneshot.merge import merge as begin

    came, gone = [*(files or ()), *(add or ())], remove or ()
    keys = Trust.read(trust or ()).keys

    def asked(rules: Rules) -> Rules:
        return rules.but(keys, norm_factor, max_norm)

    if is_merged(folder):
        changes = (came, gone, evaluate, keys, norm_factor is not None, max_norm is not None)
        if out or not any(changes):
            raise click.UsageError(
                "a merge is changed in its place: give --add FILE or --remove NAME"
            )
        summary, out = change(folder, came, gone, evaluate, asked), folder
    elif out is None or gone or not came:
        raise click.UsageError("to merge an invitation's files give FILE... and -o MERGED")
    else:
        summary = begin(folder, came, out, asked(Rules()), evaluate)
    _show(summary, out, evaluate, as_json)


def _show(summary: Mapping[str, Any], out: Path, evaluate: bool, as_json: bool) -> None:
    from fedpeft.oneshot.results import ARRIVALS
    from fedpeft.runs.folder import read_json

    arrivals = (read_json(out / ARRIVALS) or {}).get("arrivals", []) if evaluate else []
    if as_json:
        typer.echo(json.dumps({**summary, "arrivals": arrivals}, indent=2))
        return
    for line in _curve(arrivals):
        typer.echo(line)
    count = summary["clients"]
    typer.echo(f"{count} contribution{'' if count == 1 else 's'} merged in {out}")


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
