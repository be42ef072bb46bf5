"""Answers to questions about a picture: which tokens count, what is left out, where methods go, how
pictures of several sizes lie in a batch, and what becomes of a run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import losses_of
from text_runs import write_rows
from tiny_vlm import (
    ASKED,
    EVERY,
    changes,
    save_squares,
    square,
    task_of,
)
from torch import Tensor, nn

from fedpeft import DataError, PlanError, open_site, read_plan
from fedpeft.core.outputs import COUNTED, LOGITS
from fedpeft.core.types import Table
from fedpeft.forecasts.forecast import forecast
from fedpeft.tasks.image_text_to_text import ImageTextToText
from fedpeft.tasks.picture_rows import crop_rows, model_inputs, stack_examples
from tools.models.folders import save_family
from tools.models.vision_language import SIDE, SIGNS, save_vlm

NOT = -100


@pytest.fixture(scope="module", params=EVERY)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp(family), family)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp("llava"), "llava")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_squares(tmp_path_factory.mktemp("squares"))


def read_by_hand(folder: Path) -> tuple[ImageTextToText, Table, Mapping[str, int]]:
    """Two conversations, one of them of two answers after a word of the system's."""
    from transformers import AutoTokenizer

    talk = [
        {"role": "system", "content": "a square"},
        {"role": "user", "content": f"<image>\n{ASKED}"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "is this a square"},
        {"role": "assistant", "content": "a red square"},
    ]
    other = [{"from": "human", "value": "what"}, {"from": "gpt", "value": "blue"}]
    columns = {"image": [square("red"), square("blue")], "messages": [talk, other]}
    words = AutoTokenizer.from_pretrained(folder).get_vocab()
    return ImageTextToText(str(folder), max_length=64), Table(columns), words


def test_what_the_assistant_says_alone_counts(llava: Path) -> None:
    task, both, words = read_by_hand(llava)
    rows = task.prepare(both)
    wanted = (
        "system a square </s> user <image> <image> <image> <image> what colour is this </s> "
        "assistant | red </s> | user is this a square </s> assistant | a red square </s> |"
    )
    ids, labels, counted = [], [], False
    for word in wanted.split():
        if word == "|":
            counted = not counted
            continue
        ids.append(words[word])
        labels.append(words[word] if counted else NOT)
    assert rows["input_ids"][0].tolist() == ids and rows["labels"][0].tolist() == labels
    short = [words[word] for word in ["blue", "</s>"]]
    assert [x for x in rows["labels"][1].tolist() if x != NOT] == short
    assert rows["attention_mask"].sum(1).tolist() == [len(ids), 10]
    assert rows["picture/pixel_values"].shape == (2, 1, 3, SIDE, SIDE)
    batch = task.batch(rows, None)
    # from the token before the batch's first answer on, a token's label is the one that follows it
    first = rows["labels"][1].tolist().index(words["blue"])
    assert first == 8 and batch["labels"].shape == (2, len(ids) - first + 1)
    assert batch["labels"][0].tolist() == [*labels[first:], NOT]


def test_the_loss_is_that_of_transformers_and_others_in_a_batch_change_nothing(
    folder: Path,
) -> None:
    task = ImageTextToText(str(folder), prompt=ASKED, max_length=32)
    shapes = ((SIDE, SIDE), (2 * SIDE, SIDE), (SIDE, 2 * SIDE))
    pictures = [square("red", *shapes[0]), square("blue", *shapes[1]), square("green", *shapes[2])]
    rows = task.prepare(Table({"image": pictures, "text": ["red", "a blue square", "green"]}))
    model: Any = task.build([]).eval().requires_grad_(False)
    together = losses_of(task, model, task.batch(rows, None))
    for k in range(3):
        alone = task.batch({name: x[k : k + 1] for name, x in rows.items()}, None)
        tokens = int(rows["attention_mask"][k].sum())
        theirs = model(**model_inputs(alone), labels=rows["labels"][k : k + 1, :tokens].long())
        assert float(together[k]) == pytest.approx(float(theirs.loss), rel=1e-4)
        assert float(losses_of(task, model, alone)[0]) == pytest.approx(float(theirs.loss), 1e-4)
    batch = task.batch(rows, None)
    outputs = task.forward(model, batch)
    assert outputs[COUNTED].sum(1).tolist() == [2, 4, 2]
    # from the first token of any answer on: where pictures take unequal numbers of tokens, as in
    # Idefics 3, the shortest row's answer begins earlier than that of the longest
    width, told = batch["input_ids"].shape[1], (rows["labels"] != NOT).any(0).nonzero()
    most = width - int(told.min()) + 1
    assert outputs[LOGITS].shape[1] == most < width, "of the other tokens no logits are made"


