"""Language models that read left to right: what counts, and by how much."""

import json
from dataclasses import replace
from math import exp, log
from pathlib import Path

import pytest
import torch
from counting import BEGIN, END, changes
from method_models import losses_of

from fedpeft import DataError, PlanError, evaluate, open_site, read_plan
from fedpeft.core.seeds import generator
from fedpeft.core.types import Table, Weighted
from fedpeft.data.table import HubTable
from fedpeft.partitions.column import Column
from fedpeft.partitions.dirichlet import Dirichlet
from fedpeft.partitions.iid import IID
from fedpeft.partitions.lists import Lists
from fedpeft.partitions.redrawn import Redrawn
from fedpeft.partitions.shards import Shards
from fedpeft.runs.division import division_at
from fedpeft.tasks.causal_lm import MEASURED, CausalLM
from fedpeft.tasks.instructions import alpaca


def test_the_template_is_alpacas() -> None:
    assert alpaca("Add.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n"
    )
    assert alpaca("Add.", "1, 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n"
    )
    assert alpaca("Use {braces}.", "") == alpaca("Use {braces}.")


def test_a_text_has_a_beginning_and_an_end_and_all_but_the_first_token_count(llama: Path) -> None:
    task = CausalLM(str(llama), max_length=5)
    rows = task.prepare(Table({"text": ["one two", "", "one two three four five six"]}))
    assert rows["input_ids"].dtype == torch.int32
    assert rows["input_ids"].tolist() == [
        [BEGIN, 3, 4, END, END],
        [BEGIN, END, END, END, END],
        [BEGIN, 3, 4, 5, 6],
    ]
    assert rows["attention_mask"].sum(1).tolist() == [4, 2, 5]
    assert rows["labels"].tolist() == [
        [-100, 3, 4, END, -100],
        [-100, END, -100, -100, -100],
        [-100, 3, 4, 5, 6],
    ]
    batch = task.batch({name: x[:2] for name, x in rows.items()}, None)
    assert {name: tuple(x.shape) for name, x in batch.items()} == dict.fromkeys(batch, (2, 4))


def test_of_an_instruction_the_answer_may_be_all_that_counts(llama: Path) -> None:
    columns = {"instruction": ["one"], "context": [None], "response": ["two three"]}
    given = CausalLM(str(llama), "alpaca", max_length=128)
    every, answer = (
        replace(given, loss_on=what).prepare(Table(columns)) for what in ("all", "answer")
    )
    assert torch.equal(every["input_ids"], answer["input_ids"])
    assert every["input_ids"][0, -3:].tolist() == [4, 5, END]
    length = every["input_ids"].shape[1]
    assert (every["labels"] != -100).sum() == length - 1
    assert answer["labels"][0].tolist() == [-100] * (length - 3) + [4, 5, END]


def test_what_is_too_long_loses_the_beginning_of_its_prompt_and_the_end_of_its_answer(
    llama: Path,
) -> None:
    """9 tokens: <s>, and room for 8, of which the answer has 4 or what the prompt leaves."""
    task = CausalLM(str(llama), "alpaca", loss_on="answer", max_length=9)
    columns = {"instruction": ["one"] * 2, "response": ["two two two two two two", "two"]}
    rows = task.prepare(Table(columns))
    prompt = CausalLM(str(llama), "alpaca", max_length=128).prepare(
        Table({"instruction": ["one"], "response": [""]})
    )
    tail = prompt["input_ids"][0, :-1].tolist()
    assert rows["input_ids"].tolist() == [
        [BEGIN, *tail[-4:], 4, 4, 4, 4],
        [BEGIN, *tail[-6:], 4, END],
    ]
    assert (rows["labels"] != -100).sum(1).tolist() == [4, 2]


def test_an_example_is_the_mean_of_its_tokens_and_held_out_examples_count_by_theirs(
    llama: Path,
) -> None:
    task = CausalLM(str(llama), max_length=16)
    rows = task.prepare(Table({"text": ["one two three four five", "six", ""]}))
    batch = task.batch(rows, None)
    model = task.build([]).eval().requires_grad_(False)
    chances = model(
        **{name: batch[name] for name in ("input_ids", "attention_mask")}
    ).logits.log_softmax(-1)
    ids = batch["input_ids"]
    each = [
        [-float(chances[k, t - 1, ids[k, t]]) for t in range(1, n)] for k, n in enumerate((7, 3, 2))
    ]
    assert losses_of(task, model, batch).tolist() == pytest.approx(
        [sum(one) / len(one) for one in each], rel=1e-5
    )
    alone = [
        losses_of(task, model, task.batch({n: x[k : k + 1] for n, x in rows.items()}, None))
        for k in range(3)
    ]
    assert torch.allclose(torch.cat(alone), losses_of(task, model, batch), atol=1e-6)
    halves = [{n: x[some] for n, x in batch.items()} for some in (slice(0, 1), slice(1, 3))]
    measured = evaluate(
        task, model, {}, ({**half, "mask": torch.ones(len(half["labels"]))} for half in halves)
    )
    total = sum(map(sum, each))
    assert measured["loss"].weight == 6 + 2 + 1
    assert measured["loss"].value == pytest.approx(total / 9, rel=1e-5)
    assert measured["perplexity"].value == pytest.approx(exp(total / 9), rel=1e-5)
    masked = evaluate(task, model, {}, [{**batch, "mask": torch.tensor([0.0, 1.0, 0.0])}])
    assert masked["loss"].value == pytest.approx(sum(each[1]) / 2, rel=1e-5)


