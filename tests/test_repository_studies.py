"""The studies that the repository holds: they expand, and every cell's plan is one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedpeft import open_site, read_plan
from fedpeft.core.stores import load_tensors
from fedpeft.core.tensors import equal
from fedpeft.core.trainable import read
from fedpeft.plan.calibration import uncalibrated
from fedpeft.registry import settings_of
from fedpeft.runs.division import division_of
from fedpeft.runs.measure import full_payloads
from fedpeft.studies.study import Study, read_study

ROOT = Path(__file__).parents[1]
CELLS = ROOT / "docs" / "results" / "cells"
STUDIES = sorted((ROOT / "studies").glob("*.toml"))
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


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_expands_to_plans(file: Path) -> None:
    study = read_study(file)
    assert study.name == file.stem
    for cell in study.cells:
        assert read_plan(cell.plan.toml()).fingerprint == cell.plan.fingerprint


@pytest.mark.parametrize(
    "file", [f for f in STUDIES if not f.stem.startswith("methods")], ids=lambda file: file.stem
)
def test_every_study_has_three_seeds_and_the_honest_rows(file: Path) -> None:
    study = read_study(file)
    assert {cell.seed for cell in study.cells} == {1, 42, 3407}
    labels = {label for cell in study.cells for label in cell.labels.values()}
    assert any(label.startswith("centralised") for label in labels)
    complete = study.name in (
        "one-shot-dolly",
        "one-shot-emoji",
    )  # these models have their heads from the beginning
    assert complete or any(label.startswith("head") for label in labels)
    assert any(label.startswith("local only") for label in labels)
    for cell in study.cells:
        if any(label.startswith("centralised") for label in cell.labels.values()):
            assert cell.plan.partition.clients == cell.plan.cohort == 1  # type: ignore[attr-defined]
        if any(label.startswith("local only") for label in cell.labels.values()):
            every = (
                getattr(cell.plan.partition, "clients", 0) or cell.plan.cohort
            )  # 0: as many as the data have
            assert cell.plan.cohort == every, "a client that never trains is no baseline"


@pytest.mark.parametrize("axis", AXES)
def test_the_digits_can_be_divided_as_the_small_studies_say(axis: str) -> None:
    study = read_study(ROOT / "studies" / f"{axis}-small.toml")
    plans = {(cell.plan.data, cell.plan.partition, cell.seed): cell.plan for cell in study.cells}
    for plan in plans.values():
        report = division_of(plan)
        partition: Any = getattr(plan.partition, "of", plan.partition)
        assert report["clients"] == partition.clients


@pytest.mark.parametrize("page", ["fedpeft", "one-shot"])
def test_the_tables_of_a_page_are_those_of_the_cells(page: str) -> None:
    drawn = subprocess.run(
        [sys.executable, ROOT / "tools" / "claims", page, "--check"], capture_output=True, text=True
    )
    assert drawn.returncode == 0, drawn.stderr


@pytest.mark.parametrize("study", sorted(path.name for path in CELLS.iterdir()))
def test_kept_cells_are_those_of_a_study(study: str) -> None:
    """Each is found by its plan, so that a change to a study, or to what plans are, does not orphan
    it."""
    wanted = {
        cell.plan.fingerprint for cell in read_study(ROOT / "studies" / f"{study}.toml").cells
    }
    for folder in (CELLS / study).iterdir():
        assert uncalibrated(read_plan(folder / "plan.toml")).fingerprint in wanted, folder.name


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