def test_rows_of_pictures_lie_one_after_another() -> None:
    """Two patches and one, of which a model wants three, with no filling between them."""

    def one(tokens: int, patches: int) -> dict[str, Tensor]:
        ids = torch.arange(1, tokens + 1)[None]
        labels = ids[0].clone()
        labels[:2] = NOT
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.full((patches, 2), float(patches)),
            "grid": torch.tensor([[1, 1, patches]]),
            "labels": labels,
        }

    rows = stack_examples([one(5, 2), one(3, 1), one(4, 2)], padding=9)
    assert rows["input_ids"].tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 9, 9], [1, 2, 3, 4, 9]]
    assert rows["number/pixel_values"].tolist() == [2, 1, 2]
    batch = crop_rows({name: x[:2] for name, x in rows.items()})
    given = model_inputs(batch)
    assert given["pixel_values"].tolist() == [[2, 2], [2, 2], [1, 1]]
    assert given["grid"].tolist() == [[1, 1, 2], [1, 1, 1]] and "labels" not in given
    assert batch["labels"].tolist() == [[3, 4, 5, NOT], [3, NOT, NOT, NOT]]
    alike = crop_rows({name: x[[0, 2]] for name, x in rows.items()})
    assert "number/pixel_values" not in alike, "what clients in a stack could not have"
    assert model_inputs(alike)["pixel_values"].shape == (4, 2)


