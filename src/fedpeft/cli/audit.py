"""`fedpeft audit`: what a server can tell of a client's examples, and a lower bound of epsilon."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedpeft.cli.options import AllowCode, AsJson, Debug, Device, allowed_code
from fedpeft.core.units import say_epsilon
from fedpeft.errors import say_count

if TYPE_CHECKING:
    from fedpeft.plan.plan import Plan
    from fedpeft.registry import Code
    from fedpeft.runs.folder import RunFolder

EXAMPLES = """\
  fedpeft audit runs/digits-lora-1-001                     what a client's messages give away
  fedpeft audit runs/digits-lora-1-001 --client c003 --messages 1 --json
  fedpeft audit plans/digits-dp.toml --canaries 1000       a lower bound of epsilon
  fedpeft audit runs/digits-dp-bias-1-001 --canaries 1000  the same; the report of the run shows it
"""


AuditedPath = Annotated[Path, typer.Argument(metavar="PLAN.toml|RUN", hidden=True)]
Canaries = Annotated[
    int,
    typer.Option(metavar="N", show_default=False, help="Measure epsilon, with so many canaries."),
]
CanaryRounds = Annotated[
    int,
    typer.Option(
        metavar="N",
        show_default=False,
        help="Rounds of each canary; else those of the client that takes part most often.",
    ),
]
CanarySeed = Annotated[
    int, typer.Option(metavar="N", help="The seed of the canaries and of their noise.")
]
AttackedClient = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        show_default=False,
        help="The client to attack; else the one that takes part most often.",
    ),
]
HeardMessages = Annotated[
    int,
    typer.Option(
        metavar="N",
        show_default=False,
        help="How many messages of the client the server hears; else all.",
    ),
]
SearchedPictures = Annotated[
    int, typer.Option(metavar="N", help="How many single examples are looked for.")
]
SearchSteps = Annotated[int, typer.Option(metavar="N", help="Optimisation steps of each search.")]


def audit_plan(
    path: AuditedPath,
    canaries: Canaries = 0,
    rounds: CanaryRounds = 0,
    seed: CanarySeed = 0,
    client: AttackedClient = "",
    messages: HeardMessages = 0,
    pictures: SearchedPictures = 4,
    steps: SearchSteps = 120,
    device: Device = "cpu",
    as_json: AsJson = False,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Measure what messages give away, or what epsilon comes to.

    Without --canaries, what one client of a RUN sends is attacked as the server could, by
    membership inference and gradient inversion. The rounds are repeated here up to the client's
    last message; where noise is added, it is another draw. What is found is compared with what
    could be had without any message.

    With --canaries, the plan's own clipping and noise run on canaries: examples or clients that are
    as visible as any can be, each there or not by the toss of a coin. How many of the coins can be
    told from what comes out gives a lower bound of epsilon, beside the upper bound of the
    accountant. No example is read for it but to open the plan. The result is kept in a RUN's
    folder. A lower bound above the upper one refutes the plan's promise, and the command ends
    with 1.
    """
    from fedpeft.audits.attack import Effort

    code = allowed_code(allow_code)
    if canaries:
        found = _measure_epsilon(path, code, device, canaries, rounds, seed)
        told = describe_bounds(found)
    else:
        if rounds or seed:
            raise click.UsageError("--rounds and --seed are of canaries: give --canaries too")
        found = _attack(path, code, device, client, Effort(pictures, steps, messages))
        told = describe_leaks(found)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(told))
    if not found.get("holds", True):
        raise typer.Exit(1)  # so that a script notices a promise that is not kept


def _measure_epsilon(
    path: Path, code: "Code", device: str, canaries: int, rounds: int, seed: int
) -> dict[str, Any]:
    """The canary audit of a plan, or of a run, which keeps it."""
    from rich.console import Console
    from rich.progress import Progress

    from fedpeft.audits.canary_audit import audit_canaries
    from fedpeft.runs.execute import open_run_site
    from fedpeft.runs.folder import write_json

    folder, plan = _read(path, code)
    site = open_run_site(_exact(plan), device)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("letting canaries out", total=None)

        def tick(steps: int) -> None:
            progress.update(bar, advance=1, total=steps)

        found = audit_canaries(site, canaries, rounds, seed, tick)
    if folder:
        write_json(folder.audit, found)
    return found


def _read(path: Path, code: "Code") -> "tuple[RunFolder | None, Plan]":
    """The plan of a run's folder, with the folder, or of a file."""
    from fedpeft.plan.reading import read_plan
    from fedpeft.runs.folder import reopen

    if path.is_file():
        return None, read_plan(path, code=code)
    return reopen(path, code)


