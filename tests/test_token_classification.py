"""A tag for each word: which tokens count, and how entities are counted."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import losses_of
from text_runs import Exported, check_processes, check_stacked, run_of, save_bert, write_rows
from torch import nn

from fedpeft import DataError, PlanError, evaluate, open_site, read_plan
from fedpeft.core.outputs import LOGITS
from fedpeft.core.types import Table
from fedpeft.tasks.tagging import find_entities, has_entities
from fedpeft.tasks.token_classification import TokenClassification

LABELS = ("O", "B-PER", "I-PER", "B-LOC")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("good", "badly", "film", "very", "a")
    rows = (
        {
            "tokens": [words[(k + j) % 5] for j in range(2 + k % 4)],
            "ner_tags": [(k + j) % 4 for j in range(2 + k % 4)],
        }
        for k in range(30)
    )
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


def task_of(bert: Path, **other: Any) -> TokenClassification:
    return TokenClassification(str(bert), **{"max_length": 12, "labels": LABELS, **other})


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("O B-PER I-PER O", {("PER", 1, 2)}),
        ("B-PER B-PER I-LOC", {("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 2)}),
        ("I-PER I-PER O I-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("S-PER I-PER B-LOC E-LOC", {("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 3)}),
        ("E-LOC E-LOC", {("LOC", 0, 0), ("LOC", 1, 1)}),
        ("O O", set()),
        ("", set()),
        ("PER PER O LOC-X", {("PER", 0, 1), ("LOC-X", 3, 3)}),
    ],
)  # fmt: skip
def test_entities_are_those_of_the_shared_task(tags: str, entities: set[Any]) -> None:
    assert find_entities(tags.split()) == entities


def test_parts_of_speech_are_no_entities() -> None:
    assert has_entities(LABELS) and not has_entities(("NOUN", "VERB", "O", "X-Y"))


def test_a_word_is_told_by_its_first_token(bert: Path) -> None:
    """ "goodly" is two tokens; what stands around the words does not count."""
    columns = {
        "tokens": [["a", "goodly", "film"], "bad", ["very"] * 20],
        "ner_tags": [["B-PER", "I-PER", "O"], ["B-LOC"], [0] * 20],
    }
    rows = task_of(bert, max_length=8).prepare(Table(columns))
    assert rows["input_ids"].tolist() == [
        [2, 10, 5, 9, 7, 3, 0, 0],
        [2, 6, 3, 0, 0, 0, 0, 0],
        [2, 8, 8, 8, 8, 8, 8, 3],
    ]
    assert rows["labels"].tolist() == [
        [-100, 1, 2, -100, 0, -100, -100, -100],
        [-100, 3, -100, -100, -100, -100, -100, -100],
        [-100, 0, 0, 0, 0, 0, 0, -100],
    ]


def test_words_that_do_not_count_are_told(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = {"tokens": [["very"] * 20, ["a", "\u200d"]], "ner_tags": [[0] * 20, [1, 1]]}
    with caplog.at_level(logging.WARNING, "fedpeft"):
        task_of(bert, max_length=8).prepare(Table(columns))
    assert "15 of 22 words do not count" in caplog.text


def test_a_text_is_the_mean_of_its_words_and_padding_changes_nothing(bert: Path) -> None:
    task = task_of(bert)
    columns = {"tokens": [["a", "goodly"], ["bad"], []], "ner_tags": [[1, 2], [3], []]}
    rows, model = task.prepare(Table(columns)), task.build([]).eval()
    batch = task.batch(rows, None)
    model.requires_grad_(False)
    seen = {name: batch[name] for name in ("input_ids", "attention_mask")}
    chances = model(**seen).logits.log_softmax(-1)
    wanted = [-float(chances[0, 1, 1] + chances[0, 2, 2]) / 2, -float(chances[1, 1, 3]), 0.0]
    together = losses_of(task, model, batch)
    assert together.tolist() == pytest.approx(wanted, rel=1e-5)
    alone = [
        losses_of(task, model, task.batch({n: x[k : k + 1] for n, x in rows.items()}, None))
        for k in range(3)
    ]
    assert torch.allclose(torch.cat(alone), together, atol=1e-6)
    masked = evaluate(task, model, {}, [{**batch, "mask": torch.tensor([1.0, 0, 1])}])
    assert masked["loss"].value == pytest.approx(wanted[0], rel=1e-5)
    assert masked["loss"].weight == 2


class Says(nn.Module):
    """A model that says given tags."""

    def __init__(self, tags: list[list[int]]) -> None:
        super().__init__()
        self.logits = torch.nn.functional.one_hot(torch.tensor(tags), 4).float()

    def forward(self, **_: Any) -> Any:
        return self


def test_entities_count_over_all_texts(bert: Path) -> None:
    """Three true entities; told are one of them, and one with a word too many."""
    task = task_of(bert)
    columns = {
        "tokens": [["a", "good", "film"], ["bad", "a"]],
        "ner_tags": [["B-PER", "I-PER", "O"], ["B-LOC", "B-PER"]],
    }
    batch = task.batch(task.prepare(Table(columns)), None)
    model = Says([[3, 1, 2, 2, 0], [3, 3, 0, 0, 0]])  # what stands at no word is not looked at
    found = evaluate(task, model, {}, [{**batch, "mask": torch.ones(2)}])
    assert found["accuracy"].value == pytest.approx(3 / 5)
    assert found["entity_precision"].value == pytest.approx(1 / 2)
    assert found["entity_recall"].value == pytest.approx(1 / 3)
    assert found["entity_f1"].value == pytest.approx(2 / 5)
    assert "entity_f1" not in task_of(bert, labels=("N", "V", "A", "D")).metrics(
        task.forward(model, batch), batch
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"tokens": [["a"], ["a", "good"]], "ner_tags": [[0], [0]]},
            "1 of 2 examples have not as many 'tokens' as 'ner_tags', first example 1: 2 and 1",
        ),
        ({"tokens": [["a"]], "ner_tags": [["B-ORG"]]}, "example 0: no label called 'B-ORG'"),
        ({"tokens": [["a"]], "ner_tags": [[4]]}, "no label called '4'.* Numbers go from 0 to 3"),
        ({"tokens": [["a"]], "ner_tags": [[-1]]}, "no label called '-1'"),
        ({"tokens": [["a"], None], "ner_tags": [[0], [0]]}, "1 of 2 examples have no 'tokens'"),
        ({"text": ["a"]}, "token classification learns from a column 'tokens'; the data have"),
    ],
)
def test_data_that_do_not_fit(bert: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(bert).prepare(Table(columns))


def test_keys_that_do_not_fit() -> None:
    for labels in ([], ["O"], ["O", "O"]):
        with pytest.raises(PlanError, match="labels are the names of two tags or more"):
            read_plan({"task": {"name": "token-classification", "labels": labels}})


def test_a_tokenizer_of_blanks_reads_words_in_a_row(tmp_path: Path) -> None:
    """RoBERTa's, whose word in the middle of a text is another token than at its beginning."""
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "\u0120a", "\u0120b"]
    vocab = {token: k for k, token in enumerate(vocabulary)} | {"\u0120": 9}
    RobertaTokenizerFast(vocab=vocab, merges=[("\u0120", "a"), ("\u0120", "b")]).save_pretrained(
        tmp_path
    )
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaModel(
        RobertaConfig(vocab_size=10, intermediate_size=16, max_position_embeddings=20, **size)
    ).save_pretrained(tmp_path)
    task = task_of(tmp_path)
    rows = task.prepare(Table({"tokens": [["a", "ab", "b"]], "ner_tags": [[0, 1, 2]]}))
    assert rows["input_ids"].tolist() == [[0, 7, 7, 6, 8, 2]]
    assert rows["labels"].tolist() == [[-100, 0, 1, -100, 2, -100]]


