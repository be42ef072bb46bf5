"""Answers to questions about a picture: which tokens count, what is left out, where methods go, how
pictures of several sizes lie in a batch, and what becomes of a run."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families import save_family
from method_models import losses_of
from text_runs import Exported, check_processes, write_rows
from tiny_vlm import COLOURS, FAMILIES, SIDE, SIGNS, save_squares, save_vlm, square
from torch import Tensor, nn

from fedpeft import DataError, InProcess, PlanError, federate, open_site, read_plan, start
from fedpeft.core.outputs import COUNTED, LOGITS
from fedpeft.core.tensors import equal
from fedpeft.core.types import Table
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.evaluation.measure import measure
from fedpeft.oneshot.contribute import contribute, from_partition
from fedpeft.oneshot.fingerprints import transforms_digest
from fedpeft.oneshot.invitation import invite, read_invitation
from fedpeft.oneshot.keys import make_signing_key, signing_key
from fedpeft.oneshot.merge import merge
from fedpeft.oneshot.rules import Rules
from fedpeft.results.samples import sample_answers
from fedpeft.rounds.site import Site
from fedpeft.storage.files import load_tensors
from fedpeft.tasks.image_text_to_text import ImageTextToText
from fedpeft.tasks.picture_rows import crop_rows, model_inputs, stack_examples

FILMS = pytest.mark.skipif(
    find_spec("torchvision") is None, reason="Qwen-VL's processor needs torchvision"
)
ASKED, NOT = "what colour is this", -100
EVERY = [
    "llava",
    *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES[2:]),
    pytest.param("qwen2_vl", marks=[pytest.mark.slow, FILMS]),
]


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


def task_of(folder: Path, **settings: Any) -> dict[str, Any]:
    name = {"name": "image-text-to-text", "model": str(folder)}
    return {**name, "prompt": ASKED, "max_length": 32, **settings}


def changes(folder: Path, table: Path, **other: Any) -> dict[str, Any]:
    return {
        "task": task_of(folder),
        "data": {"name": "table", "path": str(table), "label": "none", "test_fraction": 0.25},
        "partition": {"name": "column", "column": "who"},
        "method": {"name": "lora", "rank": 2},
        "local": {"batch_size": 4, "lr": 0.02, "optimizer": "adamw"},
        "rounds": 1,
        "cohort": 2,
        **other,
    }


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
    outputs = task.forward(model, task.batch(rows, None))
    assert outputs[COUNTED].sum(1).tolist() == [2, 4, 2]
    assert outputs[LOGITS].shape[1] == 5, "of the other tokens no logits are made"


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
    data = {"name": "table", "path": str(file), "label": "none", "image": "image"}
    data = {**data, "test_fraction": 0}
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
    assert "left out are 2 examples that have a picture that cannot be read; " in caplog.text
    assert "torn.png cannot be read" in caplog.text
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
    columns = {"image": [square("red")] * len(talks), "messages": talks}
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
    with pytest.raises(DataError, match="set data.text, or task.answer, to the column of answers"):
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


def trained(site: Site) -> tuple[Mapping[str, Tensor], Any]:
    plan = site.plan
    ((state, ledger),) = federate(plan, InProcess(site), start(plan, site.params()))
    return state.flat, ledger


def test_a_step_of_lora_moves_both_parts(folder: Path, table: Path) -> None:
    plan = read_plan(changes(folder, table))
    site = open_site(plan)
    before = site.params()
    after, ledger = trained(site)
    assert not ledger.failed and list(site.data.clients) == ["ann", "bob"]
    for part in (".vision_", ".visual."), ("language_model", "text_model"):
        mine = [name for name in before if any(one in name for one in part) and "lora_B" in name]
        assert mine and all(bool((after[name] != before[name]).any()) for name in mine)


@pytest.mark.parametrize("merge", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_exported_says_the_same_and_writes(
    folder: Path, table: Path, tmp_path: Path, merge: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Exported(changes(folder, table), tmp_path, merge)
    batch, ours = run.forward()
    with torch.inference_mode():
        theirs = run.names["model"](**model_inputs(batch)).logits[:, -ours[LOGITS].shape[1] :]
    torch.testing.assert_close(theirs, ours[LOGITS], rtol=1e-4, atol=1e-5)
    assert "text_config" not in run.loading
    exec(run.usage, {**run.names, "picture": square("red", 2 * SIDE)})
    assert capsys.readouterr().out.startswith("user")


@pytest.mark.slow
def test_a_named_template_is_exported_with_its_mark(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_vlm(tmp_path / "plain", "llava", template=False)
    with pytest.raises(PlanError, match="has no chat template of its own; name one of"):
        open_site(read_plan(changes(model, table)))
    run = Exported(changes(model, table, task=task_of(model, template="vicuna")), tmp_path)
    assert '"content": "<image>\\n..."' in run.usage
    exec(run.usage, {**run.names, "picture": square("red")})
    assert "ASSISTANT" in run.names["processor"].chat_template
    own, other = (transforms_digest(ImageTextToText(str(model), template=t, max_length=8))
                  for t in ("vicuna", "alpaca"))  # fmt: skip
    assert own != other


@pytest.mark.slow
def test_engines_agree(llava: Path, table: Path) -> None:
    """Clients in a stack are trained one after another, which a line says."""
    plan = changes(llava, table)
    check_processes(plan)
    site = open_site(read_plan(plan))
    cohort = Cohort(site)
    ((state, ledger),) = federate(site.plan, cohort, start(site.plan, site.params()))
    assert not ledger.failed and "vmap" in cohort.alone
    assert equal(state.flat, trained(site)[0])


@pytest.mark.slow
def test_a_file_from_each_owner_comes_to_the_run_of_one_round(
    llava: Path, table: Path, tmp_path: Path
) -> None:
    plan = read_plan(changes(llava, table))
    invite(plan, tmp_path / "study")
    given, files = read_invitation(tmp_path / "study"), []
    for number in range(2):
        who = from_partition(given, number)
        private, _ = make_signing_key(who.client, tmp_path)
        files.append(tmp_path / f"{who.client}.safetensors")
        files[-1].write_bytes(contribute(given, who, signing_key(private), lambda: None)[1])
    merge(tmp_path / "study", files, tmp_path / "merged", Rules())
    got, _ = load_tensors(tmp_path / "merged" / "checkpoint" / "state.safetensors")
    got = {name.partition("/")[2]: x for name, x in got.items() if name.startswith("params/")}
    assert equal(trained(open_site(plan))[0], got)


@pytest.mark.slow
def test_each_example_has_a_gradient_of_its_own(llava: Path, table: Path) -> None:
    local = {"name": "dp_sgd", "batch_size": 8, "lr": 0.02, "clip_norm": 1.0}
    local |= {"noise_multiplier": 1.0, "rate": 0.5, "steps": 2}
    private = {"weighting": "uniform", "privacy": {"delta": 1e-5}, "local": local}
    assert not trained(open_site(read_plan(changes(llava, table, **private))))[1].failed
    small = {"compute": {"micro_batch": 2, "checkpointing": True}}
    assert not trained(open_site(read_plan(changes(llava, table, **small))))[1].failed


@pytest.mark.slow
def test_the_picture_is_seen(llava: Path, tmp_path: Path) -> None:
    """After overfitting, the colour of each square is told. Where a picture says nothing of its
    name, the loss stays at that of a guess among four, ln 4 for two tokens."""

    def learned(names: list[str]) -> tuple[float, list[str]]:
        root = tmp_path / "".join(name[0] for name in names)
        root.mkdir()
        rows = []
        for k, name in enumerate(names):
            square(list(COLOURS)[k % 4]).save(root / f"{k}.png")
            rows.append({"image": f"{k}.png", "text": name})
        file = write_rows(root / "rows.jsonl", rows)
        local = {"batch_size": 16, "lr": 0.01, "optimizer": "adamw", "epochs": 80}
        one = {"partition": {"name": "iid", "clients": 1}, "cohort": 1, "method": "full"}
        data = {"name": "table", "path": str(file), "label": "none", "test_fraction": 0.5}
        site = open_site(read_plan(changes(llava, file, **one, local=local, data=data)))
        ((state, _),) = federate(site.plan, InProcess(site), start(site.plan, site.params()))
        said = sample_answers(site, state, 8)
        right = [one.after == one.truth for one in said]
        return measure(site, state.params)["loss"], [str(x) for x in right]

    each = list(COLOURS)
    loss, right = learned(each * 8)
    assert loss < 0.05 and set(right) == {"True"}
    mixed = [each[(k // 4 + k) % 4] for k in range(32)]  # each colour has each name twice
    other, _ = learned(mixed)
    assert other > 0.6


def test_a_base_in_bfloat16_is_trained_beside(tmp_path: Path, table: Path) -> None:
    large = save_vlm(tmp_path, "llava", hidden_size=96, head_dim=48)
    task = task_of(large, quantize="bfloat16")
    site = open_site(read_plan(changes(large, table, task=task)))
    kept = {x.dtype for x in site.model.parameters()}
    assert torch.bfloat16 in kept and not trained(site)[1].failed
    with pytest.raises(PlanError, match=r"quantize"):
        read_plan({"task": task_of(large, quantize="nf4")})


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
