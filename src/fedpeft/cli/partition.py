"""`fedpeft partition`: who holds what under a plan."""

import json
from collections.abc import Mapping
from shutil import get_terminal_size
from typing import Any

import typer

from fedpeft.cli.options import AsJson, Debug, PlanFile, Seed, Settings, resolve

EXAMPLES = """\
  fedpeft partition                                   the division of `fedpeft run`
  fedpeft partition --set partition.alpha=0.05        how much more unlike the clients would be
  fedpeft partition plan.toml --json                  label histograms, to compute with
"""


def partition(
    plan: PlanFile = None,
    settings: Settings = None,
    seed: Seed = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show which client holds what.

    Each client is a line and each class a column; a larger share of the client's examples is
    darker. Below them is how unlike the clients are. Data without labels have sizes only. Without
    PLAN.toml: the division of `fedpeft run`.
    """
    chosen = resolve(plan, [*(settings or ()), *([f"seed={seed}"] if seed is not None else [])])
    from fedpeft.data.report import heat_map
    from fedpeft.runs.division import division_of

    report = division_of(chosen)
    if as_json:
        typer.echo(json.dumps(report))
        return
    if "histograms" in report:
        typer.echo(heat_map(report, get_terminal_size().columns))
        typer.echo()
    measures = _measures(report)
    width = max(20, *(len(label) + 2 for label in measures))
    for label, text in measures.items():
        typer.echo(f"{label:<{width}}{text}")


def _measures(report: Mapping[str, Any]) -> dict[str, str]:
    return {
        "examples": f"{report['examples']:,} on {report['clients']:,} clients; "
        f"{report['unused']:,} unused",
        "of a client": _spread(report["size"]),
        **(_of_classes(report) if "histograms" in report else {}),
        "fingerprint": report["fingerprint"],
        **{name: f"{count:,}" for name, count in report["notes"].items()},
    }


def _of_classes(report: Mapping[str, Any]) -> dict[str, str]:
    skew = report["skew"]
    of_all = skew["effective_classes_of_all"]
    return {
        "its classes": _spread(report["classes_per_client"]),
        "effective classes": f"{skew['effective_classes']:.2f} on average, {of_all:.2f} in all "
        "clients together",
        "total variation": f"{skew['total_variation']:.3f} (0: all alike)",
    }


def _spread(values: Mapping[str, float]) -> str:
    return (
        f"{values['min']:g} at least, {values['median']:g} in the middle, {values['max']:g} at most"
    )
