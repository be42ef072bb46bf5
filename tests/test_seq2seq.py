"""Texts out of texts: what is read, which tokens count, and that padding changes nothing."""

import json
import logging
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import done
from marks import slow_but
from method_models import losses_of
from running import fedpeft
from text_runs import (
    Exported,
    check_processes,
    check_stacked,
    run_of,
    save_bert,
    save_sequence_model,
    write_rows,
)

from fedpeft import DataError, PlanError, evaluate, open_site, read_plan
from fedpeft.core.outputs import COUNTED, LOGITS
from fedpeft.core.types import Table
from fedpeft.results.rouge import rouge
from fedpeft.tasks.seq2seq import MEASURED, Seq2Seq

PAIRS = {"source": ["good film", "very very bad film", "a"], "target": ["good", "bad film", ""]}


@pytest.fixture(scope="module", params=slow_but(["t5"], ["t5", "bart"]))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sequence_model(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("good", "bad", "film", "very", "a")
    rows = (
        {
            "source": " ".join(words[(k + j) % 5] for j in range(2 + k % 3)),
            "target": " ".join(words[(k * j) % 5] for j in range(1, 3 + k % 2)),
        }
        for k in range(24)
    )
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


def test_a_text_is_read_and_an_answer_is_told(folder: Path) -> None:
    task = Seq2Seq(str(folder), prefix="a ", max_length=5, max_answer=3)
    rows = task.prepare(Table(PAIRS))
    assert rows["input_ids"].tolist() == [[8, 3, 5, 2, 0], [8, 6, 6, 4, 2], [8, 8, 2, 0, 0]]
    assert rows["attention_mask"].sum(1).tolist() == [4, 5, 3]
    assert rows["labels"].tolist() == [[3, 2, -100], [4, 5, 2], [2, -100, -100]]
    batch = task.batch({name: x[::2] for name, x in rows.items()}, None)
    assert batch["input_ids"].shape == (2, 4) and batch["labels"].tolist() == [[3, 2], [2, -100]]


def test_what_is_cut_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedpeft"):
        Seq2Seq(str(folder), max_length=4, max_answer=3).prepare(Table(PAIRS))
    assert "1 texts and 1 answers of 3 examples fill all tokens that they may have" in caplog.text


def test_the_loss_is_that_of_transformers_and_padding_changes_nothing(folder: Path) -> None:
    task = Seq2Seq(str(folder), max_length=8, max_answer=8)
    rows, model = task.prepare(Table(PAIRS)), task.build([]).eval().requires_grad_(False)
    batch = task.batch(rows, None)
    together = losses_of(task, model, batch)
    for k in range(3):
        alone = task.batch({name: x[k : k + 1] for name, x in rows.items()}, None)
        theirs = model(**alone).loss
        assert float(together[k]) == pytest.approx(float(theirs), rel=1e-5)
        assert float(losses_of(task, model, alone)[0]) == pytest.approx(float(theirs), rel=1e-5)


def test_held_out_answers_count_by_their_tokens(folder: Path) -> None:
    task = Seq2Seq(str(folder), max_length=8, max_answer=8)
    model = task.build([]).eval().requires_grad_(False)
    batch = task.batch(task.prepare(Table(PAIRS)), None)
    each = losses_of(task, model, batch)
    found = evaluate(task, model, {}, [{**batch, "mask": torch.tensor([1.0, 1.0, 0.0])}])
    total = float(2 * each[0] + 3 * each[1])
    assert found["loss"].weight == found["accuracy"].weight == 5
    assert found["loss"].value == pytest.approx(total / 5, rel=1e-5)
    assert found["perplexity"].value == pytest.approx(exp(total / 5), rel=1e-5)
    outputs = task.forward(model, batch)
    right = (outputs[LOGITS].argmax(-1) == batch["labels"])[:2].sum()
    assert found["accuracy"].total == float(right)
    assert outputs[COUNTED].sum(1).tolist() == [2, 3, 1]


def test_held_out_examples_are_measured_some_at_a_time(folder: Path) -> None:
    task = Seq2Seq(str(folder), max_length=8, max_answer=8)
    texts = ["a"] * MEASURED + ["very very bad film"] * 2
    batch = task.batch(task.prepare(Table({"source": texts, "target": texts})), None)
    shapes = [(tuple(x["input_ids"].shape), tuple(x["labels"].shape)) for x in task.chunks(batch)]
    assert shapes == [((MEASURED, 2), (MEASURED, 2)), ((2, 5), (2, 5))]


def test_data_and_models_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    task = Seq2Seq(str(folder), max_length=8, max_answer=8)
    with pytest.raises(DataError, match="text to text learns from a column 'target'"):
        task.prepare(Table({"source": ["a"]}))
    with pytest.raises(DataError, match="1 of 2 examples have no 'target': leave them out"):
        task.prepare(Table({"source": ["a", "a"], "target": ["a", None]}))
    with pytest.raises(PlanError, match="at least 1, got 8 and 0"):
        read_plan({"task": {"name": "seq2seq", "model": "x", "max_length": 8, "max_answer": 0}})
    bert = save_bert(tmp_path / "bert")
    with pytest.raises(PlanError, match=r"has no encoder and decoder.*causal-lm"):
        Seq2Seq(str(bert)).build([])


def plan_task(folder: Path) -> dict[str, Any]:
    return {"name": "seq2seq", "model": str(folder), "max_length": 8, "max_answer": 6}


@pytest.mark.parametrize("method", ["lora", "ia3", "full"])
def test_methods_train_it(folder: Path, file: Path, method: str) -> None:
    plan = read_plan(run_of(plan_task(folder), file, method=method))
    site = open_site(plan)
    names = plan.method.names(site.model)
    assert names and (method == "full") == any(
        "lm_head" in name or "shared" in name for name in names
    )


def test_clients_in_a_stack_train_it(folder: Path, file: Path) -> None:
    check_stacked(run_of(plan_task(folder), file))


@pytest.mark.slow
def test_other_processes_train_it(folder: Path, file: Path) -> None:
    check_processes(run_of(plan_task(folder), file))


@pytest.mark.parametrize("case", ["lora", "merged", "prefix"])
def test_an_export_is_loaded_by_its_card_and_says_the_same(
    folder: Path, file: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    method = "prefix" if case == "prefix" else "lora"
    changes = run_of(plan_task(folder), file, rounds=1, method=method)
    run = Exported(changes, tmp_path, case == "merged")
    batch, outputs = run.forward()
    model = run.names["model"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, outputs[LOGITS], atol=1e-5, rtol=0)
        exec(
            run.usage.replace("100", "3"),
            {"model": model, "tokenizer": run.names["tokenizer"], "texts": ["good film", "bad"]},
        )
    assert capsys.readouterr().out.startswith("[")
    assert "| perplexity on held-out tokens |" in run.card


def test_held_out_texts_are_answered_and_scored(folder: Path, file: Path, tmp_path: Path) -> None:
    """The answer is what `transformers` generates, without what the encoder has read."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    task = {**plan_task(folder), "max_answer": 4}
    made = done(tmp_path / "run", **run_of(task, file, rounds=1))
    told = fedpeft("evaluate", made.folder.path, "--sample", "2", "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    read, model = (of.from_pretrained(folder) for of in (AutoTokenizer, AutoModelForSeq2SeqLM))
    for one in found["samples"]:
        given = read([one["given"]], return_tensors="pt")
        want = model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=4,
            do_sample=False,
        )
        assert one["before"] == read.decode(want[0], skip_special_tokens=True)
    assert set(found["rouge"]) == {"before", "after"}
    best = [rouge(one["before"], one["truth"])["rougeL"] for one in found["samples"]]
    assert found["rouge"]["before"]["rougeL"] == pytest.approx(sum(best) / 2)
    shown = fedpeft("evaluate", made.folder.path, "--sample", "2")
    assert "ROUGE, F1, mean over 2 held-out answers" in shown.stdout
    assert fedpeft("report", made.folder.path, "-o", tmp_path / "page.html").exit_code == 0
