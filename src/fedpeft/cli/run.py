"""`fedpeft run`: a plan from its first round, or a run from its last, to the end."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedpeft.cli import follow
from fedpeft.cli.audience import Audience, Track, open_audience, report_run
from fedpeft.cli.data_report import describe_data, show_data
from fedpeft.cli.options import (
    AsJson,
    Debug,
    Device,
    Engine,
    PlanFile,
    Seed,
    Settings,
    is_debugging,
    resolve,
)

if TYPE_CHECKING:
    from fedpeft.plan.plan import Plan
    from fedpeft.rounds.site import Site
    from fedpeft.runs.folder import RunFolder

ELSEWHERE = "flower"
"""The engine whose runs are only submitted and followed here."""
EXAMPLES = """\
  fedpeft run                                          handwritten digits, in less than a minute
  fedpeft run --set method=prompt --set local.lr=0.1   the same with another method
  fedpeft run plan.toml --out runs/mine --seed 3       a plan of your own
  fedpeft run plan.toml --track mlflow:runs.mlflow     tell MLflow of each round, too
  fedpeft run zero.toml --start runs/mine              measure a run by a plan with rounds = 0
  fedpeft run --resume runs/mine                       go on after Ctrl-C, a crash or a full disk
  fedpeft run --resume runs/mine --rounds 20           more rounds for a run that is finished
"""

NewFolder = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR", help="The run's folder; else a new one in runs/."),
]
ResumedFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Go on with the run in this folder.")
]
Federation = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="With --engine flower: a SuperLink of Flower's config.toml."),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        show_default=False,
        help="How many rounds; with --resume more in all than the run has had.",
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        metavar="N", show_default=False, help="Worker processes; as many as cores if not given."
    ),
]
StartRun = Annotated[
    Path | None,
    typer.Option(
        "--start",
        metavar="RUN",
        help="Begin with what the run in this folder came to; with rounds = 0 it is measured.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No line for each round.")]


def run(
    plan: PlanFile = None,
    settings: Settings = None,
    out: NewFolder = None,
    resume: ResumedFolder = None,
    start: StartRun = None,
    engine: Engine = None,
    federation: Federation = None,
    device: Device = "cpu",
    seed: Seed = None,
    rounds: Rounds = None,
    workers: Workers = 0,
    track: Track = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a plan and leave its results in a folder.

    Without PLAN.toml: 32 clients with handwritten digits fine-tune a small vision transformer.
    """
    with open_audience(track or (), quiet, as_json) as told:
        if resume is None:
            flags = _flags(engine=engine, seed=seed, rounds=rounds)
            read = resolve(plan, [*(settings or ()), *flags])
            if read.engine == ELSEWHERE:
                _follow(told, follow.submit_run(read, out, federation, start, told.say), read)
            else:
                _run_new(told, read, out, start, device, workers)
            return
        if any(given not in (None, []) for given in (plan, settings, out, start, seed)):
            raise click.UsageError(
                "--resume goes on with the run's own plan: no PLAN, --set, --out, --start or "
                "--seed beside it"
            )
        _extend(resume, rounds)
        if _report_if_finished(told, resume):
            return
        begun, read = _read_begun(resume, engine)
        if read.engine == ELSEWHERE:
            follow.again(begun, read, federation)
            _follow(told, begun, read)
            return
        folder, site = _reopen(begun, read, device, workers)
        _finish(told, folder, site, workers)


def _run_new(
    told: Audience, plan: "Plan", out: Path | None, start: Path | None, device: str, workers: int
) -> None:
    """A run from its first round; one that is refused before that leaves no folder."""
    from fedpeft.runs.folder import kept_if_begun

    folder, site, seen = _begin(plan, out, device, workers)
    with kept_if_begun(folder):
        _keep_start(folder, site.plan, start)
        with _resumable(folder):
            show_data(told.say, seen, site)
        _finish(told, folder, site, workers)


def _follow(told: Audience, folder: "RunFolder", plan: "Plan") -> None:
    """A run that is done elsewhere, to its end."""
    report_run(told, folder, follow.until_done(told, folder, plan))


def _flags(**values: str | int | None) -> list[str]:
    """Settings of the plan that have options of their own, where these were given."""
    return [f"{key}={value}" for key, value in values.items() if value is not None]


def _begin(
    plan: "Plan", out: Path | None, device: str, workers: int
) -> "tuple[RunFolder, Site, list[str]]":
    """A new run, its site, and what was read of the data. Nothing is written before its plan and
    its data are known to be good."""
    from fedpeft.runs.execute import check_workers, open_run_site
    from fedpeft.runs.folder import create, vacant

    check_workers(plan, workers)
    if out is not None:
        vacant(out)
    seen: list[str] = []
    site = open_run_site(plan, device, describe_data(seen))
    return create(site.plan, out), site, seen


