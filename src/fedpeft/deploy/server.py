"""The server's part of a run on Flower: the body that every run has, over nodes that come and go.

Flower starts it beside the SuperLink. What it leaves is a run's folder like any other; if it is
killed, the run is submitted again and goes on from the last round.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.deploy.submit import end_file, here, log_for_followers
from fedpeft.deploy.terms import server_site, terms_of, token_at
from fedpeft.engines.flower.engine import Flower, server_app
from fedpeft.errors import RunError, reason_of
from fedpeft.plan.reading import read_plan
from fedpeft.registry import OWN
from fedpeft.results.kept_examples import keep_examples
from fedpeft.rounds.site import Site
from fedpeft.runs.environment import environment
from fedpeft.runs.execute import execute
from fedpeft.runs.folder import RunFolder, create, lock_run, reopen
from fedpeft.runs.summary import summarize
from fedpeft.storage.files import write_atomically

if TYPE_CHECKING:
    from flwr.serverapp import Grid

PATIENCE = 3600.0
"""Seconds that a round waits where the plan does not say."""


def serve(grid: "Grid", settings: Mapping[str, Any]) -> None:
    """Run the rounds that are left of the run in the folder `run`, or of a new one of the plan
    `plan`.

    Raises:
      FedpeftError: what is wrong with the plan, the data or the folder; in the folder's file
        `ended` too.
    """
    try:
        folder, site = _open_run(settings)
    except Exception as error:
        _leave_word(str(settings.get("run") or ""), error)
        raise
    with lock_run(folder):
        end_file(folder).unlink(missing_ok=True)
        here(folder)
        try:
            _run(folder, site, grid)
        except Exception as error:
            with suppress(OSError):  # a full disk, which the follower sees by itself
                write_atomically(end_file(folder), reason_of(error).encode())
            raise


def _leave_word(path: str, error: Exception) -> None:
    """Say to followers why a run's server part does not begin, in the run's folder if it is there.

    Nothing is said in the folder of a run that another process goes on with.
    """
    folder = RunFolder(Path(path))
    if not path or not end_file(folder).parent.is_dir():
        return
    with suppress(OSError, RunError), lock_run(folder):
        write_atomically(end_file(folder), reason_of(error).encode())


def _open_run(settings: Mapping[str, Any]) -> tuple[RunFolder, Site]:
    path = str(settings.get("run") or "")
    if path and not Path(path).is_absolute():
        raise RunError(
            f"run = {path!r}: the server's part is started elsewhere, give it the whole path"
        )
    if path and (Path(path) / "plan.toml").exists():
        # who may submit a run to this SuperLink sends Python files with it, which Flower runs: the
        # plan is no more of a program than these
        folder, plan = reopen(Path(path), OWN)
        return folder, server_site(plan, say)
    site = server_site(replace(read_plan(str(settings["plan"])), engine="flower"), say)
    return create(site.plan, Path(path) if path else None), site


def _run(folder: RunFolder, site: Site, grid: "Grid") -> None:
    plan = site.plan
    terms = {
        "token": token_at(folder),
        "environment": environment(plan, site.device),
        **terms_of(site),
    }
    said = partial(say_to_followers, folder)
    engine = Flower(grid, site.data.clients, terms, plan.nodes.deadline or PATIENCE, said)
    said(f"{plan.name} in {folder.path.resolve()}: waiting for {', '.join(site.data.clients)}")
    engine.gather()
    for record in execute(folder, site, engine):
        say(
            f"round {record.round}/{plan.rounds}: {len(record.failed)} of {len(record.clients)} "
            "not counted"
        )
    summarize(folder, site)
    if failed := keep_examples(folder, site):
        say(failed)


def say_to_followers(folder: RunFolder, words: str) -> None:
    """A line for Flower's log, and for those who follow the run."""
    say(words)
    with suppress(OSError):  # a full disk
        log_for_followers(folder, words)


def say(words: str) -> None:
    """A line for Flower's log, at once."""
    print(words, flush=True)  # noqa: T201


app = server_app(serve)
