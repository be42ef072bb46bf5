"""The best round of a run is kept, and a run that gets no better ends."""

from pathlib import Path
from typing import Any

import pytest
import torch
from running import fedpeft

from fedpeft.core.tensors import equal
from fedpeft.core.types import State
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import PlanError
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.results.result import read_result
from fedpeft.rounds.site import Site, open_site
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.execute import execute
from fedpeft.runs.folder import RunFolder, create, read_rounds
from fedpeft.runs.selection import Best
from fedpeft.runs.summary import summarize
from fedpeft.storage.client_memory import Folder

PLAN = """
name = "select"
task = "parts:ClassedPoints"
data = "parts:Blobs"
method = "full"
rounds = 6
cohort = 3
local = {batch_size = 8, lr = 0.3}
partition = {name = "dirichlet", clients = 3, alpha = 1.0, held_out = 0.3}
"""


def lines(values: list[float | None], metric: str = "auroc") -> list[dict[str, Any]]:
    return [{"round": k, "held_out": {metric: x}} for k, x in enumerate(values, 1)]


def best_of(values: list[float | None], metric: str = "auroc", patience: int = 0) -> Best:
    plan = read_plan({"select": metric, "patience": patience})
    return Best.of(plan, lines(values, metric))


def test_of_equals_the_first_is_the_best_and_of_losses_the_least() -> None:
    found = best_of([0.5, 0.8, 0.8, 0.7])
    assert (found.round, found.value, found.waited) == (2, 0.8, 2)
    assert best_of([0.5, 0.8, 0.3], "loss").round == 3
    assert best_of([None, 0.1, None]).round == 2, "what is no number is never the best"
    assert not best_of([0.9] * 9).exhausted
    assert best_of([0.9, 0.8, 0.9], patience=2).exhausted
    assert not best_of([0.9, 0.8, 0.95], patience=2).exhausted


def test_rounds_that_are_not_evaluated_do_not_count() -> None:
    told = [*lines([0.9]), {"round": 2, "held_out": None}, {"round": 3, "held_out": {"auroc": 0.1}}]
    plan = read_plan({"select": "auroc", "patience": 2})
    assert Best.of(plan, told).waited == 1


def test_what_only_owners_measure_is_selected_by_too() -> None:
    owners = {"owners": {"metrics": {"auroc": {"pooled": 0.7}}}}
    told = [{"round": 1, "held_out": {"accuracy": 0.1}, "reports": owners}]
    assert Best.of(read_plan({"select": "auroc"}), told).value == 0.7


def test_a_metric_that_is_not_measured_is_an_error_that_names_the_others() -> None:
    with pytest.raises(PlanError, match="measured are auroc: choose one of them"):
        Best.of(read_plan({"select": "macro_f1"}), lines([0.5]))
    with pytest.raises(PlanError, match="select says by which metric"):
        read_plan({"patience": 3})


def opened(path: Path, **changes: Any) -> tuple[Plan, Site, RunFolder]:
    pairs = [f"{key}={value}" for key, value in changes.items()]
    plan = read_plan(PLAN, pairs)
    return plan, open_site(plan), create(plan, path)


def test_the_best_rounds_parameters_are_kept_and_the_run_ends(tmp_path: Path) -> None:
    """With a learning rate that never changes anything the first round is the best."""
    plan, site, folder = opened(
        tmp_path / "run", select="accuracy", patience=2, **{"local.lr": 1e-9}
    )
    engine = InProcess(site, Folder(folder.clients))
    rounds = [record.round for record in execute(folder, site, engine)]
    assert rounds == [1, 2, 3]
    best, last = (load_checkpoint(path, plan) for path in (folder.best, folder.checkpoint))
    assert best is not None and last is not None
    assert (best.state.round, last.state.round) == (1, 3)
    summary = summarize(folder, site)
    assert summary["selected"]["round"] == 1 and "ends early" in summary["ended_early"]
    assert [record.round for record in execute(folder, site, engine)] == [], "a resume ends at once"


def test_a_run_that_gets_better_goes_on_and_keeps_the_last_best(tmp_path: Path) -> None:
    plan, site, folder = opened(tmp_path / "run", select="loss", patience=1)
    for record in execute(folder, site, InProcess(site, Folder(folder.clients))):
        kept = load_checkpoint(folder.best, plan)
        assert kept is not None and kept.state.round == Best.of(plan, read_rounds(folder)).round
        assert record.held_out is not None
    assert summarize(folder, site)["ended_early"] is None


def test_a_kill_before_the_copy_costs_nothing(tmp_path: Path) -> None:
    plan, site, folder = opened(tmp_path / "run", select="loss", rounds=2)
    engine = InProcess(site, Folder(folder.clients))
    first = next(execute(folder, site, engine))
    assert first.round == 1
    folder.best.unlink()
    next(execute(folder, site, engine))
    folder.best.unlink()
    assert list(execute(folder, site, engine)) == []
    best, last = (load_checkpoint(path, plan) for path in (folder.best, folder.checkpoint))
    assert best is not None and last is not None and equal(best.state.flat, last.state.flat)


def test_an_export_of_the_best_round_reads_its_checkpoint(tmp_path: Path) -> None:
    classes = [f"{k}" for k in range(10)]
    plan = read_plan({"method": "head", "select": "accuracy", "classes": classes})
    folder = create(plan, tmp_path / "run")
    for path, round in ((folder.best, 3), (folder.checkpoint, 5)):
        save_checkpoint(path, plan, State(round, {"x": torch.zeros(1)}), {})
    rounds = [read_result(folder.path, best=best).checkpoint.state.round for best in (True, False)]
    assert rounds == [3, 5]


def test_a_run_without_a_selection_has_no_best_round(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    run = tmp_path / "run"
    assert fedpeft("run", tmp_path / "plan.toml", "--out", run, "--quiet").exit_code == 0
    told = fedpeft("export", run, tmp_path / "out", "--best")
    assert told.exit_code == 2 and "its plan does not say by which metric" in told.output
