"""`fedpeft evaluate`: the metrics of a run's checkpoint."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpeft.cli import benchmarks, owners
from fedpeft.cli.options import AllowCode, AsJson, Debug, Device, RunPath, allowed_code
from fedpeft.errors import say_count

if TYPE_CHECKING:
    from fedpeft.core.interfaces import Store
    from fedpeft.core.types import State
    from fedpeft.plan.plan import Plan
    from fedpeft.rounds.site import Site
    from fedpeft.runs.folder import RunFolder

EXAMPLES = """\
  fedpeft evaluate runs/digits-lora-1-001
  fedpeft evaluate runs/digits-lora-1-001 --per-client --json
  fedpeft evaluate runs/digits-lora-1-001 --at-owners --metric auroc --metric macro_f1
  fedpeft evaluate runs/dolly-stories260k-1-001 --sample 3
  fedpeft evaluate runs/dolly-stories260k-1-001 --benchmark mmlu --shots 0
  fedpeft evaluate runs/mine --benchmark arc_challenge --shots 25 --device cuda
  fedpeft evaluate runs/emoji-diffusion-1-001 --sample 50 --clip openai/clip-vit-large-patch14
"""

SHOWN = 40
"""Clients that get a line of their own in the terminal."""

PerClient = Annotated[
    bool,
    typer.Option(
        "--per-client",
        help="Also on each client's own held-out examples, where it has some, and on those "
        "that it trained on: mean and worst tenth.",
    ),
]
AtOwners = Annotated[
    bool,
    typer.Option(
        "--at-owners",
        help="Also on each owner's own held-out examples, by the messages of a federation: counts "
        "and sums alone leave an owner.",
    ),
]
MetricNames = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="Also this metric, e.g. auroc or macro_f1; may be given again.",
    ),
]
SampleCount = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="Also what a model makes of N held-out prompts or captions, or of N windows of each "
        "client.",
    ),
]
BenchmarkName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Also by multiple choice: a task of lm-eval, e.g. mmlu, or its YAML file.",
    ),
]
Shots = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=0, show_default=False, help="Answered before each; else the task's."
    ),
]
QuestionLimit = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="The first N questions of each task; MMLU has 57 tasks."),
]
MmluFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Tables dev and test; else mmlu here or in $FEDPEFT_DATA, else from the hub.",
    ),
]
ClipName = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="A CLIP, folder or hub name, that scores what --sample N draws."
    ),
]


def evaluate_run(
    run: RunPath,
    per_client: PerClient = False,
    at_owners: AtOwners = False,
    metric: MetricNames = None,
    sample: SampleCount = 0,
    benchmark: BenchmarkName = None,
    shots: Shots = None,
    limit: QuestionLimit = None,
    mmlu: MmluFolder = None,
    clip: ClipName = "",
    device: Device = "cpu",
    as_json: AsJson = False,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Measure a run on held-out examples.

    RUN is the folder of a run; what is measured is its last checkpoint. Samples and benchmarks are
    kept there, for `fedpeft report`. A benchmark (fedpeft[lm-eval]) asks the base model, which
    nobody tuned, the same questions.
    """
    from fedpeft.deploy.measuring import measured_site
    from fedpeft.results.exhibit import draws
    from fedpeft.runs.folder import reopen
    from fedpeft.storage.client_memory import Folder

    asked = benchmarks.read_options(benchmark, shots, limit, mmlu)
    code = allowed_code(allow_code)
    folder, plan = reopen(run, code)
    state = _state(folder, plan)
    _check_options(run, plan, per_client, clip, sample)
    found: dict[str, Any] = {"round": state.round}
    if asked:  # first, as these may be refused, and what was measured would be lost
        found["benchmark"] = benchmarks.measure_benchmark(run, asked, device, code)
    if sample and draws(plan):
        found |= _pictures(folder, plan, state, sample, device, clip)
    measured = owners.with_owners(run, plan, at_owners, metric or ())
    site, store = measured_site(run, measured, device), Folder(folder.clients)
    if sample and not draws(plan):
        found |= _samples(folder, site, state, store, sample)
    found |= owners.measure_examples(folder, site, state, store, per_client, at_owners)
    typer.echo(json.dumps(found, indent=2) if as_json else _table(found))


def _state(folder: "RunFolder", plan: "Plan") -> "State":
    """What the run's checkpoint holds."""
    from fedpeft.errors import RunError
    from fedpeft.runs.checkpoint import load_checkpoint

    saved = load_checkpoint(folder.checkpoint, plan)
    if saved is None:
        raise RunError(f"{folder.path} has no checkpoint yet: no round of it is done")
    return saved.state


