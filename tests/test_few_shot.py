"""Few-shot classes: the loss by hand, episodes, marked parts of texts, and clients with disjoint
classes."""

from math import isnan, log
from pathlib import Path
from typing import Any

import pytest
import torch
from text_runs import check_stacked, run_of, save_bert, write_rows
from torch import Tensor

from fedpeft import DataError, InProcess, PlanError, federate, open_site, read_plan, start
from fedpeft.compute.objective import Objective
from fedpeft.core.outputs import PREDICTION
from fedpeft.core.types import Table, Weighted
from fedpeft.tasks.few_shot import SPAN, FewShot
from fedpeft.tasks.prototypes import all_losses, batch_losses, episode_draws, episode_hits

MARKS = ("<a>", "</a>", "<b>", "</b>")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None]


def test_the_loss_of_three_examples_by_hand() -> None:
    """With logits −ln 3·distance²: 0 is 1 from its class and 2 from the other, 1 is 1 from both,
    and 2 is alone of its class."""
    label, scale = torch.tensor([7, 7, 4]), log(3)
    losses = batch_losses(column(0, 1, 2), label, torch.ones(3), scale)
    assert losses.tolist() == pytest.approx([log(28 / 27), log(2), 0])


def test_a_class_counts_once_however_many_examples_it_has() -> None:
    """0 is 1 from its class and 2 from that of the two at 2, whose others are at 2 themselves."""
    label, scale = torch.tensor([0, 0, 1, 1]), log(3)
    losses = batch_losses(column(0, 1, 2, 2), label, torch.ones(4), scale)
    from_half = log(1 + 3**-2.25)  # the mean of 0 and 1 is 1.5 from 2
    assert losses.tolist() == pytest.approx([log(28 / 27), log(2), from_half, from_half], rel=1e-4)


def test_what_fills_a_batch_up_changes_nothing_and_both_forms_agree() -> None:
    draws = torch.Generator().manual_seed(0)
    z, label = torch.randn(12, 3, generator=draws), torch.randint(4, (12,), generator=draws)
    whole = batch_losses(z, label, torch.ones(12), 2.0)
    torch.testing.assert_close(all_losses(z, label, torch.ones(12), 2.0), whole)
    filled = torch.cat([z, z[-1:], z[-1:]]), torch.cat([label, label[-1:], label[-1:]])
    mask = torch.tensor([1.0] * 12 + [0.0] * 2)
    for losses in (batch_losses, all_losses):
        told = losses(*filled, mask, 2.0)
        torch.testing.assert_close(told, torch.cat([whole, torch.zeros(2)]))


def hits(z: Tensor, label: Tensor, **other: int) -> Weighted:
    settings = {"ways": 3, "shots": 1, "queries": 2, "times": 40, **other}
    told = episode_hits(z, label, draws=episode_draws(1), **settings)
    return Weighted(float(told.totals.sum()), float(told.weights.sum()))


def test_episodes_ask_for_classes_that_are_told_by_their_examples() -> None:
    label = torch.arange(5).repeat_interleave(4)
    apart = 10.0 * label[:, None] + torch.arange(20.0)[:, None] % 4 / 10
    assert hits(apart, label) == Weighted(240.0, 240.0)
    # Where all texts are one point, one class of three is named for all.
    assert hits(torch.zeros(20, 1), label) == Weighted(80.0, 240.0)
    assert hits(torch.randn(20, 2), label).value < 0.8


def test_too_few_classes_or_texts_have_no_accuracy() -> None:
    label = torch.arange(2).repeat_interleave(4)
    assert isnan(hits(torch.zeros(8, 1), label).value)
    assert isnan(hits(torch.zeros(8, 1), label, ways=2, shots=3).value)
    assert hits(torch.zeros(8, 1), label, ways=2, shots=2).weight == 160


def test_an_embedding_is_of_what_the_marks_enclose(bert: Path) -> None:
    task = FewShot(str(bert), marks=MARKS, max_length=24)
    texts = ["a <a> good </a> film <b>very  bad </b>", "<b> bad </b> <a> goodly </a>"]
    table = Table({"text": texts, "group": ["x", "y"]})
    batch = task.batch(task.prepare(table), None)
    read = task.build([]).eval()
    words = [
        [batch["input_ids"][k][batch[SPAN][k] == part].tolist() for part in (1, 2)] for k in (0, 1)
    ]
    assert words == [[[5], [8, 6]], [[5, 9], [6]]]  # the numbers of good, very, bad and ##ly
    told = task.forward(read, batch)[PREDICTION]
    assert told.shape == (2, 32)
    assert torch.allclose(told.norm(dim=1), torch.ones(2))
    states = read(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])[0]
    both = torch.cat([states[0][batch[SPAN][0] == part].mean(0) for part in (1, 2)])
    assert torch.allclose(told[0], both / both.norm(), atol=1e-5)