def test_rows_of_which_nothing_is_learned_are_counted_and_the_rest_goes_on(
    llava: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    square("red").save(tmp_path / "red.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])
    good = {"image": ["red.png"], "asked": ASKED, "reply": "red"}
    bad: list[dict[str, Any]] = [
        {"image": ["torn.png"]},
        {"image": ["nowhere.png"]},
        {"image": []},
        {"image": None},
        {"image": ["red.png", "red.png"]},
        {"reply": ""},
        {"reply": " "},
        {"reply": None},
        {"asked": None},
        {"asked": "<image> is <image>"},
        {"asked": "what " * 30},
    ]
    file = write_rows(tmp_path / "rows.jsonl", [good, *({**good, **one} for one in bad), good])
    data: dict[str, Any] = {"name": "table", "path": str(file), "label": "none"}
    data |= {"image": "image", "test_fraction": 0}
    task = task_of(llava, question="asked", answer="reply")
    plan = read_plan({"task": task, "data": data, "partition": {"name": "iid", "clients": 1}})
    with caplog.at_level(logging.WARNING, "fedpeft"):
        examples = plan.examples()
    assert len(examples.train) == 2
    assert examples.left_out == {
        "examples that have a picture that cannot be read": 2,
        "examples that have no picture": 2,
        "examples that have more pictures than one": 1,
        "examples that have no 'reply'": 3,
        "examples that have no 'asked'": 1,
        "examples that show more pictures than one": 1,
        "examples that have no answer within max_length = 32 tokens": 1,
    }
    assert "2 examples that have a picture that cannot be read; " in caplog.text
    assert "torn.png cannot be read" in caplog.text and "nowhere.png" not in caplog.text
    assert all(bool((x["labels"] != NOT).any()) for x in [plan.task.prepare(examples.train)])


def test_forms_of_conversations(llava: Path) -> None:
    """Lists of parts, the mark in a later question, and marks where none may be."""
    task = ImageTextToText(str(llava), max_length=64)
    picture = {"type": "image"}
    parts = [
        {"role": "user", "content": [picture, {"type": "text", "text": ASKED}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    late = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "is this"},
        {"role": "assistant", "content": "red"},
    ]
    marked = [*late[:2], {"role": "user", "content": "<image>\nis this"}, late[3]]
    said = [parts[0], {"role": "assistant", "content": "<image> red"}]
    answered = [{"role": "user", "content": "a"}, said[1]]
    sound = [{"role": "user", "content": [{"type": "audio"}]}, parts[1]]
    talks = [parts, late, marked, said, answered, sound, late[:1], None]
    columns: dict[str, list[Any]] = {"image": [square("red")] * len(talks), "messages": talks}
    assert {why.removeprefix("examples that "): rows for why, rows in task.unfit(
        Table(columns)
    ).items()} == {
        "show more pictures than one": [3],
        "show their picture outside of what the user says": [4],
        "have a part of a message that is no text and no picture (audio)": [5],
        "have no message of the assistant": [6],
        "are no list of messages, or an empty one": [7],
    }  # fmt: skip
    rows = task.prepare(Table({name: x[:3] for name, x in columns.items()}))
    sign = int(rows["input_ids"][0, 1])
    places = [(row == sign).nonzero().flatten().tolist() for row in rows["input_ids"]]
    assert places == [[1, 2, 3, 4], [1, 2, 3, 4], [7, 8, 9, 10]]
    with pytest.raises(DataError, match="row 6 is one of those that have no message of the assis"):
        task.prepare(Table(columns | {"messages": [*talks[:3], parts, parts, parts, *talks[6:]]}))


def test_what_is_cut_and_what_is_asked_of_all_is_told(
    llava: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = ImageTextToText(str(llava), prompt=ASKED, max_length=10)
    columns = {"image": [square("red")] * 2, "text": ["red", "a red square is this"]}
    with caplog.at_level(logging.WARNING, "fedpeft"):
        rows = task.prepare(Table(columns))
    assert "1 of 2 conversations are longer than max_length = 10 tokens: 4 tokens" in caplog.text
    assert f"of each picture is asked '{ASKED}'" in caplog.text
    assert rows["attention_mask"].sum(1).tolist() == [13, 13], "the picture's come on top"
    assert (rows["labels"] != NOT).sum(1).tolist() == [2, 2]


def test_what_is_asked_is_not_taken_for_the_answer(llava: Path, tmp_path: Path) -> None:
    """A table's column `question` is its `text` where no key says otherwise."""
    square("red").save(tmp_path / "red.png")
    row = {"image": "red.png", "question": ASKED, "answer": "red"}
    file = write_rows(tmp_path / "rows.jsonl", [row, row])

    def first(answer: str, **text: str) -> list[int]:
        data = {"name": "table", "path": str(file), "label": "none", "test_fraction": 0, **text}
        task = task_of(llava, prompt="a", answer=answer)
        plan = read_plan({"task": task, "data": data})
        found: list[int] = plan.task.prepare(plan.examples().train)["input_ids"][0].tolist()
        return found

    assert first("answer") == first("text", text="answer")
    with pytest.raises(DataError, match="to the column of answers"):
        first("text")


@pytest.mark.parametrize("target", [["language"], ["vision"], ["language", "vision"], []])
def test_a_method_goes_into_the_part_that_is_named(folder: Path, target: list[str]) -> None:
    plan = read_plan({"task": task_of(folder), "method": {"name": "lora", "target": target}})
    names = list(plan.method.names(plan.model(())))
    eye = [name for name in names if ".vision_" in name or ".visual." in name]
    assert bool(eye) == ("vision" in target or not target)
    assert bool(set(names) - set(eye)) == ("language" in target or not target)
    assert all(".lora_" in name for name in names)


def test_other_methods_know_the_parts_and_an_error_names_them(llava: Path) -> None:
    def names(method: Any) -> list[str]:
        plan = read_plan({"task": task_of(llava), "method": method})
        return list(plan.method.names(plan.model(())))

    keys = names({"name": "ia3", "target": ["vision"]})
    assert any("vision_tower" in name and "k_proj" in name for name in keys)
    assert not any("vision_tower" in name and "q_proj" in name for name in keys)
    assert not any("language_model" in name and "_proj" in name and "self_attn" in name
                   for name in keys)  # fmt: skip
    with pytest.raises(PlanError, match=r"'visoin'.*Did you mean 'vision'"):
        names({"name": "lora", "target": ["visoin"]})
    every = names({"name": "lora", "target": ["*multi_modal_projector*"]})
    assert every and all("multi_modal_projector" in name for name in every)


def test_models_that_do_not_fit(llava: Path, table: Path, tmp_path: Path) -> None:
    def refused(folder: Path, **settings: Any) -> str:
        with pytest.raises(PlanError) as raised:
            open_site(read_plan(changes(folder, table, task=task_of(folder, **settings))))
        return str(raised.value)

    text = save_family(tmp_path / "text", "llama", "AutoModelForCausalLM")
    assert "has no processor of pictures and texts" in refused(text)
    with pytest.raises(PlanError, match="is none that sees a picture and writes"):
        ImageTextToText(str(text)).build([])
    assert "takes at most 256 tokens" in refused(llava, max_length=300)
    assert "neither a folder" in refused(tmp_path / "nowhere")
    for settings, words in (
        ({"max_length": 1}, "at least 2, got 1"),
        ({"prompt": " "}, "got an empty text"),
        ({"template": "none"}, "no template called 'none'"),
    ):
        with pytest.raises(PlanError, match=words):
            read_plan({"task": task_of(llava, **settings)})


def test_a_picture_may_make_an_example_too_long(llava: Path) -> None:
    """Of 256 positions 252 are left beside the four of the picture."""
    task = ImageTextToText(str(llava), prompt=ASKED, max_length=256)
    texts = ["a " * 300, "a " * 240]
    found = task.unfit(Table({"image": [square("red")] * 2, "text": texts}))
    assert found == {"examples that are longer than the model's 256 tokens with their picture": [0]}


def test_costs_are_forecast_by_an_answer_as_long_as_may_be(llava: Path) -> None:
    task = ImageTextToText(str(llava), max_length=32)
    short, long = task.example(), task.longest_example()
    assert long["input_ids"].shape[1] == 32 + 3  # four tokens in the place of one
    assert short["input_ids"].shape[1] < 20
    assert SIGNS["llava"] == ("<image>",) and isinstance(task.build([]), nn.Module)


def test_a_plan_is_forecast_though_its_model_looks_at_values(folder: Path) -> None:
    """LLaVA counts the places of a picture, and Idefics3 looks for pictures that are not black;
    shapes tell neither. Owners' examples are not here, and the task has no classes to name."""
    plan = read_plan(
        {
            "rounds": 1,
            "cohort": 2,
            "method": "lora",
            "task": {"max_length": 32, **task_of(folder)},
            "data": {"name": "table", "path": "theirs", "label": "none"},
            "nodes": {"names": ["a", "b"]},
        }
    )
    found = forecast(plan, examples_each=8)
    assert found.training.error == "" and found.training.step_flop > 1e6
    assert found.traffic.total(0) > 0 and not [x for x in found.notes if "weights are not" in x]
