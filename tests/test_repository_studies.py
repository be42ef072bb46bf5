"""The studies that the repository holds: they expand, and every cell's plan is one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedpeft import open_site, read_plan
from fedpeft.compute.trainable import read
from fedpeft.core.tensors import equal
from fedpeft.evaluation.measure import full_payloads
from fedpeft.plan.plan import SCHEMA
from fedpeft.registry import describe, settings_of
from fedpeft.runs.division import division_of
from fedpeft.storage.files import load_tensors
from fedpeft.studies.study import Cell, Study, read_study
from tools.results.rows import Result, read_results

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "docs" / "results").glob("*.csv"))
MOST_ROWS = 400
"""Of a study's file, so that people can read it and a repository can hold it."""
STUDIES = sorted((ROOT / "studies").glob("*.toml"))
FEW_ROWS = (
    "air-personal-small",
    "fed-trend-small",
    "prototypes-small",
    "ten-thousandth-minilm",
    "ten-thousandth-vit-tiny",
)
"""Studies that lack a row for one head alone, as the series, for all data in one place, as the
prototypes, or both: what a channel or a codec changes is asked of one method, whose rows stand in
other studies."""
AXES = (
    "capability",
    "communication",
    "heterogeneity",
    "local-epochs",
    "pretraining",
    "privacy",
    "scarcity",
)


def test_every_axis_is_there_at_both_scales() -> None:
    names = {file.stem for file in STUDIES}
    assert {f"{axis}-{scale}" for axis in AXES for scale in ("small", "paper")} <= names


@pytest.mark.slow
@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_expands_to_plans(file: Path) -> None:
    study = read_study(file)
    assert study.name == file.stem
    for cell in study.cells:
        assert read_plan(cell.plan.toml()).fingerprint == cell.plan.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [f for f in STUDIES if not f.stem.startswith("methods") and f.stem not in FEW_ROWS],
    ids=lambda file: file.stem,
)
def test_every_study_has_three_seeds_and_the_honest_rows(file: Path) -> None:
    study = read_study(file)
    assert {cell.seed for cell in study.cells} == {1, 42, 3407}
    labels = {label for cell in study.cells for label in cell.labels.values()}
    assert any("centralised" in label for label in labels)
    # These models have their heads from the beginning.
    complete = study.name in ("one-shot-dolly", "one-shot-emoji")
    assert complete or any(label.startswith("head") for label in labels)
    assert any("local only" in label for label in labels)
    for cell in study.cells:
        check_clients_of_baseline(cell)


def check_clients_of_baseline(cell: Cell) -> None:
    """Centralised training has one client; alone at home, every client trains."""
    labels = tuple(cell.labels.values())
    if any("centralised" in label for label in labels):
        assert cell.plan.partition.clients == cell.plan.cohort == 1  # type: ignore[attr-defined]
    if any("local only" in label for label in labels):
        # 0: as many as the data have.
        every = getattr(cell.plan.partition, "clients", 0) or cell.plan.cohort
        assert cell.plan.cohort == every, "a client that never trains is no baseline"


@pytest.mark.slow
@pytest.mark.parametrize("axis", AXES)
def test_the_digits_can_be_divided_as_the_small_studies_say(axis: str) -> None:
    study = read_study(ROOT / "studies" / f"{axis}-small.toml")
    plans = {(cell.plan.data, cell.plan.partition, cell.seed): cell.plan for cell in study.cells}
    for plan in plans.values():
        report = division_of(plan)
        partition: Any = getattr(plan.partition, "of", plan.partition)
        assert report["clients"] == partition.clients


def test_the_tables_of_the_pages_are_those_of_the_results() -> None:
    command = [sys.executable, "-m", "tools.claims", "--check"]
    drawn = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert drawn.returncode == 0, drawn.stderr


def test_there_are_results() -> None:
    assert sum(len(read_results(file)) for file in RESULTS) > 900


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_every_result_is_of_a_cell_of_its_study(file: Path) -> None:
    """A cell is known by its labels and seed; settings are compared where the keys mean the same
    today."""
    cells = {
        (tuple(sorted(cell.labels.items())), cell.seed): cell
        for cell in read_study(ROOT / "studies" / f"{file.stem}.toml").cells
    }
    results = read_results(file)
    assert 0 < len(results) <= MOST_ROWS
    assert len({one.identity for one in results}) == len(results)
    for one in results:
        study, labels, seed, schema = one.identity
        assert study == file.stem and 1 <= schema <= SCHEMA
        assert_of_cell(one, cells[labels, seed])


def assert_of_cell(one: Result, cell: Cell) -> None:
    """The plan's numbers that a result tells are those of the study."""
    assert one.cell == cell.name
    told = {key: one.values[key] for key in ("method", "rounds", "cohort")}
    planned = {"rounds": str(cell.plan.rounds), "cohort": str(cell.plan.cohort)}
    assert told == {"method": describe("method", cell.plan.method)["name"], **planned}, one.cell
    if one.schema == SCHEMA:
        assert one.settings == "; ".join(cell.settings), one.cell


