"""Owners are measured from the command line, and a report shows what they counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import fedpeft

from fedpeft.cli.owners import with_owners
from fedpeft.errors import PlanError, RunError
from fedpeft.plan.reading import read_plan

PLAN = """
name = "owners"
task = "parts:ClassedPoints"
data = "parts:Blobs"
method = "full"
rounds = 2
cohort = 2
local = {batch_size = 8, lr = 0.1}
partition = {name = "dirichlet", clients = 3, alpha = 10.0, held_out = 0.3}
"""
ASKING = 'evaluate_at = ["owners"]\nmetrics = ["auroc", "macro_f1"]\n'


def ran(folder: Path, text: str) -> tuple[Path, dict[str, Any]]:
    (folder / "plan.toml").write_text(text)
    run = folder / "run"
    ended = fedpeft("run", folder / "plan.toml", "--out", run, "--quiet")
    assert ended.exit_code == 0, ended.output
    return run, json.loads((run / "summary.json").read_text())


def test_a_run_that_was_never_asked_is_measured_at_its_owners(tmp_path: Path) -> None:
    run, summary = ran(tmp_path, PLAN)
    assert "owners" not in summary
    told = fedpeft("evaluate", run, "--at-owners", "--metric", "auroc", "--per-client", "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    owners, own = found["owners"], found["own_held_out"]
    assert owners["examples"] == own["examples"]
    assert owners["metrics"]["accuracy"]["each"] == pytest.approx(
        own["metrics"]["accuracy"]["each"]
    )
    assert 0 <= owners["metrics"]["auroc"]["mean"] <= 1 and "auroc" in found["held_out"]
    kept = json.loads((run / "owners.json").read_text())
    assert kept["round"] == 2 and kept["metrics"] == owners["metrics"]
    text = fedpeft("evaluate", run, "--at-owners").stdout
    assert f"at 3 owners, on {sum(owners['examples'].values())} held-out examples" in text
    assert f"{owners['examples']['c001']} examples" in text and "bytes came up" in text


def test_a_federation_measures_without_training(tmp_path: Path) -> None:
    run, summary = ran(tmp_path, PLAN.replace("rounds = 2", "rounds = 0") + ASKING)
    assert summary["rounds"] == 0 and summary["owners"]["failed"] == {}
    assert summary["accuracy_last"] == summary["owners"]["metrics"]["accuracy"]["pooled"]
    assert summary["bytes_up"] == summary["owners"]["bytes_up"]
    [line] = (run / "rounds.jsonl").read_text().splitlines()
    assert not any("weight" in client for client in json.loads(line)["clients"].values())
    assert fedpeft("run", "--resume", run).exit_code == 0


def test_a_run_is_measured_by_a_plan_of_no_rounds_that_begins_with_it(tmp_path: Path) -> None:
    run, _ = ran(tmp_path, PLAN)
    asked = json.loads(fedpeft("evaluate", run, "--at-owners", "--json").stdout)["owners"]
    (tmp_path / "zero.toml").write_text(PLAN.replace("rounds = 2", "rounds = 0") + ASKING)
    zero = tmp_path / "zero"
    told = fedpeft("run", tmp_path / "zero.toml", "--start", run, "--out", zero, "--quiet")
    assert told.exit_code == 0, told.output
    owners = json.loads((zero / "summary.json").read_text())["owners"]
    assert owners["metrics"]["loss"] == asked["metrics"]["loss"]
    another = ("--set", "task.network=hidden", "--out", tmp_path / "other")
    told = fedpeft("run", tmp_path / "zero.toml", "--start", run, *another)
    assert told.exit_code != 0 and "Take a run of the same model" in told.output
    assert not (tmp_path / "other").exists()


def test_the_report_has_a_line_for_each_owner_and_the_confusion_matrix(tmp_path: Path) -> None:
    # hardly trained: of an AUROC of 1 there is no interval
    run, summary = ran(tmp_path, PLAN.replace("lr = 0.1", "lr = 1e-4") + ASKING)
    page = tmp_path / "page.html"
    assert fedpeft("evaluate", run, "--at-owners").exit_code == 0  # its file is read first
    told = fedpeft("report", run, "-o", page, "--csv")
    assert told.exit_code == 0, told.output
    html, accuracy = page.read_text(), summary["owners"]["metrics"]["accuracy"]
    low, high = accuracy["interval"]
    assert f"{accuracy['pooled']:.4f} ({low:.4f} to {high:.4f})" in html
    assert "At the owners" in html and "Confusion matrix" in html
    auroc = summary["owners"]["metrics"]["auroc"]
    assert auroc["intervals"], "DeLong's, of owners with two examples of each class"
    for owner, (low, high) in auroc["intervals"].items():
        assert f"{auroc['each'][owner]:.4f} ({low:.4f} to {high:.4f})" in html
    table = (tmp_path / "page-owners.csv").read_text()
    assert table.count("c001") == 1 and "accuracy, low" in table
    assert fedpeft("evaluate", run, "--at-owners").exit_code == 0
    assert fedpeft("report", run, "-o", page).exit_code == 0, (
        "it takes owners.json as it takes runs"
    )


def test_a_report_of_runs_without_owners_has_no_such_table(tmp_path: Path) -> None:
    run, _ = ran(tmp_path, PLAN)
    page = tmp_path / "page.html"
    assert fedpeft("report", run, "-o", page, "--csv").exit_code == 0
    assert "At the owners" not in page.read_text()
    assert not (tmp_path / "page-owners.csv").exists()


def test_private_plans_nodes_and_unknown_metrics_are_refused_in_one_line(tmp_path: Path) -> None:
    private = {
        "local": {"name": "dp_sgd", "noise_multiplier": 1.0},
        "weighting": "uniform",
        "privacy": {"delta": 1e-3},
    }
    with pytest.raises(PlanError, match="DpSgd promises that all is hidden"):
        with_owners(tmp_path, read_plan(private), True, [])
    nodes = read_plan({"nodes": ["a", "b"], "classes": ["x", "y"]})
    with pytest.raises(RunError, match=r"rounds = 0 and evaluate_at = \["):
        with_owners(tmp_path, nodes, True, [])
    with pytest.raises(PlanError, match="Did you mean 'auroc'"):
        with_owners(tmp_path, read_plan({}), False, ["aurok"])
    asked = with_owners(tmp_path, read_plan({"metrics": ["auroc"]}), True, ["auroc", "ece", "ece"])
    assert [type(metric).__name__ for metric in asked.metrics] == ["Auroc", "Ece"]
    assert len(asked.evaluate_at) == 2
