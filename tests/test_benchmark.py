"""Language models by multiple choice: likelihoods are those that one computes by hand, and what is
left out is told."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import WORDS, changes
from exporting import Done, done
from running import fedpeft
from running import run as execute_all

from fedpeft import DataError, RunError, open_site, read_plan
from fedpeft.export.export import export_run
from fedpeft.registry import Code
from fedpeft.results.benchmark import (
    answers,
    benchmark,
    difference,
    make_lm,
    share,
)
from fedpeft.results.question_tokens import chat_of, encode_question, question_encoder
from fedpeft.results.questions import Asked, Question
from fedpeft.runs.folder import create
from fedpeft.tasks.text_classification import tokenizer

needs_lm_eval = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed: fedpeft[lm-eval]"
)
ROOM = 128
"""Tokens that the model takes; the last token of a text is not given to it."""


@pytest.fixture(scope="module")
def run(llama: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    lora = {"name": "lora", "target": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    return done(
        tmp_path_factory.mktemp("lora") / "run", **changes(llama, texts, method=lora, rounds=3)
    )


def own_task(folder: Path, rows: Sequence[Mapping[str, Any]], **settings: Any) -> Path:
    """A task's file, with questions beside it; each is also a shot."""
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "counting",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(file), "dev": str(file)},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
    }
    (folder / "task.yaml").write_text(json.dumps(task | settings))  # which YAML is, too
    return folder / "task.yaml"


def counting() -> list[dict[str, Any]]:
    """What comes next? Of each beginning the next word, another one, and the next two."""
    return [
        {
            "question": " ".join(WORDS[(k + j) % 6] for j in range(length)),
            "choices": [
                WORDS[(k + length) % 6],
                WORDS[(k + 2) % 6],
                f"{WORDS[(k + length) % 6]} {WORDS[k]}",
            ],
            "answer": 0,
        }
        for k, length in product(range(6), (3, 4, 6))
    ]


def by_hand(model: Any, read: Any, question: str, choice: str) -> float:
    """The log-likelihood of a choice after a question, token by token."""
    given, ids = read(question)["input_ids"], read(f"{question} {choice}")["input_ids"]
    with torch.inference_mode():
        chances = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(chances[at - 1, ids[at]]) for at in range(len(given), len(ids)))