def _extend(path: Path, rounds: int | None) -> None:
    """Give a run more rounds than its plan has, where some are asked for."""
    from fedpeft.registry import OWN
    from fedpeft.runs.extend import extend

    if rounds is not None:
        extend(path, rounds, OWN)


def _keep_start(folder: "RunFolder", plan: "Plan", start: Path | None) -> None:
    """Put into a new run's folder what it begins with, if that is another run's result."""
    from fedpeft.runs.beginning import keep_start

    if start is not None:
        keep_start(folder, plan, start)


def _read_begun(path: Path, engine: str | None) -> "tuple[RunFolder, Plan]":
    """A run that was begun. The engine may be another: results do not depend on it."""
    from fedpeft.registry import OWN
    from fedpeft.runs.folder import reopen

    folder, plan = reopen(path, OWN)
    return folder, replace(plan, engine=engine or plan.engine)


def _reopen(
    folder: "RunFolder", plan: "Plan", device: str, workers: int
) -> "tuple[RunFolder, Site]":
    from fedpeft.runs.execute import check_workers, find_changes, open_run_site

    check_workers(plan, workers)
    site = open_run_site(plan, device)
    if changes := find_changes(folder, site):
        typer.echo(
            f"warning: the last bits may differ from an undisturbed run's: {'; '.join(changes)}",
            err=True,
        )
    return folder, site


def _report_if_finished(told: Audience, path: Path) -> bool:
    from fedpeft.registry import OWN
    from fedpeft.runs.folder import read_json, reopen

    folder, _ = reopen(path, OWN)
    summary = read_json(folder.summary)
    if summary is None:
        return False
    told.console.print("this run is finished: nothing is left to do")
    report_run(told, folder, summary)
    return True


def _finish(told: Audience, folder: "RunFolder", site: "Site", workers: int) -> None:
    from fedpeft.results.kept_examples import keep_examples
    from fedpeft.runs.execute import open_engine
    from fedpeft.runs.folder import lock_run
    from fedpeft.runs.summary import summarize

    with lock_run(folder), _resumable(folder):
        with closing(open_engine(folder, site, workers)) as engine:
            choice = getattr(engine, "choice", None)
            if choice is not None:
                told.say(f"engine: {choice.engine} ({choice.reason})")
            if told.quiet:
                _work(told, folder, site, engine)
            else:
                _show(told, folder, site, engine)
        summary = summarize(folder, site, choice, getattr(engine, "alone", ""))
        told.tracking.close(finished=True)
        with told.console.status("keeping examples for `fedpeft report`"):
            failed = keep_examples(folder, site)
        if failed:
            typer.echo(f"warning: {failed}", err=True)
    report_run(told, folder, summary)


def _work(told: Audience, folder: "RunFolder", site: "Site", engine: Any) -> None:
    from fedpeft.runs.execute import execute

    for _ in told.tracking.follow(folder.path, execute(folder, site, engine)):
        pass


def _show(told: Audience, folder: "RunFolder", site: "Site", engine: Any) -> None:
    """A line for each round, and below them, in a terminal, how many clients of this round have
    answered."""
    from fedpeft.cli.progress import Watched, describe_work, show_rounds
    from fedpeft.runs.execute import execute

    console, plan, clients = told.console, site.plan, len(site.data.clients)
    cohort = min(plan.cohort, clients)
    console.print(f"{plan.name}: {describe_work(plan, clients)}, in {folder.path}")
    if plan.cohort > clients:
        console.print(f"cohort = {plan.cohort} is more than there are clients: all take part")
    for note in site.notes:
        console.print(note)
    with console.status(f"0/{cohort} answered") as status:
        answered = lambda number=0: status.update(f"{number}/{cohort} answered")
        records = execute(folder, site, Watched(engine, answered))
        show_rounds(console, plan.rounds, told.tracking.follow(folder.path, records), answered)


@contextmanager
def _resumable(folder: "RunFolder") -> Iterator[None]:
    """Whatever stops a run from outside leaves its last round whole; say so, and how to go on."""
    after = f"what is done is kept; go on with `fedpeft run --resume {folder.path}`"
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {after}", err=True)
        raise typer.Exit(130) from None
    # Rich makes the latter of the former when it writes a line.
    except (BrokenPipeError, SystemExit):
        typer.echo(f"stopped: a pipe is closed at its other end: {after}", err=True)
        raise
    except OSError as error:
        if is_debugging(click.get_current_context()):
            raise
        typer.echo(
            f"error: {folder.path} cannot be written: {error.strerror or error}: {after}", err=True
        )
        raise typer.Exit(1) from None