def test_held_out_examples_are_measured_some_at_a_time(llama: Path) -> None:
    """Each part is as long as its longest example, and features are of each token."""
    task = CausalLM(str(llama), max_length=16)
    texts = ["one"] * MEASURED + ["one two three four five"] * 3
    batch = task.batch(task.prepare(Table({"text": texts})), None)
    assert [x["labels"].shape for x in task.chunks(batch)] == [(MEASURED, 3), (3, 7)]
    model = task.build([]).eval()
    outputs = task.forward(model, batch, "lm_head")
    assert outputs["features"].shape == (MEASURED + 3, 7, 16)
    assert outputs["counted"].sum(1).tolist() == [2] * MEASURED + [6] * 3
    whole, mask = task.metrics(outputs, batch)["loss"], torch.ones(len(texts))
    parts = evaluate(task, model, {}, [{**batch, "mask": mask}])["loss"]
    assert parts.weight == float(whole.weights.sum()) == 2 * MEASURED + 18
    assert parts.total == pytest.approx(float(whole.totals.detach().sum()), rel=1e-5)


def test_an_example_without_a_counted_token_has_no_loss_and_no_weight(llama: Path) -> None:
    task = CausalLM(str(llama))
    batch = {
        "input_ids": torch.tensor([[BEGIN, END]]),
        "attention_mask": torch.ones(1, 2, dtype=torch.int64),
    }
    batch["labels"] = torch.full((1, 2), -100)
    model = task.build([]).eval()
    assert losses_of(task, model, batch).tolist() == [0.0]
    assert task.metrics(task.forward(model, batch), batch)["loss"].weights.tolist() == [0.0]


def test_a_geometric_mean_of_means_is_right() -> None:
    """Probabilities 1/2, 1/2 and 1/16: their inverses' geometric mean is 64^(1/3) = 4."""
    parts = Weighted(2 * log(2), 2, geometric=True) + Weighted(log(16), 1, geometric=True)
    assert parts.value == pytest.approx(4)
    assert Weighted(1e6, 1, geometric=True).value == float("inf")
    assert Weighted(0, 0, geometric=True).value != Weighted(0, 0, geometric=True).value
    with pytest.raises(ValueError, match="geometric"):
        parts + Weighted(1, 1)


def test_data_without_labels_say_so_and_are_held_out_by_lot(texts: Path) -> None:
    examples = HubTable(str(texts), label="none", test_fraction=0.25).load()
    assert examples.classes == ()
    assert set(examples.train.columns) == {"text", "who"}
    assert (len(examples.train), len(examples.test)) == (45, 15)
    labelled = HubTable(str(texts), label="who").load()
    assert labelled.classes == ("ann", "bob")


def test_labels_that_there_are_divide_and_do_not_reach_the_model(
    llama: Path, tmp_path: Path
) -> None:
    rows = [{"instruction": "one", "response": "two", "category": "ab"[k % 2]} for k in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "causal-lm", "model": str(llama), "template": "alpaca", "max_length": 16}
    data = {"name": "table", "path": str(tmp_path / "x.jsonl"), "label": "category"}
    partition = {"name": "dirichlet", "clients": 2, "min_per_client": 2}
    site = open_site(read_plan({"task": task, "data": data, "partition": partition, "cohort": 2}))
    assert site.classes == ("a", "b")
    assert set(division_at(site)["histograms"]) == {"c000", "c001"}
    assert "label" not in next(iter(site.data.held_out()))


def test_partitions_that_divide_by_labels_say_that_there_are_none() -> None:
    table, draws = Table({"text": list("abcdef"), "who": list("xxyyyz")}), generator(1, "partition")
    for partition in (Dirichlet(2, min_per_client=1), Shards(2), Redrawn(4)):
        name = type(partition).__name__.lower()
        with pytest.raises(
            DataError, match=f"the partition '{name}' divides by labels, and these data have none"
        ):
            partition.split(table, draws)
    assert [len(part) for part in IID(2).split(table, draws).parts.values()] == [3, 3]
    assert Column("who").split(table, draws).parts["y"].tolist() == [2, 3, 4]
    assert Lists({"a": (0, 5)}).split(table, draws).parts["a"].tolist() == [0, 5]


def test_bad_settings(llama: Path, texts: Path) -> None:
    for settings, match in (
        ({"template": "chatmll"}, r"no template called 'chatmll'"),
        ({"loss_on": "answers"}, r"no loss_on called 'answers'. Did you mean 'answer'\?"),
        ({"loss_on": "answer"}, "a plain text has no answer"),
        ({"max_length": 3}, "at least 4, got 3"),
    ):
        with pytest.raises(PlanError, match=match):
            read_plan({"task": {"name": "causal-lm", **settings}})
    with pytest.raises(PlanError, match=r"max_length = 256, but .* takes at most 128 tokens"):
        CausalLM(str(llama)).prepare(Table({"text": ["one"]}))
    task = CausalLM(str(llama), "alpaca", max_length=16)
    with pytest.raises(
        DataError, match="'alpaca' learns from a column 'instruction'; the data have text"
    ):
        task.prepare(Table({"text": ["one"]}))
    with pytest.raises(DataError, match="1 of 2 examples have no 'instruction'"):
        task.prepare(Table({"instruction": ["one", None], "response": ["two", "two"]}))
    with pytest.raises(DataError, match="divides by labels"):
        open_site(read_plan(changes(llama, texts, partition="dirichlet")))
    with pytest.raises(DataError, match="text classification learns from a column 'label'"):
        plan = changes(
            llama, texts, task={"name": "text-classification", "model": str(llama), "max_length": 8}
        )
        open_site(read_plan(plan))
