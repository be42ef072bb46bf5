"""`fedpeft diagnose`: will one round do?"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedpeft.cli.options import AllowCode, AsJson, Debug, Device, Settings, allowed_code, resolve
from fedpeft.errors import say_count

EXAMPLES = """\
  fedpeft diagnose                                     the plan of `fedpeft run`, within a minute
  fedpeft diagnose plan.toml --set method=full --rounds 5
  fedpeft diagnose runs/digits-lora-1-001 --json       a run's plan, and how far the run itself went
"""
LAYERS = 5


def diagnose_plan(
    plan: Annotated[Path | None, typer.Argument(metavar="[PLAN.toml|RUN]", hidden=True)] = None,
    settings: Settings = None,
    rounds: Annotated[
        int,
        typer.Option(
            metavar="N",
            show_default=False,
            help="Rounds to compare with one; else from the plan, 2-8.",
        ),
    ] = 0,
    clients: Annotated[
        int,
        typer.Option(
            metavar="N",
            show_default=False,
            help="Clients, all in each round; else the plan's cohort.",
        ),
    ] = 0,
    tolerance: Annotated[
        float,
        typer.Option(metavar="X", help="The share of the held-out gain that one round may lose."),
    ] = 0.05,
    device: Device = "cpu",
    as_json: AsJson = False,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Measure whether one round will do.

    It is compared with many at the same local work. Trained are some of the plan's clients, twice:
    with an exchange
    after each round, and with one at the end. Without PLAN.toml: the plan of `fedpeft run`. The
    held-out examples and those of all clients are read here.
    """
    from rich.console import Console
    from rich.progress import Progress

    from fedpeft.oneshot.diagnose import Budget, batches_of, spread, work
    from fedpeft.oneshot.diagnose import diagnose as measured
    from fedpeft.runs.execute import open_run_site
    from fedpeft.runs.folder import reopen

    budget, run = (
        Budget(rounds, clients, tolerance),
        plan if plan is not None and plan.is_dir() else None,
    )
    if run and settings:
        raise click.UsageError("a run is diagnosed with its own plan: no --set beside it")
    code = allowed_code(allow_code)
    own = reopen(run, code)[1] if run else resolve(plan, settings, code=code)
    site = open_run_site(spread(own), device)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("training both ways", total=batches_of(site, *work(site, budget)))
        found = measured(site, budget, lambda: progress.advance(bar), run, code)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


def _lines(found: Mapping[str, Any]) -> list[str]:
    smooth, distance, conflict, held = (
        found[key] for key in ("smoothness", "distance", "conflict", "held_out")
    )
    many, one = found["update"]["rounds"], found["update"]["one"]
    apart = distance["merged"]["whole"]
    per_round = " ".join(f"{x:.4f}" for x in held["rounds"])
    layers = sorted(many["layers"].items(), key=lambda pair: -(pair[1] or float("inf")))
    largest = [
        (f"  {name}", f"{_share(x)}, {_share(one['layers'].get(name))}")
        for name, x in layers[:LAYERS]
    ]
    rows = [
        (
            "same work",
            f"{say_count(found['rounds'], 'rounds')} or one, "
            f"{say_count(found['clients'], 'clients')}, "
            f"{found['steps']:.4g} steps each",
        ),
        (f"held-out {held['metric']}", f"{per_round}, one round {held['one']:.4f}"),
        ("epochs to the target", _epochs(held["epochs_to_target"])),
        (
            "relative update τ",
            f"{many['whole']:.3g} in rounds, {one['whole']:.3g} in one; by layer, the largest:",
        ),
        *largest,
        (
            "smoothness L",
            f"median {smooth['median']:.3g}, quartiles {smooth['q25']:.3g} to {smooth['q75']:.3g}, "
            f"largest {smooth['max']:.3g} of {smooth['secants']}, in {smooth['of']}",
        ),
        (
            "sign conflict",
            f"{conflict['first_round']:.3f} after one round, "
            f"{conflict['one_round']:.3f} after all, coins {conflict['coins']:.3f}",
        ),
        (
            "apart, measured",
            f"{_number(distance['trained'])} (what is trained), {apart:.3g} of all",
        ),
        ("  the paper's bound", _number(distance["paper_bound"])),
        ("  corrected bound", _number(distance["corrected_bound"])),
    ]
    if run := found.get("run"):
        rounds, whole = say_count(run["rounds"], "rounds"), run["update"]["whole"]
        words = f"{rounds}, τ {whole:.3g}, {run['to_one_round']:.3g} from one round's end"
        rows.append(("the run itself", words))
    width = max(len(name) for name, _ in rows)
    return [*(f"{name:<{width}}  {value}" for name, value in rows), "", found["words"]]


def _epochs(count: float | None) -> str:
    return "never" if count is None else f"{count:g} of each client"


def _share(x: float | None) -> str:
    return "from zero" if x is None else f"{x:.3g}"


def _number(x: float | None) -> str:
    return "not known" if x is None else f"{x:.4g}"
