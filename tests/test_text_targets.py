"""Pairs of texts, several labels of one text, and numbers: what is read, what is learned, and what
is measured."""

from math import nan, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import losses_of
from sklearn.metrics import f1_score, mean_absolute_error, mean_squared_error, r2_score
from text_runs import Exported, check_processes, check_stacked, run_of, save_bert, write_rows
from torch.nn.functional import binary_cross_entropy_with_logits

from fedpeft import (
    DataError,
    InProcess,
    PlanError,
    evaluate,
    federate,
    open_site,
    read_plan,
    start,
)
from fedpeft.compute.scores import conclude
from fedpeft.core.outputs import LOGITS
from fedpeft.core.types import Batch, Table
from fedpeft.data.table import HubTable
from fedpeft.tasks import scoring
from fedpeft.tasks.image_classification import ImageClassification
from fedpeft.tasks.targets import NUMBER, ONE, SEVERAL
from fedpeft.tasks.text_classification import TextClassification

TOPICS = ("toxic", "insult", "threat")
TEXTS = ("good film", "bad", "very very bad film", "a good good good film", "bad film", "a film")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty texts with a second text, several topics and a score each."""
    rows = (
        {
            "text": TEXTS[k % 6],
            "second": TEXTS[(k * 5 + 1) % 6],
            "label": [topic for at, topic in enumerate(TOPICS) if (k >> at) & 1],
            "score": (k % 7) / 7,
        }
        for k in range(30)
    )
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


def tasks(bert: Path) -> dict[str, dict[str, Any]]:
    base = {"name": "text-classification", "model": str(bert), "max_length": 12}
    return {
        "several": {**base, "problem_type": SEVERAL, "labels": list(TOPICS)},
        "number": {**base, "problem_type": NUMBER, "target": "score"},
        "pair": {**base, "problem_type": NUMBER, "target": "score", "text_pair": "second"},
    }


def test_a_pair_is_one_row_of_both_texts(bert: Path) -> None:
    task = TextClassification(str(bert), max_length=9, text_pair="second")
    columns = {
        "text": ["good film", "bad"],
        "second": ["very bad", "a a a a a a a a a a"],
        "label": torch.tensor([0, 1]),
    }
    rows = task.prepare(Table(columns))
    assert rows["input_ids"].tolist() == [
        [2, 5, 7, 3, 8, 6, 3, 0, 0],
        [2, 6, 3, 10, 10, 10, 10, 10, 3],
    ]
    assert rows["token_type_ids"].tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 1, 1, 1, 1],
    ]
    assert rows["attention_mask"].sum(1).tolist() == [7, 9]
    model = task.build(["no", "yes"]).eval()
    together = losses_of(task, model, task.batch(rows, None))
    alone = [
        losses_of(task, model, task.batch({n: x[k : k + 1] for n, x in rows.items()}, None))
        for k in range(2)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)
    batch = task.batch(rows, None)
    of_one_kind = {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}
    assert not torch.equal(together, losses_of(task, model, of_one_kind))


def test_a_tokenizer_without_a_padding_token_reads_pairs_too(llama: Path) -> None:
    """It has no kinds of tokens either, and the end of a text fills rows up."""
    task = TextClassification(str(llama), max_length=8, text_pair="second")
    columns = {"text": ["one", ""], "second": ["two three", "six"], "label": torch.tensor([0, 1])}
    rows = task.prepare(Table(columns))
    assert set(rows) == {"input_ids", "attention_mask", "label"}
    assert rows["input_ids"].tolist() == [[3, 4, 5], [8, 2, 2]]
    assert losses_of(task, task.build(["a", "b"]).eval(), task.batch(rows, None)).shape == (2,)


@pytest.mark.parametrize(
    "values",
    [
        [["toxic", "threat"], [], ["insult"], None],
        ["toxic|threat", "", "insult", None],
        ["toxic; threat", None, "insult", ""],
        ["threat,toxic", None, "insult", None],
    ],
)
def test_several_labels_are_a_list_or_a_text(bert: Path, values: list[Any]) -> None:
    task = TextClassification(str(bert), 12, problem_type=SEVERAL, labels=TOPICS)
    rows = task.prepare(Table({"text": list(TEXTS[:4]), "label": values}))
    assert rows["target"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert "label" not in rows


def test_several_labels_may_be_a_column_each(bert: Path) -> None:
    task = TextClassification(str(bert), 12, problem_type=SEVERAL, labels=("b", "a"))
    table = {"text": list(TEXTS[:3]), "a": [0, 1, "1"], "b": [1.0, 0, True]}
    assert task.prepare(Table(table))["target"].tolist() == [[1, 0], [0, 1], [1, 1]]
    with pytest.raises(
        DataError, match=r"1 of 3 values of the column 'a' are neither 0 nor 1, .*-1"
    ):
        task.prepare(Table({**table, "a": [0, -1, 1]}))


def test_a_label_with_a_separator_in_its_name_is_one_label(bert: Path) -> None:
    labels = ("no, never", "yes")
    task = TextClassification(str(bert), 12, problem_type=SEVERAL, labels=labels)
    rows = task.prepare(Table({"text": list(TEXTS[:2]), "label": ["no, never", "yes"]}))
    assert rows["target"].tolist() == [[1, 0], [0, 1]]


def test_losses_are_those_of_torch_and_padding_changes_none(bert: Path) -> None:
    several = TextClassification(str(bert), 12, problem_type=SEVERAL, labels=TOPICS)
    number = TextClassification(str(bert), 12, problem_type=NUMBER, target="score")
    table = Table({"text": list(TEXTS[1:3]), "label": [["toxic"], []], "score": [0.25, -3]})
    for task in (several, number):
        rows, model = task.prepare(table), task.build([]).eval()
        batch = task.batch(rows, None)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        wanted = {
            several: binary_cross_entropy_with_logits(
                logits, torch.tensor([[1.0, 0, 0], [0, 0, 0]])[:, : logits.shape[1]],
                reduction="none",
            ).mean(1),
            number: (logits[:, 0] - torch.tensor([0.25, -3])) ** 2,
        }[task]  # fmt: skip
        assert torch.allclose(losses_of(task, model, batch), wanted)
        first = task.batch({name: x[:1] for name, x in rows.items()}, None)
        assert first["input_ids"].shape[1] < batch["input_ids"].shape[1]
        assert torch.allclose(losses_of(task, model, first), wanted[:1], atol=1e-6)


class Told:
    """As much of a task as metrics need: the batch brings the logits."""

    def forward(self, model: Any, batch: Batch, head: str | None = None) -> dict[str, Any]:
        return {LOGITS: batch["logits"]}

    losses, metrics = staticmethod(scoring.losses), staticmethod(scoring.scores)
    conclude = staticmethod(scoring.derive_metrics)


def measured(logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """The metrics of two batches of different sizes."""
    batches = [
        {"logits": logits[part], "target": target[part], "mask": mask[part]}
        for part in (slice(0, 5), slice(5, None))
    ]
    task: Any = Told()
    return conclude(task, evaluate(task, torch.nn.Identity(), {}, batches))


def test_metrics_of_several_labels_are_those_of_scikit_learn() -> None:
    draws = torch.Generator().manual_seed(1)
    logits = torch.randn(23, 4, generator=draws)
    target = (torch.rand(23, 4, generator=draws) < 0.4).float()
    logits[:, 3], target[:, 3] = -1.0, 0.0  # a label that is not there and that nobody tells
    mask = torch.ones(23)
    mask[-3:] = 0
    got, told, true = measured(logits, target, mask), (logits > 0)[:20], target[:20]
    assert got["micro_f1"] == pytest.approx(f1_score(true, told, average="micro"))
    assert got["macro_f1"] == pytest.approx(f1_score(true[:, :3], told[:, :3], average="macro"))
    assert got["exact_match"] == pytest.approx(float((true == told).all(1).float().mean()))
    assert set(got) == {"loss", "exact_match", "micro_f1", "macro_f1"}


def test_metrics_of_numbers_are_those_of_scikit_learn() -> None:
    """Around 2,000, where sums of squares in float32 would leave nothing of the variance."""
    draws = torch.Generator().manual_seed(2)
    true = 2000 + torch.randn(23, generator=draws)
    told = true + 0.3 * torch.randn(23, generator=draws)
    mask = torch.ones(23)
    mask[-3:] = 0
    got, x, y = measured(told[:, None], true, mask), told[:20].double(), true[:20].double()
    assert got["mae"] == pytest.approx(mean_absolute_error(y, x), rel=1e-5)
    assert got["loss"] == pytest.approx(mean_squared_error(y, x), rel=1e-5)
    assert got["rmse"] == pytest.approx(sqrt(mean_squared_error(y, x)), rel=1e-5)
    assert got["r2"] == pytest.approx(r2_score(y, x), abs=1e-4)
    assert got["pearson"] == pytest.approx(
        float(torch.corrcoef(torch.stack([x, y]))[0, 1]), abs=1e-4
    )


def test_numbers_that_are_all_alike_have_no_correlation() -> None:
    got = measured(torch.ones(6, 1), torch.full((6,), 0.1), torch.ones(6))
    assert got["pearson"] is not None and got["pearson"] != got["pearson"]
    assert got["r2"] != got["r2"] and got["mae"] == pytest.approx(0.9)
    none = scoring.derive_metrics({})
    assert none == {} and nan != nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "several"}, "no problem_type called 'several'"),
        ({"problem_type": SEVERAL}, "needs labels, the names that all sites agree on"),
        ({"labels": ["a"]}, r"labels are for problem_type = .*got \['a'\]"),
        ({"problem_type": SEVERAL, "labels": ["a", "a"]}, "labels must differ from each other"),
    ],
)
@pytest.mark.parametrize("name", ["text-classification", "image-classification"])
def test_keys_that_do_not_fit(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        read_plan({"task": {"name": name, **changes}})


@pytest.mark.parametrize(
    ("settings", "columns", "message"),
    [
        ({"text_pair": "second"}, {}, "of pairs learns from a column 'second'; the data have"),
        (
            {"text_pair": "second"},
            {"second": ["good", None, None]},
            "2 of 3 examples have no 'second': leave them out with data.where = \"second != ''\"",
        ),
        ({"text_pair": "second"}, {"second": [1, 2, 3]}, "'second' holds 1, which is no text"),
        (
            {"problem_type": SEVERAL, "labels": TOPICS},
            {"label": [["toxic"], ["rude"], []]},
            "the column 'label' of example 1: no label called 'rude'. Known: insult, threat, toxic",
        ),
        ({"problem_type": NUMBER}, {"label": [1, "x", 2]}, "holds 'x', which is no finite number"),
        ({"problem_type": NUMBER}, {"label": [1, 2, None]}, "1 of 3 examples have no number in"),
        ({"problem_type": NUMBER}, {"label": [1, 2, float("inf")]}, "holds inf, which is no"),
        (
            {"problem_type": NUMBER},
            {"label": torch.tensor([0, 1, 2])},
            'number its values as classes: set data.label = "none"',
        ),
    ],
)
def test_data_that_do_not_fit(
    bert: Path, settings: dict[str, Any], columns: dict[str, Any], message: str
) -> None:
    table = {"text": list(TEXTS[:3]), "label": torch.tensor([0, 1, 1]), **columns}
    with pytest.raises(DataError, match=message):
        TextClassification(str(bert), 12, **settings).prepare(Table(table))


def test_columns_called_label_may_hold_anything_where_no_class_is_read(
    bert: Path, file: Path
) -> None:
    """Whoever asks for classes is told that there are none."""
    examples = HubTable(str(file), label="none").load()
    assert examples.train.labels is None and examples.train.columns["label"][0] is not None
    dirichlet = {"name": "dirichlet", "clients": 3}
    plan = read_plan(run_of(tasks(bert)["several"], file, partition=dirichlet))
    with pytest.raises(DataError, match="'dirichlet' divides by labels, and these data have none"):
        open_site(plan)
    with pytest.raises(DataError, match='or to "none" where the task reads this one itself'):
        HubTable(str(file), text="text", label="score").load()


@pytest.mark.parametrize("kind", ["several", "number", "pair"])
def test_clients_in_a_stack_train_it(kind: str, bert: Path, file: Path) -> None:
    check_stacked(run_of(tasks(bert)[kind], file))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["several", "number", "pair"])
def test_other_processes_train_it(kind: str, bert: Path, file: Path) -> None:
    check_processes(run_of(tasks(bert)[kind], file))


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("kind", ["several", "number", "pair"])
def test_an_export_is_loaded_by_its_card_and_says_the_same(
    kind: str, merge: bool, bert: Path, file: Path, tmp_path: Path
) -> None:
    run = Exported(run_of(tasks(bert)[kind], file, rounds=1), tmp_path, merge)
    batch, outputs = run.forward()
    model, tokenizer = run.names["model"], run.names["tokenizer"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")
              if name in batch}  # fmt: skip
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, outputs[LOGITS], atol=1e-5, rtol=0)
    wanted = list(TOPICS) if kind == "several" else ["score"]
    config = model.config if merge else model.get_base_model().config
    assert [config.id2label[k] for k in range(len(wanted))] == wanted
    assert config.problem_type == (SEVERAL if kind == "several" else NUMBER)
    texts, seconds = ["good film", "bad"], ["a film", "very bad"]
    scope = {"model": model, "tokenizer": tokenizer, "texts": texts, "seconds": seconds}
    exec(run.usage, scope)
    assert ("token_type_ids" in scope["inputs"]) and (kind != "pair") == (
        not scope["inputs"]["token_type_ids"].any()
    )
    measured = "exact_match" if kind == "several" else "pearson"
    assert f"| {measured} on held-out examples |" in run.card


def test_pictures_have_several_labels_and_numbers_too() -> None:
    image = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    table = Table({"image": image, "label": [["a"], [], ["b", "a"]], "age": [1, 2, 3.5]})
    several = ImageClassification(problem_type=SEVERAL, labels=("a", "b"))
    number = ImageClassification(problem_type=NUMBER, target="age")
    for task, shape in ((several, (3, 2)), (number, (3,))):
        batch = task.batch(task.prepare(table), None)
        assert batch["target"].shape == shape
        model = task.build([]).eval()
        assert losses_of(task, model, batch).shape == (3,)
        assert losses_of(task, model, task.example()).shape == (1,)
    assert ImageClassification().offers == frozenset() and len(several.offers) == 1


def test_a_plan_without_the_new_keys_does_not_write_them() -> None:
    for name in ("text-classification", "image-classification"):
        assert "problem_type" not in read_plan({"task": {"name": name}}).toml()
        given: dict[str, Any] = {"problem_type": ONE, "target": "label", "labels": []}
        given = {"name": name, **given}
        assert "problem_type" not in read_plan({"task": given}).toml()


def test_owners_are_measured_by_more_labels_than_a_message_usually_has_metrics(
    bert: Path, tmp_path: Path
) -> None:
    """70 labels are 73 sums; 64 are taken where nothing is said. Label k is that of row k alone."""
    labels = [f"label {k}" for k in range(70)]
    rows = ({"text": "good film", "topics": [label]} for label in labels)
    task = {
        "name": "text-classification",
        "model": str(bert),
        "problem_type": "multi_label_classification",
        "labels": labels,
        "target": "topics",
        "max_length": 8,
    }
    plan = read_plan(
        run_of(
            task,
            write_rows(tmp_path / "rows.jsonl", rows),
            rounds=0,
            evaluate_at=["owners"],
            partition={"name": "iid", "clients": 3, "held_out": 0.3},
        )
    )
    site = open_site(plan)
    [(_, ledger)] = federate(plan, InProcess(site), start(plan, site.params()))
    told = ledger.reports["owners"]
    assert told["failed"] == {} and len(told["examples"]) == 3
    assert set(told["metrics"]) == {"loss", "exact_match", "micro_f1", "macro_f1"}
