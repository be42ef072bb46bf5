"""The engine that chooses an engine: what it says, and that its choice gives what it should."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from running import SMALL, fedpeft

from fedpeft.client import Worker
from fedpeft.core.stores import Folder
from fedpeft.core.tensors import equal
from fedpeft.core.types import Job
from fedpeft.engines.auto import Auto, trial
from fedpeft.engines.auto import _seconds as seconds
from fedpeft.engines.cohort import Cohort
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.stacks import Stacks, Trainee
from fedpeft.loop import federate, start
from fedpeft.plan import read_plan
from fedpeft.site import Site, open_site

BATCHNORM = {"name": "parts:Points", "network": "convolution"}
SHAKEN = {"name": "parts:Points", "network": "shaken"}


def site_of(**changes: Any) -> Site:
    return open_site(read_plan({**SMALL, "engine": "auto", **changes}))


def test_a_trial_leaves_no_trace(tmp_path: Path) -> None:
    site = site_of()
    before = {name: x.clone() for name, x in site.model.state_dict().items()}
    alone, together, why = trial(site)
    assert alone > 0 and together > 0 and not why
    assert equal(site.model.state_dict(), before)


@pytest.mark.parametrize(("alone", "together"), [(0.001, 12), (0.1, 10), (0.15, 8)])
def test_the_shorter_a_step_the_more_clients_are_tried(
    alone: float, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients, turn = list[int](), Stacks.turn

    def seconds(work: Callable[[], object]) -> float:
        work()
        return alone

    def counted(stacks: Stacks, trainees: Sequence[Trainee]) -> Any:
        clients.append(len(trainees))
        return turn(stacks, trainees)

    monkeypatch.setattr("fedpeft.engines.auto._seconds", seconds)
    monkeypatch.setattr(Stacks, "turn", counted)
    site = site_of(partition={"name": "iid", "clients": 12}, cohort=12)
    assert trial(site) == (alone, alone / together, "") and clients == [together]


def test_the_first_step_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*each: float) -> tuple[float, int]:
        """What comes of steps of so many seconds, and how many were asked for."""
        clock, asked = iter([at for end in accumulate(each) for at in (end, end)]), list[int]()
        monkeypatch.setattr("fedpeft.engines.auto.perf_counter", lambda: next(clock) if asked else 0.0)
        return round(seconds(lambda: asked.append(1)), 9), len(asked)

    assert timed(0.9, 0.1, 0.3, 0.2, 0.4) == (0.2, 4)
    assert timed(5.0, 3.0, 4.0) == (3.0, 2)


def test_a_client_of_usual_size_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    site, opened, before = site_of(cohort=5), list[str](), Worker.open

    def noted(worker: Worker, job: Job) -> Any:
        opened.append(job.client)
        return before(worker, job)

    monkeypatch.setattr(Worker, "open", noted)
    trial(site)
    assert opened[0] == sorted(site.data.clients[:5], key=site.data.size)[2]


def test_a_long_step_is_not_tried_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpeft.engines.auto._seconds", lambda work: 0.3)
    monkeypatch.setattr(Stacks, "turn", None)
    assert trial(site_of()) == (0.3, 0.3, "a step of one client takes 0.3 s, which is work enough for the processor")


def test_what_cannot_be_stacked_is_not_chosen(tmp_path: Path) -> None:
    site = site_of(task=BATCHNORM)
    engine = Auto(site, Folder(tmp_path / "auto"))
    assert engine.choice.engine == "inprocess"
    assert "'norm' takes statistics over a batch" in engine.choice.reason
    rounds = [
        list(federate(site.plan, one, start(site.plan, site.params())))
        for one in (engine, InProcess(site, Folder(tmp_path / "here")))
    ]
    assert all(equal(a.params, b.params) and x == y for (a, x), (b, y) in zip(*rounds, strict=True))
    engine.close()


def test_little_work_is_not_spread_over_processes(tmp_path: Path) -> None:
    site = site_of(rounds=1)
    engine = Auto(site, Folder(tmp_path), workers=4)
    assert engine.choice.engine in ("cohort", "inprocess")
    assert "of one after another" in engine.choice.reason


def test_much_work_is_spread_over_processes(tmp_path: Path) -> None:
    site = site_of(task=BATCHNORM)  # what has no other way to be faster
    engine = Auto(replace(site, plan=replace(site.plan, rounds=10**9)), Folder(tmp_path), workers=2)
    assert engine.choice.engine == "processes" and "for 2 processes" in engine.choice.reason
    engine.close()


@pytest.mark.parametrize("task", ["parts:Points", BATCHNORM], ids=["stacks", "does not"])
def test_a_run_says_and_keeps_what_was_chosen(tmp_path: Path, task: Any) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(read_plan({**SMALL, "task": task, "rounds": 1}).toml())
    done = fedpeft("run", plan, "--engine", "auto", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["engine"] in ("cohort", "inprocess") and summary["engine_reason"]
    assert f"engine: {summary['engine']} ({summary['engine_reason']})" in done.output


@pytest.mark.parametrize(
    ("task", "why"),
    [(BATCHNORM, "takes statistics over a batch"), (SHAKEN, "random"), ("parts:Points", "")],
    ids=["before", "on the way", "not"],
)
def test_a_run_says_and_keeps_why_a_stack_was_given_up(tmp_path: Path, task: Any, why: str) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(read_plan({**SMALL, "task": task, "rounds": 1}).toml())
    done = fedpeft("run", plan, "--engine", "cohort", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["engine"], summary["engine_reason"]) == ("cohort", "named in the plan")
    assert why in summary["one_after_another"] if why else summary["one_after_another"] is None
    assert ("the engine cohort trained clients one after another" in done.output) == bool(why)


def test_what_was_chosen_says_why_it_gave_a_stack_up(tmp_path: Path) -> None:
    site = site_of(task=SHAKEN)
    engine = Auto(site, Folder(tmp_path))
    assert engine.choice.engine == "inprocess" and not engine.alone
    engine.engine = Cohort(site, Folder(tmp_path))
    assert all(not ledger.failed for _, ledger in federate(site.plan, engine, start(site.plan, site.params())))
    assert "random" in engine.alone
