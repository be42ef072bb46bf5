"""The tasks on texts where owners are apart: a file from each of them, and Flower's nodes."""

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from text_runs import run_of, save_bert, save_sequence_model, write_rows
from town import engine, run, town

from fedpeft import InProcess, PlanError, federate, open_site, read_plan, start
from fedpeft.core.tensors import equal
from fedpeft.core.types import Examples, Table
from fedpeft.data.class_order import in_order
from fedpeft.deploy.terms import check_labels_named
from fedpeft.evaluation.probe import check_gradients
from fedpeft.oneshot.contribute import contribute, from_partition
from fedpeft.oneshot.invitation import invite, read_invitation
from fedpeft.oneshot.keys import make_signing_key, signing_key
from fedpeft.oneshot.merge import merge
from fedpeft.oneshot.rules import Rules
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import load_tensors

KINDS = ("pair", "several", "tokens", "answers", "embedding", "few-shot")


def few(daily: str) -> pytest.MarkDecorator:
    """All kinds, of which one is tested every day."""
    slow = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != daily]
    return pytest.mark.parametrize("kind", [daily, *slow])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[str, Any]]:
    """A plan of each task, on rows that have columns for all of them."""
    root = tmp_path_factory.mktemp("federations")
    words = ("good", "bad", "film", "very", "a")
    texts = [" ".join(words[(k + j) % 5] for j in range(2 + k % 3)) for k in range(18)]
    rows = (
        {
            "text": text,
            "second": texts[k - 5],
            "tokens": text.split(),
            "ner_tags": [(k + j) % 3 for j in range(len(text.split()))],
            "topics": ["new"] if k % 2 else [],
            "score": k / 18,
        }
        for k, text in enumerate(texts)
    )
    file = write_rows(root / "rows.jsonl", rows)
    bert = {"model": str(save_bert(root / "bert")), "max_length": 12}
    t5 = {"model": str(save_sequence_model(root / "t5", "t5")), "max_length": 12}
    text = {"name": "text-classification", **bert}
    made = {
        "pair": {**text, "text_pair": "second", "problem_type": "regression", "target": "score"},
        "several": {
            **text,
            "problem_type": "multi_label_classification",
            "labels": ["new", "old"],
            "target": "topics",
        },
        "tokens": {"name": "token-classification", "labels": ["O", "B-X", "I-X"], **bert},
        "answers": {"name": "seq2seq", "source": "text", "answer": "second", **t5},
        "embedding": {"name": "embedding", "first": "text", "second": "second", **bert},
        "few-shot": {"name": "few-shot", "group": "second", **bert},
    }
    return {kind: run_of(task, file, rounds=1) for kind, task in made.items()}


@few("several")
def test_a_file_from_each_owner_comes_to_the_run_of_one_round(
    kind: str, tasks: Mapping[str, Any], tmp_path: Path
) -> None:
    plan = read_plan(tasks[kind])
    invite(plan, tmp_path / "study")
    given, files = read_invitation(tmp_path / "study"), []
    for number in range(3):
        who = from_partition(given, number)
        private, _ = make_signing_key(who.client, tmp_path)
        files.append(tmp_path / f"{who.client}.safetensors")
        files[-1].write_bytes(contribute(given, who, signing_key(private), lambda: None)[1])
    merge(tmp_path / "study", files, tmp_path / "merged", Rules())
    got, _ = load_tensors(tmp_path / "merged" / "checkpoint" / "state.safetensors")
    got = {name.partition("/")[2]: x for name, x in got.items() if name.startswith("params/")}
    site = open_site(plan)
    ((state, ledger),) = federate(plan, InProcess(site), start(plan, site.params()))
    assert not ledger.failed
    assert equal(state.flat, got)


@pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed")
@few("embedding")
def test_nodes_of_flower_give_the_bits_of_one_process(
    kind: str, tasks: Mapping[str, Any], tmp_path: Path
) -> None:
    site = open_site(read_plan(tasks[kind]))
    said: list[str] = []
    made = engine(site, town(site, tmp_path), said, 30)
    made.gather()
    here = replace(site)
    got, want = run(site, made), run(here, InProcess(here, Folder(tmp_path / "here")))
    assert len(got) == 1
    assert all(equal(a.flat, b.flat) and x == y for (a, x), (b, y) in zip(got, want, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_without_data_needs_no_labels_that_its_task_names(
    kind: str, tasks: Mapping[str, Any], tmp_path: Path
) -> None:
    """And an owner's data may have a column of labels that nobody learns."""
    data = {"name": "table", "path": str(tmp_path / "nowhere"), "label": "none"}
    plan = read_plan({**tasks[kind], "data": data, "nodes": {"names": ["a", "b"]}})
    assert check_labels_named(plan) is plan
    columns = {"text": ["good", "bad"], "label": torch.tensor([1, 0]), "score": [1, 2]}
    examples = Examples(Table(columns), Table(columns), ("x", "y"))
    without = in_order(examples, (), "here")
    assert set(without.train.columns) == {"text", "score"} and without.classes == ()
    classes = {"task": {"name": "text-classification", "model": "minilm"}}
    with pytest.raises(PlanError, match="does not name the labels"):
        check_labels_named(read_plan({**tasks[kind], **classes}))


@pytest.mark.parametrize(
    "task",
    [
        {"name": "regression", "features": ["a"]},
        {"name": "survival", "features": ["a"]},
        {"name": "forecast", "model": "linear", "context": 4, "horizon": 2},
    ],
)
def test_a_task_without_classes_needs_none_at_nodes(task: Mapping[str, Any]) -> None:
    plan = read_plan({"task": task, "method": "full", "nodes": {"names": ["a", "b"]}})
    assert check_labels_named(plan) is plan


@pytest.mark.parametrize("kind", KINDS)
def test_examples_have_gradients_of_their_own_or_say_that_they_have_none(
    kind: str, tasks: Mapping[str, Any]
) -> None:
    site = open_site(read_plan(tasks[kind]))
    if kind in ("embedding", "few-shot"):
        with pytest.raises(PlanError, match="none has a gradient of its own"):
            check_gradients(site)
    else:
        check_gradients(site)


def test_the_plans_of_the_guide_are_plans() -> None:
    page = (Path(__file__).parents[1] / "docs" / "guide" / "texts.md").read_text()
    plans = re.findall("```toml\n(.*?)```", page, re.S)
    named = [type(read_plan(plan).task).__name__ for plan in plans]
    assert named == ["TextClassification"] * 2 + ["TokenClassification", "FewShot", "Seq2Seq"]