def test_clients_in_a_stack_train_it(bert: Path, file: Path) -> None:
    check_stacked(run_of(plan_task(bert), file))


@pytest.mark.slow
def test_other_processes_train_it(bert: Path, file: Path) -> None:
    check_processes(run_of(plan_task(bert), file))


def plan_task(bert: Path) -> dict[str, Any]:
    name = "token-classification"
    return {"name": name, "model": str(bert), "max_length": 12, "labels": list(LABELS)}


def test_distillation_compares_the_words(bert: Path, file: Path) -> None:
    local = {"lr": 0.01, "terms": ["distillation"], "batch_size": 4}
    check_stacked(run_of(plan_task(bert), file, local=local))


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_is_loaded_by_its_card_and_says_the_same(
    bert: Path, file: Path, tmp_path: Path, merge: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Exported(run_of(plan_task(bert), file, rounds=1), tmp_path, merge)
    batch, outputs = run.forward()
    model = run.names["model"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, outputs[LOGITS], atol=1e-5, rtol=0)
    assert tuple(model.config.id2label[k] for k in range(4)) == LABELS
    words = ["a", "goodly", "film"]
    exec(run.usage, {"model": model, "tokenizer": run.names["tokenizer"], "words": words})
    printed = capsys.readouterr().out
    assert [printed.count(f"'{word}'") for word in words] == [1, 1, 1]
    assert "| entity_f1 on held-out words |" in run.card
    assert json.loads((run.folder / "tokenizer_config.json").read_text())["model_max_length"] == 12


def test_classes_of_the_data_divide_and_do_not_reach_the_model(bert: Path, tmp_path: Path) -> None:
    rows = (
        {"tokens": "a good film", "ner_tags": "O B-PER O", "who": "ab"[k % 2]} for k in range(20)
    )
    file = write_rows(tmp_path / "x.jsonl", rows)
    data = {"name": "table", "path": str(file), "label": "who"}
    plan = read_plan(run_of(plan_task(bert), file, data=data, partition={"name": "dirichlet",
                            "clients": 2, "min_per_client": 2}))  # fmt: skip
    site = open_site(plan)
    assert site.classes == ("a", "b")
    assert site.model.config.id2label[3] == "B-LOC"  # type: ignore[union-attr, index]