@needs_lm_eval
def test_log_likelihoods_and_scores_are_those_by_hand(
    run: Done, llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read, rows = AutoTokenizer.from_pretrained(llama), counting()
    export_run(run.folder.path, tmp_path / "tuned", merge=True)
    models = {"base": AutoModelForCausalLM.from_pretrained(llama)}
    models["tuned"] = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    found = benchmark(run.folder.path, Asked(str(own_task(tmp_path, rows))))
    for kind, model in models.items():
        each = [
            [by_hand(model, read, row["question"], one) for one in row["choices"]] for row in rows
        ]
        heard: list[list[float]] = []
        asked = [
            Question("", [(row["question"], f" {one}") for one in row["choices"]], 3, _kept(heard))
            for row in rows
        ]
        scorer = make_lm(model, run.site.plan, "cpu")
        answers(
            scorer,
            asked,
            [[encode_question(scorer, *r) for r in one.requests] for one in asked],
            lambda n: None,
        )
        assert sorted(heard) == [pytest.approx(one, abs=1e-4) for one in sorted(each)]
        by_letter = [
            [x / len(c) for x, c in zip(one, row["choices"], strict=True)]
            for one, row in zip(each, rows, strict=True)
        ]
        for name, scores in (("acc", each), ("acc_norm", by_letter)):
            right = [float(max(one) == one[0]) for one in scores]
            assert found["metrics"][name][kind] == pytest.approx(share(right))
    assert found["metrics"]["acc"]["base"] != found["metrics"]["acc"]["tuned"]
    assert (found["questions"], found["left_out"], found["chance"]) == (18, 0, pytest.approx(1 / 3))


def _kept(heard: list[list[float]]) -> Any:
    def score(given: Sequence[tuple[float, bool]]) -> dict[str, float]:
        heard.append([x for x, _ in given])
        return {"acc": 0.0}

    return score


@needs_lm_eval
def test_scores_are_those_of_lm_evals_own_command_with_shots_drawn_alike(
    run: Done, llama: Path, tmp_path: Path
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # Shots at random, as of a task that says nothing.
    task = str(own_task(tmp_path, counting(), fewshot_config=None))
    theirs = simple_evaluate(
        HFLM(str(llama), device="cpu", dtype="float32", logits_cache=False),
        tasks=[task],
        num_fewshot=3,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )["results"]["counting"]
    ours = benchmark(run.folder.path, Asked(task, shots=3))["metrics"]
    assert [ours[name]["base"]["value"] for name in ("acc", "acc_norm")] == pytest.approx(
        [theirs[f"{name},none"] for name in ("acc", "acc_norm")]
    )
    assert ours["acc"]["base"]["value"] not in (0, 1)


@needs_lm_eval
def test_questions_that_do_not_fit_are_asked_of_neither_and_counted(
    run: Done, tmp_path: Path
) -> None:
    """A question of 128 words and an answer of one fill the model; one more of either does not
    fit."""
    rows = [
        {"question": " ".join(["one"] * words), "choices": ["two", other], "answer": 0}
        for words, other in (
            (ROOM, "three"),
            (ROOM + 1, "three"),
            (ROOM, "three four"),
            (2, "three"),
        )
    ]
    found = benchmark(run.folder.path, Asked(str(own_task(tmp_path, rows))))
    assert (found["questions"], found["left_out"], found["context"]) == (4, 2, ROOM)
    assert found["tasks"]["counting"] | {"base": 0, "tuned": 0} == {
        "questions": 4,
        "left_out": 2,
        "base": 0,
        "tuned": 0,
    }
    with pytest.raises(RunError, match=r"of the 4 questions .* with 1 shots, 0 fit the 128 tokens"):
        benchmark(run.folder.path, Asked(str(tmp_path / "task.yaml"), shots=1))


@needs_lm_eval
def test_a_prefix_stands_in_the_context_too_and_its_base_has_none(
    llama: Path, texts: Path, tmp_path: Path
) -> None:
    run = done(tmp_path / "run", **changes(llama, texts, method={"name": "prefix", "tokens": 5}))
    rows = [
        *counting(),
        {"question": " ".join(["one"] * (ROOM - 4)), "choices": ["two", "three"], "answer": 0},
    ]
    found = benchmark(run.folder.path, Asked(str(own_task(tmp_path, rows))))
    assert (found["context"], found["left_out"]) == (ROOM - 5, 1)
    other = done(tmp_path / "other", **changes(llama, texts, method="full"))
    assert (
        benchmark(other.folder.path, Asked(str(tmp_path / "task.yaml")))["tasks"]["counting"][
            "left_out"
        ]
        == 0
    )
    short = benchmark(other.folder.path, Asked(str(own_task(tmp_path, counting()))))
    assert short["metrics"]["acc"]["base"] == found["metrics"]["acc"]["base"]


@needs_lm_eval
def test_the_command_shows_and_keeps_what_it_found(run: Done, tmp_path: Path) -> None:
    rows = [
        *counting(),
        {"question": " ".join(["one"] * (ROOM + 1)), "choices": ["two", "three"], "answer": 0},
    ]
    task, path = own_task(tmp_path, rows), run.folder.path
    shown = fedpeft("evaluate", path, "--benchmark", task, "--shots", 2)
    assert shown.exit_code == 0, shown.output
    assert "2 shots: 18 of 19 questions" in shown.stdout
    assert "chance    33.3%" in shown.stdout
    assert "longer than the model's 128 tokens: 1 questions, of counting 1 of 19" in shown.stdout
    told = fedpeft("evaluate", path, "--benchmark", task, "--shots", 2, "--limit", 4, "--json")
    made = json.loads(told.stdout)["benchmark"]
    assert (made["questions"], made["shots"], made["round"]) == (4, 2, 3)
    kept = json.loads((path / "benchmarks.json").read_text())["benchmarks"]
    assert [one["limit"] for one in kept if one["benchmark"] == str(task)] == [None, 4]
    again = json.loads(
        fedpeft("evaluate", path, "--benchmark", task, "--shots", 2, "--limit", 4, "--json").stdout
    )
    assert json.loads((path / "benchmarks.json").read_text())["benchmarks"] == [
        *kept[:-1],
        again["benchmark"],
    ]


@needs_lm_eval
def test_mmlu_from_a_folder(run: Done, tmp_path: Path) -> None:
    from datasets import Dataset

    for split, count in (("dev", 2), ("test", 3)):
        rows = [
            {
                "subject": subject,
                "question": f" {k} {split} ",
                "choices": list("wxyz"),
                "answer": k % 4,
            }
            for subject in ("anatomy", "virology")
            for k in range(count)
        ]
        Dataset.from_list(rows).to_parquet(tmp_path / f"{split}.parquet")
    found = benchmark(run.folder.path, Asked("mmlu_anatomy", shots=1, mmlu=tmp_path))
    assert (found["questions"], found["chance"], set(found["tasks"])) == (3, 0.25, {"mmlu_anatomy"})
    with pytest.raises(
        DataError, match="has no questions of 'abstract_algebra', which belong to 'mmlu_stem'"
    ):
        benchmark(run.folder.path, Asked("mmlu_stem", mmlu=tmp_path))
    (tmp_path / "other").mkdir()
    Dataset.from_list([{"text": "one"}]).to_parquet(tmp_path / "other" / "test.parquet")
    with pytest.raises(RunError, match="'mmlu_pro' is none of MMLU's tasks: leave out --mmlu"):
        benchmark(run.folder.path, Asked("mmlu_pro", mmlu=tmp_path))
    with pytest.raises(
        DataError,
        match="is no MMLU: it needs tables dev and test with the columns subject, question",
    ):
        benchmark(run.folder.path, Asked("mmlu", mmlu=tmp_path / "other"))


@needs_lm_eval
def test_what_cannot_be_asked_is_one_line(run: Done, tmp_path: Path) -> None:
    path = run.folder.path
    rows = counting()
    for settings, shots, line in (
        (
            {"output_type": "generate_until", "doc_to_choice": None},
            (),
            "is no multiple choice but generate_until",
        ),
        ({"num_fewshot": 0}, ("--shots", 1), "without shots by its own rules: leave out --shots"),
        ({"dataset_kwargs": {"data_files": {"test": "nothing.jsonl"}}}, (), "cannot be had"),
    ):
        told = fedpeft(
            "evaluate", path, "--benchmark", own_task(tmp_path, rows, **settings), *shots
        )
        assert told.exit_code == 2
        assert (
            told.stderr.startswith("error: ")
            and line in told.stderr
            and told.stderr.count("\n") == 1
        )


def done_without_logits(path: Path, **settings: Any) -> Path:
    """A run of any task."""
    plan = read_plan({"rounds": 1, "cohort": 2, **settings})
    folder = create(plan, path)
    execute_all(folder, open_site(plan))
    return path


def test_options_that_say_nothing_and_runs_that_have_no_answers(tmp_path: Path) -> None:
    alone = fedpeft("evaluate", tmp_path, "--shots", 5)
    assert (
        alone.exit_code == 2 and "--shots, --limit and --mmlu belong to --benchmark" in alone.stderr
    )
    points = {
        "task": "parts:Points",
        "data": "parts:Blobs",
        "method": "full",
        "partition": {"name": "iid", "clients": 2},
    }
    run = done_without_logits(tmp_path / "points", **points)
    with pytest.raises(RunError, match="is no run of a language model"):
        benchmark(run, Asked("mmlu"), code=Code.of(["parts"]))


def test_without_the_extra_it_says_what_to_install(
    run: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RunError, match=r"pip install 'fedpeft\[lm-eval\]'"):
        benchmark(run.folder.path, Asked("mmlu"))


@pytest.mark.slow
@needs_lm_eval
def test_an_unknown_task_is_answered_with_the_nearest(run: Done) -> None:
    """Slow, as lm-eval reads all of its files for it."""
    with pytest.raises(
        RunError, match=r"no task called 'arc_chalenge'.* Did you mean .*'arc_challenge'"
    ):
        benchmark(run.folder.path, Asked("arc_chalenge"))


@pytest.mark.slow
@needs_lm_eval
def test_real_mmlu_has_57_subjects(run: Done, real_data: Path) -> None:
    found = benchmark(run.folder.path, Asked("mmlu", limit=1, mmlu=real_data / "mmlu"))
    assert (found["questions"], len(found["tasks"])) == (57, 57)


def test_a_chat_model_is_asked_by_its_template(real_data: Path) -> None:
    """Shots and question are one message; the choice follows the sign after which the assistant
    speaks, without the blank of plain text."""
    model = str(real_data / "stories260k")
    asked = {"name": "causal-lm", "model": model, "template": "chatml"}
    plan = read_plan({"task": asked, "data": {"name": "table", "path": str(real_data / "dolly")}})
    assert chat_of(plan) == "chatml"
    given, said = question_encoder(None, plan)("Q: 1\nA: one\n\nQ: 2\nA:", " two")
    read = tokenizer(model)
    want = "<|im_start|>user\nQ: 1\nA: one\n\nQ: 2\nA:<|im_end|>\n<|im_start|>assistant\n"
    assert read.decode(given).removeprefix("<s>").strip() == want.strip()
    assert read.decode(said).strip() == "two"
    for plain in ("none", "alpaca"):
        task = replace(plan.task, template=plain)  # type: ignore[type-var]
        assert chat_of(replace(plan, task=task)) == ""


def test_an_interval_is_wilsons_and_a_difference_is_of_pairs() -> None:
    """One right of four: (0.25 + 1.96² / 8 ± 1.96 √(0.1875 / 4 + 1.96² / 64)) / (1 + 1.96² / 4)."""
    assert share([1, 0, 0, 0]) == pytest.approx(
        {"value": 0.25, "stderr": 0.25, "low": 0.04559, "high": 0.69937}, abs=1e-5
    )
    none = share([0] * 100)
    assert (
        none["stderr"] == 0
        and none["low"] == pytest.approx(0)
        and none["high"] == pytest.approx(0.037, abs=1e-4)
    )
    one = difference([1, 0, -1, 1])
    assert one["value"] == 0.25 and one["stderr"] == pytest.approx(0.478714)
    # 1.96 √(4 - 1/6) / 6.
    assert (one["low"], one["high"]) == pytest.approx((1 / 6 - 0.64, 1 / 6 + 0.64), abs=1e-3)
    never = difference([0.0] * 9)
    assert never["value"] == 0 and never["high"] == -never["low"] == pytest.approx(
        1.96 / 11, abs=1e-4
    )
