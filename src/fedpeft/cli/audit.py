"""`fedpeft attack`: what a server can tell of a client's examples."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from fedpeft.cli.options import AllowCode, AsJson, Debug, Device, RunPath, allowed

EXAMPLES = """\
  fedpeft attack runs/digits-lora-1-001
  fedpeft attack runs/digits-lora-1-001 --client c003 --messages 1 --json
"""


def attack_run(
    run: RunPath,
    client: Annotated[
        str,
        typer.Option(
            metavar="NAME", show_default=False, help="Whose; else who takes part most often."
        ),
    ] = "",
    messages: Annotated[
        int,
        typer.Option(
            metavar="N", show_default=False, help="Of the client, as many as are heard; else all."
        ),
    ] = 0,
    pictures: Annotated[
        int, typer.Option(metavar="N", help="Single examples that are looked for.")
    ] = 4,
    steps: Annotated[int, typer.Option(metavar="N", help="Of each search.")] = 120,
    device: Device = "cpu",
    as_json: AsJson = False,
    allow_code: AllowCode = None,
    debug: Debug = False,
) -> None:
    """Attack what one client sends, as the server could.

    By membership inference and gradient inversion. RUN is the folder of a run. Its rounds are
    repeated here up to the client's last message; where noise is added, it is another draw. What is
    found is compared with what could be had without any message.
    """
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from fedpeft.audits.attack import Effort, favourite
    from fedpeft.audits.attack import attack as measured
    from fedpeft.errors import RunError, unknown
    from fedpeft.oneshot.merge import is_merged
    from fedpeft.runs.execute import open_run_site
    from fedpeft.runs.folder import reopen

    effort = Effort(pictures, steps, messages)
    if is_merged(run):
        raise RunError(
            f"{run} was merged from files: its clients' examples lie with them, "
            "and there is nothing here to compare a find with. Attack a simulation of the plan: "
            "`fedpeft run` it, and name that run"
        )
    # a search needs second derivatives, down to the pictures
    _, plan = reopen(run, allowed(allow_code))
    exact = replace(plan.compute, pack=False, features=False, base_dtype="float32")
    site = open_run_site(replace(plan, compute=exact), device)
    if client and client not in site.data.clients:
        raise RunError(unknown("client", client, site.data.clients))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        asked = site.plan.rounds * min(site.plan.cohort, len(site.data.clients))
        bar = progress.add_task("listening and searching", total=asked + (pictures + 1) * steps)
        found = measured(site, client or favourite(site), effort, lambda: progress.advance(bar))
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    messages = f"{found['messages']} message{'s' if found['messages'] > 1 else ''}"
    client = f"{found['client']} with {found['examples']} examples"
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
