"""`fedpeft evaluate`: the metrics of a run's checkpoint."""

import json
from typing import Annotated, Any

import typer

from fedpeft.cli.options import AsJson, Debug, Device, RunPath

EXAMPLES = """\
  fedpeft evaluate runs/digits-lora-1-001
  fedpeft evaluate runs/digits-lora-1-001 --per-client --json
  fedpeft evaluate runs/dolly-stories260k-1-001 --sample 3
"""


def evaluate(
    run: RunPath,
    per_client: Annotated[
        bool, typer.Option("--per-client", help="Also on what each client trained on: mean and worst tenth.")
    ] = False,
    sample: Annotated[
        int, typer.Option(metavar="N", min=0, help="Also how a language model goes on from N held-out prompts.")
    ] = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a run on held-out examples.

    RUN is the folder of a run; what is measured is its last checkpoint. Samples are kept there, for `fedpeft report`.
    """
    from dataclasses import asdict

    from fedpeft.core.stores import Folder
    from fedpeft.errors import RunError
    from fedpeft.runs.checkpoint import load_checkpoint
    from fedpeft.runs.execute import open_run_site
    from fedpeft.runs.folder import reopen, write_json
    from fedpeft.runs.measure import held_out, over_clients
    from fedpeft.runs.record import finite_or_none
    from fedpeft.runs.samples import samples

    folder, plan = reopen(run)
    saved = load_checkpoint(folder.checkpoint, plan)
    if saved is None:
        raise RunError(f"{run} has no checkpoint yet: no round of it is done")
    site = open_run_site(plan, device)
    store = Folder(folder.clients)
    measured = finite_or_none(held_out(site, saved.state, store))
    found: dict[str, Any] = {"round": saved.state.round, "held_out": measured}
    if per_client:
        spread = over_clients(site, saved.state, store)
        found["clients"] = {name: finite_or_none(values) for name, values in spread.items()}
    if sample:
        found["samples"] = [asdict(one) for one in samples(site, saved.state, sample)]
        write_json(folder.samples, {"round": saved.state.round, "samples": found["samples"]})
    typer.echo(json.dumps(found, indent=2) if as_json else _table(found))


def _table(found: dict[str, Any]) -> str:
    lines = [f"after round {found['round']}", *(f"  {n:<12}{_shown(x)}" for n, x in found["held_out"].items())]
    if "clients" in found:
        lines.append("on each client's own training examples")
        for name, spread in found["clients"].items():
            lines.append(f"  {name:<12}mean {_shown(spread['mean'])}   worst tenth {_shown(spread['worst_tenth'])}")
    for one in found.get("samples", ()):
        lines += ["", *(f"{name:<8}{text!r}" for name, text in one.items())]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
