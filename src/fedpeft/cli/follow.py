"""A run that is done elsewhere, followed as if it were here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedpeft.errors import RunError, say_count

if TYPE_CHECKING:
    from fedpeft.cli.audience import Audience
    from fedpeft.plan.plan import Plan
    from fedpeft.runs.folder import RunFolder

NAMED = 20
"""So many of those that are waited for are named."""
NAMELESS = "say which SuperLink: --federation NAME, a name in Flower's config.toml"


def submit_run(
    plan: "Plan",
    out: Path | None,
    federation: str | None,
    start: Path | None = None,
    say: Callable[[str], object] = lambda words: None,
) -> "RunFolder":
    """A new run, submitted. Nothing is written before its plan and the server's data are known to
    be good. `say` is told at once who is waited for: the server's part says so again, and who
    came, but not before Flower has begun it."""
    from fedpeft.deploy.submit import require_flower, submit
    from fedpeft.deploy.terms import server_site
    from fedpeft.runs.beginning import keep_start
    from fedpeft.runs.folder import create, kept_if_begun, vacant

    require_flower()
    if federation is None:
        raise RunError(NAMELESS)
    if out is not None:
        vacant(out)
    site = server_site(plan)
    plan, clients = site.plan, site.data.clients
    folder = create(plan, out)
    more = f" and {len(clients) - NAMED} more" if len(clients) > NAMED else ""
    say(f"waiting for {', '.join(clients[:NAMED])}{more}")
    with kept_if_begun(folder):
        if start is not None:
            keep_start(folder, plan, start)
        submit(folder, plan, federation)
    return folder


def again(folder: "RunFolder", plan: "Plan", federation: str | None) -> None:
    """A run that was submitted and is not finished: submitted once more, if it does not go on
    already."""
    from fedpeft.deploy.submit import federation_of, require_flower, status, submit, was_killed

    require_flower()
    federation = federation or federation_of(folder)
    if federation is None:
        raise RunError(NAMELESS)
    if was_killed(folder) or status(folder) not in ("pending", "starting", "running"):
        submit(folder, replace(plan, engine="flower"), federation)


def until_done(told: "Audience", folder: "RunFolder", plan: "Plan") -> dict[str, Any]:
    """Show each round as it comes, and tell trackers of it; the summary."""
    from fedpeft.cli.progress import show_rounds
    from fedpeft.deploy.submit import follow, how_to_stop
    from fedpeft.runs.folder import read_json

    rounds = say_count(plan.rounds, "rounds")
    told.say(f"{plan.name}: {rounds}, in {folder.path}; it goes on without this terminal")
    try:
        if told.quiet:
            for _ in told.tracking.follow(folder.path, follow(folder, lambda words: None)):
                pass
        else:
            records = told.tracking.follow(folder.path, follow(folder, told.console.print))
            show_rounds(told.console, plan.rounds, records)
    except KeyboardInterrupt:
        typer.echo(
            f"no longer followed; the run goes on: `fedpeft run --resume {folder.path}` follows "
            "it, "
            f"`{how_to_stop(folder)}` ends it",
            err=True,
        )
        raise typer.Exit(130) from None
    told.tracking.close(finished=True)
    return read_json(folder.summary) or {}
