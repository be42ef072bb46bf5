"""The engine that chooses an engine: what it says, and that its choice gives what it should."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from running import SMALL, fedpeft

from fedpeft.core.tensors import equal
from fedpeft.engines import auto
from fedpeft.engines.auto import Auto, Choice, Trial, choose, company, seconds, trial, typical
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder

BATCHNORM = {"name": "parts:Points", "network": "convolution"}
SHAKEN = {"name": "parts:Points", "network": "shaken"}


def site_of(**changes: Any) -> Site:
    return open_site(read_plan({**SMALL, "engine": "auto", **changes}))


def test_a_trial_leaves_no_trace(tmp_path: Path) -> None:
    site = site_of()
    before = {name: x.clone() for name, x in site.model.state_dict().items()}
    tried = trial(site, wide=2)
    assert min(tried.alone, tried.together, tried.wide) > 0 and not tried.why
    assert equal(site.model.state_dict(), before)


@pytest.mark.parametrize(("alone", "tried"), [(0.001, 100), (0.05, 20), (0.15, 8)])
def test_the_shorter_a_step_the_more_clients_are_tried(alone: float, tried: int) -> None:
    clients = [f"c{k}" for k in range(100)]
    assert company(clients, alone) == clients[:tried] and company(clients[:3], alone) == clients[:3]


def test_the_first_step_counts_for_nothing() -> None:
    def timed(*each: float) -> tuple[float, int]:
        """What comes of steps of so many seconds, and how many were asked for."""
        now, left = [0.0], list(each)

        def step() -> None:
            now[0] += left.pop(0)

        return round(seconds(step, lambda: now[0]), 9), len(each) - len(left)

    assert timed(0.9, 0.1, 0.3, 0.2, 0.4) == (0.2, 4)
    assert timed(5.0, 3.0, 4.0) == (3.0, 2)


def test_a_client_of_usual_size_is_tried_alone() -> None:
    data = site_of().data
    assert len({data.size(client) for client in data.clients}) > 1
    sizes = sorted(data.size(client) for client in data.clients[:5])
    assert data.size(typical(data, data.clients[:5])) == sizes[2]


def test_a_long_step_is_not_tried_with_others() -> None:
    tried = trial(site_of(task={"name": "parts:Points", "network": "slow"}))
    assert tried.alone == tried.together == tried.wide >= 0.25
    assert tried.why.endswith("which is work enough for the processor")


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


@pytest.mark.parametrize(
    ("tried", "engine", "width"),
    [
        (Trial(1.0, 0.5, 0.3), "cohort", 4),
        (Trial(1.0, 0.5, 0.49), "cohort", 0),  # a tie goes to the plan's threads
        (Trial(1.0, 0.95, 0.9), "inprocess", 0),
        (Trial(1.0, 0.95, 0.5), "cohort", 4),
        (Trial(1.0, 1.0, 1.0, "it has BatchNorm"), "inprocess", 0),
    ],
    ids=["wide", "tie", "none", "wide alone", "unfit"],
)
def test_a_stack_takes_more_threads_where_they_pay(
    monkeypatch: pytest.MonkeyPatch, tried: Trial, engine: str, width: int
) -> None:
    monkeypatch.setattr(auto, "trial", lambda *_: tried)
    monkeypatch.setattr(auto, "processors", lambda: 4)
    site = site_of(rounds=1, cohort=4)
    choice = choose(site, workers=4)
    assert (choice.engine, choice.threads) == (engine, width)
    assert ("with 4 threads" in choice.reason) == bool(width)


def test_a_wide_stack_trains_with_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_of(rounds=1)
    monkeypatch.setattr(auto, "choose", lambda *_: Choice("cohort", "wide", 2))
    engine = Auto(site, Folder(tmp_path))
    assert isinstance(engine.engine, Cohort) and engine.engine.site.plan.compute.threads == 2
    [(state, _)] = federate(site.plan, engine, start(site.plan, site.params()))
    [(narrow, _)] = federate(
        site.plan, InProcess(site, Folder(tmp_path / "here")), start(site.plan, site.params())
    )
    assert all(
        torch.allclose(x, narrow.params[name], atol=1e-5) for name, x in state.params.items()
    )


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
    assert all(
        not ledger.failed
        for _, ledger in federate(site.plan, engine, start(site.plan, site.params()))
    )
    assert "random" in engine.alone