def _check_options(run: Path, plan: "Plan", per_client: bool, clip: str, sample: int) -> None:
    from fedpeft.deploy.measuring import elsewhere
    from fedpeft.errors import PlanError, RunError
    from fedpeft.results.exhibit import draws

    if per_client and (where := elsewhere(run, plan)):
        raise RunError(
            f"{run} {where}: its clients' examples lie with them; leave out --per-client"
        )
    if clip and not (sample and draws(plan)):
        raise PlanError(
            "--clip scores what --sample N draws with a text-to-image model that all clients share"
        )


def _pictures(
    folder: "RunFolder", plan: "Plan", state: "State", number: int, device: str, clip: str
) -> dict[str, Any]:
    from fedpeft.results.exhibit import exhibit

    drawn = exhibit(folder, plan, state, number, device, clip)
    return {"captions": [one["caption"] for one in drawn["pictures"]], "clip": drawn["clip"]}


def _samples(
    folder: "RunFolder", site: "Site", state: "State", store: "Store", number: int
) -> dict[str, Any]:
    """What the model says, and how near it is to the truth; also kept in the folder, for the
    report."""
    from fedpeft.results.held_out_curves import keep_curves, tells_curves
    from fedpeft.results.rouge import mean_rouge
    from fedpeft.results.samples import are_answers, sample_answers
    from fedpeft.runs.folder import write_json

    if tells_curves(site.plan):
        return {"windows": len(keep_curves(folder, site, state, store, number)["windows"])}
    made = sample_answers(site, state, number)
    found: dict[str, Any] = {"samples": [asdict(one) for one in made]}
    if made and are_answers(site.plan.task):
        found["rouge"] = {
            "before": mean_rouge([(one.before, one.truth) for one in made]),
            "after": mean_rouge([(one.after, one.truth) for one in made]),
        }
    write_json(folder.samples, {"round": state.round, **found})
    return found


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"after round {found['round']}",
        *(f"  {n:<11} {_show_value(x)}" for n, x in found["held_out"].items()),
    ]
    if "clients" in found:
        lines.append("on each client's own training examples")
        for name, spread in found["clients"].items():
            lines.append(
                f"  {name:<11} mean {_show_value(spread['mean'])}   worst tenth "
                f"{_show_value(spread['worst_tenth'])}"
            )
    lines += _own_held_out(found.get("own_held_out"))
    lines += owners.owner_lines(found.get("owners"))
    if "captions" in found:
        lines.append(f"pictures of {len(found['captions'])} captions are kept for `fedpeft report`")
    if scored := found.get("clip"):
        lines.append(f"CLIP score by {scored['model']}, mean over these captions")
        columns = {"held out": "truth", "before": "before", "after": "after"}
        lines += [
            f"  {name:<11} {_show_value(fmean(scored[key]))}" for name, key in columns.items()
        ]
    if "windows" in found:
        windows = say_count(found["windows"], "windows")
        lines.append(f"kept for `fedpeft report`: {windows}")
    lines += _written(found)
    if "benchmark" in found:
        lines += ["", *benchmarks.lines(found["benchmark"])]
    return "\n".join(lines)


def _written(found: dict[str, Any]) -> list[str]:
    """What a model writes of held-out prompts, after its mean scores."""
    lines: list[str] = []
    if "rouge" in found:
        lines.append(f"ROUGE, F1, mean over {len(found['samples'])} held-out answers")
        for when, values in found["rouge"].items():
            shown = "   ".join(f"{name} {_show_value(x)}" for name, x in values.items())
            lines.append(f"  {when:<11} {shown}")
    for one in found.get("samples", ()):
        lines += ["", *(f"{name:<8}{text!r}" for name, text in one.items())]
    return lines


def _own_held_out(found: dict[str, Any] | None) -> list[str]:
    """A line a metric, and one a client."""
    if found is None:
        return []
    examples = found["examples"]
    lines = [
        f"on {sum(examples.values()):,} held-out examples of their own, of {len(examples):,} "
        "clients"
    ]
    for name, spread in found["metrics"].items():
        lines.append(
            f"  {name:<11} mean {_show_value(spread['mean'])}   by examples "
            f"{_show_value(spread['weighted'])}   worst tenth {_show_value(spread['worst_tenth'])}"
        )
    width = max(map(len, examples))
    for client, count in list(examples.items())[:SHOWN]:
        values = (
            f"{name} {_show_value(one['each'][client])}" for name, one in found["metrics"].items()
        )
        lines.append(
            f"    {client:<{width}}  {'   '.join(values)}   {say_count(count, 'examples')}"
        )
    if len(examples) > SHOWN:
        lines.append(f"    and {len(examples) - SHOWN:,} more clients, which --json lists")
    return lines


def _show_value(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