def _exact(plan: "Plan") -> "Plan":
    """The plan with the model as it is, which a search needs, and canaries have no use for more."""
    from dataclasses import replace

    exact = replace(plan.compute, pack=False, features=False, base_dtype="float32")
    return replace(plan, compute=exact)


def _attack(path: Path, code: "Code", device: str, client: str, effort: Any) -> dict[str, Any]:
    """The attacks on the messages of one client of a run."""
    from rich.console import Console
    from rich.progress import Progress

    from fedpeft.audits.attack import attack, favourite
    from fedpeft.errors import RunError, unknown
    from fedpeft.oneshot.merge import is_merged
    from fedpeft.runs.execute import open_run_site
    from fedpeft.runs.folder import reopen

    if path.is_file():
        raise RunError(
            f"{path} is a file, and messages are those of a run: name the folder of one, or give "
            "--canaries 1000 for the epsilon that a plan promises"
        )
    if is_merged(path):
        raise RunError(
            f"{path} was merged from files: its clients' examples lie with them, "
            "and there is nothing here to compare a find with. Audit a simulation of the plan: "
            "`fedpeft run` it, and name that run"
        )
    site = open_run_site(_exact(reopen(path, code)[1]), device)
    if client and client not in site.data.clients:
        raise RunError(unknown("client", client, site.data.clients))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        asked = site.plan.rounds * min(site.plan.cohort, len(site.data.clients))
        total = asked + (effort.pictures + 1) * effort.steps
        bar = progress.add_task("listening and searching", total=total)
        name = client or favourite(site)
        return attack(site, name, effort, lambda: progress.advance(bar))


def describe_bounds(found: Mapping[str, Any]) -> Iterator[str]:
    """A canary audit in words."""
    unit, rounds = found["unit"], found["rounds"]
    yield (
        f"{found['plan']}: {found['privacy']}, noise multiplier {found['noise_multiplier']:.4g}; "
        f"whether one {unit} was there stays hidden"
    )
    yield (
        f"{found['canaries']} canaries, each one {unit}, {found['included']} of them in, "
        f"{say_count(rounds, 'rounds')}"
    )
    yield (
        f"{found['guesses']} guesses, {found['right']} right; {found['guesses'] // 2} is chance, "
        f"{found['canaries'] - found['guesses']} canaries were not guessed"
    )
    yield ""
    lower, upper = found["epsilon_lower"], found["epsilon_upper"]
    claimed = "no bound: there is no noise" if upper is None else say_epsilon(upper)
    yield f"epsilon at delta = {found['delta']:g}"
    yield f"  at least   {lower:.3g}   measured, with {found['confidence']:.0%} confidence"
    yield f"  at most    {claimed}   by the accountant ({found['accountant']}), the same rounds"
    yield ""
    if not found["holds"]:
        yield (
            "The plan gives away more than it promises: a sound mechanism is measured above its "
            "bound in 5 of 100 audits at most. Repeat it with another --seed; if it stays so, do "
            "not rely on this guarantee"
        )
        return
    yield (
        "The promise was not refuted. Between the two numbers lies what this audit cannot tell: an "
        "audit never proves privacy, and more canaries may bring the lower bound up"
    )


def describe_leaks(found: Mapping[str, Any]) -> Iterator[str]:
    messages = f"{say_count(found['messages'], 'messages')}"
    client = f"{found['client']} with {say_count(found['examples'], 'examples')}"
    yield f"{found['plan']}: {found['method']}, {client}, {messages}"
    if found["privacy"] is not None:
        own = (
            "is in each"
            if found["noise_in_messages"]
            else "comes after: what one client sends has none of its own"
        )
        yield f"the noise of {found['privacy']} {own}"
    yield ""
    yield (
        "was this example among the client's? AUC against held-out ones of its class; "
        "0.5 is guessing"
    )
    for name, score in found["membership"].items():
        interval = f"95 % interval {score['low']:.3f} to {score['high']:.3f}"
        yield f"  {name:<8}{score['value']:.3f}   {interval}"
    yield ""
    inversion = found["inversion"]
    if "skipped" in inversion:
        yield f"what did it train on? not tried: {inversion['skipped']}"
        return
    yield (
        "what did it train on? PSNR in dB; the best that needs no message is a mean, "
        "or another example"
    )
    for key, name in (("one_example", "one example"), ("as_sent", "as sent")):
        one = inversion[key]
        ahead = f"{one['ahead']:.1f}"
        if one["ahead_low"] is not None:
            ahead += f", 95 % interval {one['ahead_low']:.1f} to {one['ahead_high']:.1f}"
        yield (
            f"  {name:<12}found {one['psnr_found']:.1f}, class mean {one['psnr_class_mean']:.1f}, "
            f"another {one['psnr_other']:.1f}; ahead by {ahead}; "
            f"{one['labels_right']:.0%} of the labels right"
        )