def test_texts_without_their_parts_are_left_out_and_counted(bert: Path) -> None:
    texts = ["<a> a </a> <b> a </b>", "<a> a </a>", "<a> </a> <b> a </b>", "", "<a> a <b> a </b>"]
    far = "a " * 30 + texts[0]
    task = FewShot(str(bert), marks=MARKS, max_length=20)
    table = Table({"text": [*texts, far], "group": [3, 3, 3, 3, 3, 3]})
    assert task.unfit(table) == {
        "texts without something between all marks in 20 tokens": [1, 2, 3, 4, 5]
    }
    without = Table({"text": texts, "group": ["x", None, "x", "y", "y"]})
    assert FewShot(str(bert), max_length=20).unfit(without) == {"texts without 'group'": [1]}


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"marks": ("<a>",)}, "open and close each part"),
        ({"marks": ("<a>", "")}, "open and close each part"),
        ({"ways": 1}, "ways is a number of classes, at least 2"),
        ({"shots": 0}, "shots must be at least 1"),
        ({"scale": 0.0}, "scale must be positive"),
    ],
)
def test_bad_keys(keys: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FewShot(**keys)


def test_examples_without_classes_and_gradients_of_one_text_are_refused(bert: Path) -> None:
    task = FewShot(str(bert), max_length=8)
    with pytest.raises(DataError, match=r"few-shot learning learns from a column 'group'"):
        task.prepare(Table({"text": ["a"]}))
    with pytest.raises(PlanError, match="none has a gradient of its own"):
        Objective(task.build([]), task).gradients({}, task.example())


def test_owners_cannot_claim_more_answers_than_episodes_ask() -> None:
    task = FewShot(episodes=2, ways=2, queries=3)
    task.check_sums({"accuracy": Weighted(12.0, 12.0)}, 99)
    for total, weight in ((13.0, 13.0), (5.0, 4.0), (-1.0, 4.0)):
        with pytest.raises(ValueError, match="episodes ask 12 questions"):
            task.check_sums({"accuracy": Weighted(total, weight)}, 99)


def write_classes(folder: Path) -> Path:
    """Three clients with two classes each, and a test of two classes that none of them has."""
    folder.mkdir()
    kinds = ("good", "bad", "film", "very", "a", "goodly", "badly good", "filmly very")
    for name, first, last in (("train", 0, 6), ("test", 6, 8)):
        rows = (
            {"text": f"{kinds[k]} {kinds[(k + j) % 6]}", "group": k, "client": f"c{k // 2}"}
            for k in range(first, last)
            for j in range(8)
        )
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


def plan_of(bert: Path, folder: Path, **other: Any) -> dict[str, Any]:
    task = {"name": "few-shot", "model": str(bert), "max_length": 8, "ways": 2, "episodes": 20}
    changes = run_of(task, folder, method="full", **other)
    changes["partition"] = {"name": "column", "column": "client"}
    changes["local"] = {"lr": 0.01, "batch_size": 8, "epochs": 1, "optimizer": "adamw"}
    return changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("classes") / "rows")


def test_clients_with_disjoint_classes_learn_together(bert: Path, folder: Path) -> None:
    plan = read_plan(plan_of(bert, folder, rounds=3))
    site = open_site(plan)
    assert not any("classifier" in name or "head" in name for name in site.params())
    begin = start(plan, site.params())
    *_, (state, ledger) = federate(plan, InProcess(site), begin)
    assert not ledger.failed and len(ledger.weights) == 3
    batch = next(iter(site.data.training("c0")))
    before, after = (
        float(Objective(site.model, site.task)(one.params, batch).mean()) for one in (begin, state)
    )
    assert after < 0.8 * before


def test_a_stack_of_clients_ends_where_one_after_another_does(bert: Path, folder: Path) -> None:
    check_stacked(plan_of(bert, folder))
