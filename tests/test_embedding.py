"""Embeddings: the loss of pairs against each other, what does not count in it, and what that rules
out."""

import json
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import losses_of
from text_runs import (
    Exported,
    check_processes,
    check_stacked,
    run_of,
    save_bert,
    save_sequence_model,
    write_rows,
)
from torch.nn.functional import cosine_similarity

from fedpeft import DataError, PlanError, evaluate, open_site, read_plan
from fedpeft.compute.objective import Objective
from fedpeft.compute.trainable import head_of
from fedpeft.core.outputs import PREDICTION
from fedpeft.core.types import Table
from fedpeft.tasks.embedding import Embedding

PAIRS = {
    "anchor": ["good film", "very very bad film", "a"],
    "positive": ["good", "bad film", "a a a"],
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("good", "bad", "film", "very", "a")
    rows = (
        {
            "anchor": " ".join(words[(k + j) % 5] for j in range(2 + k % 3)),
            "positive": " ".join(words[(k * j) % 5] for j in range(1, 3 + k % 2)),
        }
        for k in range(30)
    )
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


def test_embeddings_are_means_over_tokens_whatever_the_padding(bert: Path) -> None:
    task = Embedding(str(bert), max_length=8)
    model = task.build([]).eval().requires_grad_(False)
    rows = task.prepare(Table(PAIRS))
    batch = task.batch(rows, None)
    assert batch["input_ids"].shape == (3, 6) and batch["second/input_ids"].shape == (3, 5)
    together = task.forward(model, batch)[PREDICTION]
    assert together.shape == (3, 2, 16)
    for k in range(3):
        alone = task.batch({name: x[k : k + 1] for name, x in rows.items()}, None)
        for side, prefix in enumerate(("", "second/")):
            ids = alone[f"{prefix}input_ids"]
            mean = model(input_ids=ids).last_hidden_state.mean(1)
            assert torch.allclose(together[k, side], mean[0] / mean.norm(), atol=1e-5)


def told(*vectors: tuple[float, float]) -> dict[str, torch.Tensor]:
    """Embeddings as a model would give them: a pair for each two vectors."""
    return {PREDICTION: torch.tensor(vectors).view(-1, 2, 2)}


def test_each_second_text_is_told_from_the_others_of_its_batch() -> None:
    """cos is 1 with the own one and 0 with the other, at s = ln 3: −log(3 / (3 + 1))."""
    task = Embedding(scale=log(3))
    outputs = told((1, 0), (1, 0), (0, 1), (0, 1))
    batch = {"second/input_ids": torch.tensor([[1], [2]])}
    assert task.losses(outputs, batch).tolist() == pytest.approx([-log(3 / 4)] * 2)
    found = task.metrics(outputs, batch)
    assert found["accuracy"].tolist() == [1, 1] and found["mrr"].tolist() == [1, 1]
    found = task.metrics(told((1, 0), (0, 1), (0, 1), (1, 0)), batch)
    assert found["accuracy"].tolist() == [0, 0] and found["mrr"].tolist() == [0.5, 0.5]


def test_a_model_that_gives_all_texts_one_vector_finds_nothing() -> None:
    """Each text is last among the four; the one that fills the batch up is none of them, and
    neither is a text beside the same one."""
    task = Embedding()
    ids = torch.tensor([[1], [2], [3], [4], [9]])
    mask = torch.tensor([1.0, 1, 1, 1, 0])
    outputs = told(*[(0.6, 0.8)] * 10)
    found = task.metrics(outputs, {"second/input_ids": ids, "mask": mask})
    assert found["accuracy"][:4].tolist() == [0] * 4
    assert found["mrr"][:4].tolist() == [0.25] * 4
    alike = task.metrics(outputs, {"second/input_ids": torch.ones_like(ids), "mask": mask})
    assert alike["accuracy"][:4].tolist() == [1] * 4, "there is no other text to be told from"


def test_what_fills_a_batch_up_and_the_same_text_are_no_counterexamples() -> None:
    task = Embedding(scale=log(3))
    outputs = told((1, 0), (1, 0), (0, 1), (0, 1), (1, 0), (1, 0))
    ids = torch.tensor([[1], [2], [1]])
    without = task.losses(outputs, {"second/input_ids": ids, "mask": torch.ones(3)})
    assert without.tolist() == pytest.approx([-log(3 / 4), -log(3 / 5), -log(3 / 4)])
    filled = task.losses(outputs, {"second/input_ids": ids, "mask": torch.tensor([1.0, 1, 0])})
    assert filled[:2].tolist() == pytest.approx([-log(3 / 4)] * 2)
    assert filled.isfinite().all()
    one = task.losses(told((1, 0), (0, 1)), {"second/input_ids": ids[:1]})
    assert one.tolist() == [0.0]


def test_rows_that_fill_a_batch_up_change_nothing(bert: Path) -> None:
    """Neither the losses of the others nor the gradient."""
    task = Embedding(str(bert), max_length=8)
    model = task.build([]).eval()
    batch = task.batch(task.prepare(Table(PAIRS)), None)
    two = {**{name: x[:2] for name, x in batch.items()}, "mask": torch.ones(2)}
    filled = {**batch, "mask": torch.tensor([1.0, 1.0, 0.0])}
    objective = Objective(model, task)
    params = {"encoder.layer.0.attention.self.query.weight": dict(model.named_parameters())[
        "encoder.layer.0.attention.self.query.weight"]}  # fmt: skip
    (g2, l2, _), (g3, l3, _) = (objective.gradient(params, one) for one in (two, filled))
    assert torch.allclose(l2, l3[:2], atol=1e-6)
    for name in g2:
        assert torch.allclose(g2[name], g3[name], atol=1e-6) and g2[name].any()
    measured = evaluate(task, model, {}, [filled])
    assert measured["loss"].weight == 2
    assert measured["loss"].value == pytest.approx(float(l2.mean()), rel=1e-4)


def test_no_pair_has_a_gradient_of_its_own(bert: Path, file: Path) -> None:
    changes = run_of(plan_task(bert), file)
    private = {
        "local": {"name": "dp_sgd", "noise_multiplier": 1.0},
        "weighting": "uniform",
        "privacy": {"delta": 1e-3},
    }
    with pytest.raises(PlanError, match=r"lets the examples of a batch change .*client_dp"):
        read_plan({**changes, **private})
    task = Embedding(str(bert), max_length=8)
    batch = {**task.batch(task.prepare(Table(PAIRS)), None), "mask": torch.ones(3)}
    with pytest.raises(PlanError, match="so that none has a gradient of its own"):
        Objective(task.build([]), task).gradients({}, batch)


def test_fisher_information_is_not_asked_of_pairs(bert: Path, file: Path) -> None:
    with pytest.raises(PlanError, match=r"squares the gradient of each example, and Embedding"):
        read_plan(run_of(plan_task(bert), file, algorithms=["fisher"]))


def test_clients_may_be_hidden(bert: Path, file: Path) -> None:
    stage = {"name": "client_dp", "clip_norm": 1.0, "noise_multiplier": 1.0}
    private = {"stages": [stage], "weighting": "uniform", "privacy": {"delta": 1e-3}}
    assert read_plan({**run_of(plan_task(bert), file), **private}).stages


def test_a_model_of_embeddings_has_no_head(bert: Path, file: Path) -> None:
    site = open_site(read_plan(run_of(plan_task(bert), file)))
    assert head_of(site.model) == ""
    assert all("lora" in name for name in site.params())
    with pytest.raises(PlanError, match="no new head to train"):
        open_site(read_plan(run_of(plan_task(bert), file, method="head")))
    with pytest.raises(PlanError, match="distillation compares logits"):
        read_plan(run_of(plan_task(bert), file, local={"terms": ["distillation"]}))


def test_data_and_models_that_do_not_fit(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="embedding learns from a column 'positive'"):
        Embedding(str(bert), max_length=8).prepare(Table({"anchor": ["a"]}))
    with pytest.raises(DataError, match="1 of 1 examples have no 'positive'"):
        Embedding(str(bert), max_length=8).prepare(Table({"anchor": ["a"], "positive": [None]}))
    with pytest.raises(PlanError, match="scale must be positive and finite, got 0"):
        read_plan({"task": {"name": "embedding", "scale": 0}})
    t5 = save_sequence_model(tmp_path / "t5", "t5")
    with pytest.raises(PlanError, match="has a decoder beside its encoder"):
        Embedding(str(t5)).build([])


def plan_task(bert: Path) -> dict[str, Any]:
    return {"name": "embedding", "model": str(bert), "max_length": 8}


def test_clients_in_a_stack_train_it(bert: Path, file: Path) -> None:
    check_stacked(run_of(plan_task(bert), file))


@pytest.mark.slow
def test_other_processes_train_it(bert: Path, file: Path) -> None:
    check_processes(run_of(plan_task(bert), file))


@pytest.mark.parametrize("case", ["lora", "merged", "full"])
def test_an_export_is_loaded_by_its_card_and_says_the_same(
    bert: Path, file: Path, tmp_path: Path, case: str
) -> None:
    method = "full" if case == "full" else "lora"
    run = Exported(
        run_of(plan_task(bert), file, rounds=1, method=method), tmp_path, case == "merged"
    )
    texts = ["good film", "very very bad film"]
    scope = {"model": run.names["model"], "tokenizer": run.names["tokenizer"], "texts": texts}
    with torch.inference_mode():
        exec(run.usage, scope)
    rows = run.site.plan.task.prepare(Table({"anchor": texts, "positive": texts}))
    _, outputs = run.forward(run.site.plan.task.batch(rows, None))
    assert torch.allclose(scope["embeddings"], outputs[PREDICTION][:, 0], atol=1e-5)
    modules = json.loads((run.folder / "modules.json").read_text())
    assert [one["path"] for one in modules] == ["", "1_Pooling", "2_Normalize"]
    pooling = json.loads((run.folder / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 16 and pooling["pooling_mode_mean_tokens"]
    assert "| mrr on held-out pairs |" in run.card


def test_pairs_come_to_lie_together(bert: Path, tmp_path: Path) -> None:
    """What they have in common is learned, in a handful of rounds."""
    rows = ({"anchor": ("good film", "bad a")[k % 2], "positive": ("very", "film film")[k % 2]}
            for k in range(40))  # fmt: skip
    file = write_rows(tmp_path / "x.jsonl", rows)
    local = {"lr": 0.02, "batch_size": 4, "optimizer": "adamw"}
    run = Exported(run_of(plan_task(bert), file, rounds=6, method="full", local=local), tmp_path)
    table = Table({"anchor": ["good film", "bad a"], "positive": ["very", "film film"]})
    _, outputs = run.forward(run.site.plan.task.batch(run.site.plan.task.prepare(table), None))
    first, second = outputs[PREDICTION].unbind(1)
    own, other = (cosine_similarity(first, x) for x in (second, second.flip(0)))
    assert (own > other + 0.1).all()


def test_losses_are_one_a_pair(bert: Path) -> None:
    task = Embedding(str(bert), max_length=8)
    batch = task.batch(task.prepare(Table(PAIRS)), None)
    assert losses_of(task, task.build([]).eval(), batch).shape == (3,)
