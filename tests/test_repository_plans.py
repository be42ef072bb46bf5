"""The plans that the repository holds, read and run."""

import json
from pathlib import Path

import pytest
import torch

from fedpeft import InProcess, federate, open_site, read_plan, start
from fedpeft.evaluation.measure import measure

PLANS = [
    Path(__file__).parents[1] / "plans" / f"{name}.toml"
    for name in ("cifar100-vit-tiny", "trec6-minilm", "clinc150-minilm", "sst2-minilm")
]
FROM_THE_HUB = PLANS[0].with_stem("cifar100-vit-base")
LANGUAGE = [PLANS[0].with_stem(f"{name}-stories260k") for name in ("dolly", "shakespeare")]
EMBEDDING = PLANS[0].with_stem("dolly-embedding")
PICTURES = PLANS[0].with_stem("emoji-diffusion")
TOWERS = PLANS[0].with_stem("emoji-towers")
BOARDS = [
    PLANS[0].with_stem(f"flowertune-{name}") for name in ("nlp", "finance", "medical", "code")
]
PREFERENCE = PLANS[0].with_stem("dolly-preference-stories260k")
TAGS = PLANS[0].with_stem("fewrel-tags-minilm")
FEW_SHOT = PLANS[0].with_stem("fewrel-few-shot-minilm")
SERIES = [
    PLANS[0].with_stem(name)
    for name in ("victoria-demand-linear", "victoria-demand-time-ffm", "airport-weather-linear")
]
MOVING = PLANS[0].with_stem("moving-digits")
SURVIVAL = [PLANS[0].with_stem(f"survival-{name}") for name in ("cox", "discrete")]
SPEECH = PLANS[0].with_stem("spoken-digits")
CELLS = [PLANS[0].with_stem(f"cells-{name}") for name in ("segmentation", "dicom")]
DIABETES = PLANS[0].with_stem("diabetes-regression")
GLUE = PLANS[0].parent / "glue"
RATES = {
    **dict.fromkeys(("cola", "mnli", "qnli", "qqp", "sst2", "stsb"), 1e-3),
    **dict.fromkeys(("mrpc", "rte"), 5e-3),
}
"""Of LoRA in FedPETuning (arXiv:2212.10025); CoLA and STS-B are not in its table."""
DIGITS = [PLANS[0].with_stem(f"digits-{name}") for name in ("dp", "client-dp", "fedsa", "clusters")]


@pytest.mark.parametrize(
    "file",
    [
        *PLANS,
        *LANGUAGE,
        EMBEDDING,
        *BOARDS,
        PREFERENCE,
        FROM_THE_HUB,
        PICTURES,
        PICTURES.with_stem("emoji-llava"),
        TOWERS,
        TAGS,
        FEW_SHOT,
        *SERIES,
        MOVING,
        *SURVIVAL,
        SPEECH,
        *CELLS,
        DIABETES,
        *DIGITS,
    ],
    ids=lambda file: file.stem,
)
def test_every_plan_of_the_repository_is_a_plan_and_reads_back(file: Path) -> None:
    plan = read_plan(file)
    assert plan.name == file.stem
    again = read_plan(plan.toml())
    assert again.fingerprint == plan.fingerprint
    assert json.dumps(str(again)) == json.dumps(str(plan))


def test_the_plans_of_glue_are_fedpetunings() -> None:
    """They need data of the hub, so that they are read and never run here."""
    plans = {file.stem: read_plan(file) for file in GLUE.glob("*.toml")}
    assert plans.keys() == RATES.keys()
    for name, plan in plans.items():
        task, data, clients = (vars(x) for x in (plan.task, plan.data, plan.partition))
        local = vars(plan.local)
        assert read_plan(plan.toml()).fingerprint == plan.fingerprint
        assert (plan.name, data["config"], clients["clients"]) == (f"glue-{name}", name, 100)
        assert (plan.rounds, plan.cohort, local["epochs"]) == (100, 10, 1)
        assert local["lr"] == RATES[name]
        assert data["test_split"].startswith("validation"), "the labels of its test split are -1"
        assert bool(task["text_pair"]) is (name not in ("cola", "sst2"))
        assert (task["problem_type"] == "regression") is (name == "stsb")


@pytest.mark.slow
@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
def test_every_plan_of_the_repository_runs_on_the_real_data(
    file: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDPEFT_DATA", str(real_data))
    plan = read_plan(file, ["rounds=1", "cohort=1", "local.epochs=1"])
    site = open_site(plan)
    ((_, ledger),) = federate(plan, InProcess(site), start(plan, site.params()))
    assert ledger.failed == {}
    assert ledger.metrics["loss"].value < 2 * torch.tensor(len(site.classes)).log()


@pytest.mark.parametrize("file", LANGUAGE, ids=lambda file: file.stem)
def test_a_language_model_learns_from_one_real_client(
    file: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDPEFT_DATA", str(real_data))
    smaller = [
        "rounds=1",
        "cohort=1",
        "data.subset=200",
        "data.test_fraction=0.01",
        "partition.min_per_client=6",
    ]
    site = open_site(read_plan(file, smaller))
    before = measure(site, site.params())
    ((state, ledger),) = federate(site.plan, InProcess(site), start(site.plan, site.params()))
    assert ledger.failed == {}
    after = measure(site, state.params)
    assert after["loss"] < before["loss"] - 0.02
    assert before["perplexity"] < 512  # no worse than a guess among the vocabulary