@pytest.mark.parametrize("name", ["communication", "local-epochs"])
def test_centralised_rows_see_the_data_as_often(name: str) -> None:
    """Within an epoch of the passes over the data that the federated rows make."""
    for scale in ("small", "paper"):
        study = read_study(ROOT / "studies" / f"{name}-{scale}.toml")
        passes = {cell.name: passes_of(study, cell.name) for cell in study.cells}
        central = {count for cell, count in passes.items() if cell.startswith("centralised")}
        federated = max(
            count for cell, count in passes.items() if "m-64" not in cell and "m-32" not in cell
        )
        assert len(central) == 1 and abs(central.pop() - federated) < 1


RATES = {"full": 1e-3, "head": 5e-3, "bias": 1e-2, "adapter": 5e-3, "prompt": 1e-2, "scratch": 1e-2}
"""The learning rates of the paper's scripts for CIFAR-100."""
NOISY = {"full": 5e-4, "head": 1e-3, "bias": 5e-3, "adapter": 1e-3, "prompt": 5e-3}
"""Those of its scripts for privacy."""
VARIED = {  # what a study varies
    "capability": ("clients", "cohort", "alpha"),
    "communication": ("cohort",),
    "heterogeneity": ("alpha",),
    "local-epochs": ("rounds", "epochs"),
}


@pytest.mark.parametrize("axis", AXES)
def test_the_paper_scale_has_the_papers_settings(axis: str) -> None:
    """Of its code: N = 64, M = 8, 50 rounds of 10 epochs, batch 64, SGD, 224 pixels, Dirichlet
    0.1."""
    usual = {"clients": 64, "cohort": 8, "rounds": 50, "epochs": 10, "alpha": 0.1}
    seen = set()
    for cell in read_study(ROOT / "studies" / f"{axis}-paper.toml").cells:
        plan, label = cell.plan, " ".join(cell.labels.values())
        task: Any = plan.task
        assert (
            task.size == 224
            and task.mean == (0.5071, 0.4865, 0.4409)
            and task.std == (0.2673, 0.2564, 0.2762)
        )
        local = settings_of(plan)["local"]
        partition: Any = getattr(plan.partition, "of", plan.partition)
        assert local["batch_size"] == 64
        optimizer = {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
        private = local["name"] == "dp_sgd"
        if local["name"] == "descent":
            assert {key: local["optimizer"][key] for key in optimizer} == optimizer
        method = settings_of(plan)["method"]["name"]
        rates = NOISY if local["name"] != "descent" else RATES
        assert local["lr"] == (
            5e-2 if "MobileNetV2" in label else rates[method if method in rates else "bias"]
        )
        if private:
            assert (plan.privacy.target_epsilon, plan.privacy.delta, local["clip_norm"]) == (
                5,
                1e-3,
                1,
            )
        if "centralised" in label or "local only" in label:  # see decision 0013
            continue
        told = {"clients": partition.clients, "cohort": plan.cohort, "rounds": plan.rounds}
        told |= {
            key: x
            for key, x in (
                ("epochs", local.get("epochs")),
                ("alpha", getattr(partition, "alpha", None)),
            )
            if x
        }
        fixed = {key: x for key, x in told.items() if key not in VARIED.get(axis, ())}
        assert fixed == {key: usual[key] for key in fixed}, cell.name
        seen.add(tuple(told.get(key) for key in VARIED.get(axis, ())))
    assert seen == VARIATIONS.get(axis, {()})


VARIATIONS: dict[str, set[tuple[float | None, ...]]] = {
    "capability": {
        (n, m, a) for n, m in ((16, 16), (16, 2), (64, 64), (64, 8)) for a in (None, 0.1)
    },
    "communication": {(8,), (4,), (2,), (1,), (64,)},
    "heterogeneity": {(0.05,), (0.1,), (0.3,), (1.0,), (10.0,)},
    "local-epochs": {(500, 1), (100, 5), (50, 10), (25, 20), (10, 50), (1, 500)},
}


def passes_of(study: Study, name: str) -> float:
    (plan,) = (cell.plan for cell in study.cells if cell.name == name)
    clients: int = plan.partition.clients  # type: ignore[attr-defined]
    return plan.rounds * plan.local.passes * plan.cohort / clients


def test_both_pre_trained_networks_are_the_same_one() -> None:
    """Weights of the masked autoencoder fit the network that was pre-trained with labels, and are
    others."""
    ours, theirs = (
        ROOT / "studies" / "weights" / "micro-vit-mae",
        ROOT / "src" / "fedpeft" / "assets" / "micro-vit",
    )
    (a, _), (b, _) = (load_tensors(folder / "model.safetensors") for folder in (ours, theirs))
    assert {name: x.shape for name, x in a.items()} == {name: x.shape for name, x in b.items()}
    matrices = [name for name in a if name.endswith("dense.weight")]
    assert matrices and not any(equal({"": a[name]}, {"": b[name]}) for name in matrices)
    assert (ours / "model.safetensors").stat().st_size < 3_000_000
    assert (ours / "preprocessor_config.json").read_text() == (
        theirs / "preprocessor_config.json"
    ).read_text()


def test_the_small_convolutional_network_carries_its_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    study = read_study(ROOT / "studies" / "communication-small.toml")
    (plan,) = (cell.plan for cell in study.cells if cell.name == "small-resnet-m-8-seed1")
    site = open_site(plan)
    names = plan.method.names(site.model)
    assert any(name.endswith("running_var") for name in names)
    assert sum(x.numel() for x in read(site.model, names).values()) < 200_000
    assert full_payloads(plan, site.classes).params == sum(
        x.numel() for x in site.params().values()
    )
