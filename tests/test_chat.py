"""Conversations: what becomes of each token, and which tokens count."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from chatting import (
    ASSISTANT,
    FIVE,
    FORGETFUL,
    FOUR,
    IM_END,
    IM_START,
    MARKED,
    ONE,
    PLAIN,
    SIX,
    SYSTEM,
    THREE,
    TWO,
    USER,
    WORDS,
    save_chats,
    save_chatter,
    turns,
)
from exporting import done
from method_models import losses_of
from typer.testing import CliRunner

from fedpeft import DataError, InProcess, PlanError, federate, open_site, read_plan, start
from fedpeft.cli.app import app
from fedpeft.core.types import Table
from fedpeft.data.table import HubTable
from fedpeft.export.export import export_run
from fedpeft.tasks.causal_lm import CausalLM
from fedpeft.tasks.chat_templates import NAMED, chat_template
from fedpeft.tasks.conversations import NotUnderstood, read_conversation
from fedpeft.tasks.instructions import alpaca
from fedpeft.tasks.rendering import Renderer

SAID = turns("one two", "three", "four", "five six", system="one")
IDS = [
    *(IM_START, SYSTEM, ONE, IM_END),
    *(IM_START, USER, ONE, TWO, IM_END),
    *(IM_START, ASSISTANT, THREE, IM_END),
    *(IM_START, USER, FOUR, IM_END),
    *(IM_START, ASSISTANT, FIVE, SIX, IM_END),
]
MASK = [0] * 11 + [1, 1] + [0] * 6 + [1, 1, 1]
"""By hand: what the assistant says, and the sign that ends it."""


@pytest.fixture(scope="session")
def chatters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One model with each template of its own."""
    root = tmp_path_factory.mktemp("chatters")
    every = {"plain": PLAIN, "marked": MARKED, "forgetful": FORGETFUL, "none": None}
    return {name: str(save_chatter(root / name, text)) for name, text in every.items()}


def _task(base: str, **settings: Any) -> CausalLM:
    return CausalLM(base, **{"template": "own", "loss_on": "answer", "max_length": 64, **settings})


def _labels(ids: list[int], mask: list[int]) -> list[int]:
    return [token if told else -100 for token, told in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("which", ["plain", "marked"])
def test_of_several_turns_all_that_the_assistant_says_counts(
    which: str, chatters: dict[str, str]
) -> None:
    rows = _task(chatters[which]).prepare(Table({"messages": [SAID]}))
    assert rows["input_ids"].tolist() == [IDS]
    assert rows["labels"].tolist() == [_labels(IDS, MASK)]
    every = _task(chatters[which], loss_on="all").prepare(Table({"messages": [SAID]}))
    assert every["labels"].tolist() == [[-100, *IDS[1:]]]


@pytest.mark.parametrize("which", ["plain", "marked"])
def test_a_conversation_may_be_cut_within_an_answer(
    which: str, chatters: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """20 of 22 tokens: of the last answer the first word stays."""
    with caplog.at_level(logging.WARNING, "fedpeft"):
        rows = _task(chatters[which], max_length=20).prepare(
            Table({"messages": [SAID, turns("one", "two")]})
        )
    assert rows["input_ids"][0].tolist() == IDS[:20]
    assert rows["labels"][0].tolist() == _labels(IDS, MASK)[:20]
    assert rows["attention_mask"].sum(1).tolist() == [20, 8]
    assert caplog.messages == [
        "1 of 2 conversations are longer than max_length = 20 tokens: 2 tokens are cut off their "
        "ends, 2 of which the assistant says"
    ]


def test_chatml_has_the_same_tokens_after_the_one_that_begins_a_text(
    chatters: dict[str, str],
) -> None:
    rows = _task(chatters["none"], template="chatml").prepare(Table({"messages": [SAID]}))
    assert rows["input_ids"].tolist() == [[1, *IDS]]
    assert rows["labels"].tolist() == [_labels([1, *IDS], [0, *MASK])]


@pytest.mark.parametrize("name", NAMED)
def test_of_every_named_template_an_answer_is_what_comes_after_its_opening(
    name: str, chatters: dict[str, str]
) -> None:
    render = Renderer(chatters["none"], name, 500)
    chat = read_conversation(SAID)
    text, spans = render.spans(chat)
    end = {"chatml": "<|im_end|>\n", "llama3": "<|eot_id|>"}.get(name, "</s>")
    between = " " if name == "vicuna" else ""
    assert [text[a:b] for a, b in spans] == [f"{between}three{end}", f"{between}five six{end}"]
    opening = render.opening(chat[:-1])
    assert list(render(chat).ids[: len(opening)]) == opening


def test_one_turn_of_alpaca_is_alpacas_prompt(chatters: dict[str, str]) -> None:
    text, _ = Renderer(chatters["none"], "alpaca", 500).spans(
        read_conversation(turns("one", "two"))
    )
    assert text == "<s>" + alpaca("one") + "two</s>"


def test_vicunas_prompt_is_fastchats(chatters: dict[str, str]) -> None:
    text, _ = Renderer(chatters["none"], "vicuna", 500).spans(
        read_conversation(turns("one", "two", "three", "four"))
    )
    assert text == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
        "USER: one ASSISTANT: two</s>USER: three ASSISTANT: four</s>"
    )


def test_a_template_whose_beginnings_change_is_refused(chatters: dict[str, str]) -> None:
    with pytest.raises(PlanError, match="writes earlier messages otherwise once others follow"):
        _task(chatters["forgetful"]).prepare(Table({"messages": [SAID]}))
    with pytest.raises(PlanError, match="has no chat template of its own; name one of chatml"):
        _task(chatters["none"]).prepare(Table({"messages": [SAID]}))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("no JSON", "are no JSON"),
        (None, "no list of messages"),
        ("[]", "or an empty one"),
        ('"text"', "no list of messages"),
        (["one"], "without role and content"),
        ([{"role": "tool", "content": "one"}], "role is none of system, user, assistant"),
        ([{"role": ["user"], "content": "one"}], "role is none of"),
        ([{"role": "user", "content": [{"type": "image"}]}], "content is no text"),
        (turns("one"), "no message of the assistant"),
        ([*turns("one", "two"), *turns(system="one")], "system after the first one"),
    ],
)
def test_what_is_no_conversation_is_told(value: Any, why: str) -> None:
    with pytest.raises(NotUnderstood, match=why):
        read_conversation(value)


def test_other_ways_to_write_a_conversation() -> None:
    chat = read_conversation(turns("one", "two"))
    shared = [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]
    assert read_conversation("\ufeff" + json.dumps(turns("one", "two"))) == chat
    assert read_conversation(shared) == chat
    assert read_conversation({"conversations": shared}) == chat


def test_what_is_not_understood_is_left_out_before_the_data_are_divided(
    chatters: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lists of messages as they are, and two of which nothing is learned."""
    chats = [*[turns("one", "two")] * 10, turns("one"), turns("one two three four five", "six")]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"messages": chat, "k": 1}) + "\n" for chat in chats))
    plan = read_plan(
        {
            "task": {
                "name": "causal-lm",
                "model": chatters["plain"],
                "template": "own",
                "loss_on": "answer",
                "max_length": 9,
            },
            "data": {"name": "table", "path": str(file), "label": "none", "test_fraction": 0.25},
            "partition": {"name": "iid", "clients": 2},
            "cohort": 2,
        }
    )
    with caplog.at_level(logging.WARNING, "fedpeft"):
        site = open_site(plan)
    assert (
        sum(map(site.data.size, site.data.clients))
        + len(next(iter(site.data.held_out()))["labels"])
        == 10
    )
    told = caplog.messages[0]
    assert "1 conversation that has no message of the assistant" in told
    assert "1 conversation that has no answer within max_length = 9 tokens" in told
    notes = vars(site.data)["notes"]
    assert sum(n for why, n in notes.items() if why.startswith("left out: ")) == 2
    file.write_text((json.dumps({"messages": turns("one"), "k": 1}) + "\n") * 2)
    with pytest.raises(DataError, match="no example is left to train on"):
        open_site(replace(plan, data=HubTable(str(file), label="none", test_fraction=0.5)))


def test_instructions_become_conversations(chatters: dict[str, str]) -> None:
    columns: dict[str, list[str | None]]
    columns = {"instruction": ["one", None], "context": ["two", None], "response": ["three", "one"]}
    task = _task(chatters["plain"])
    assert task.unfit(Table(columns)) == {
        "conversations that have no 'instruction' or no 'response'": [1]
    }
    rows = task.prepare(Table({name: x[:1] for name, x in columns.items()}))
    assert rows["input_ids"].tolist() == [
        [IM_START, USER, ONE, TWO, IM_END, IM_START, ASSISTANT, THREE, IM_END]
    ]
    assert task.openings(Table({"messages": [SAID]}), 3) == [(IDS[:19], "five six")]


def test_a_packed_batch_has_the_losses_of_its_examples_alone(chatters: dict[str, str]) -> None:
    task = _task(chatters["plain"], packing=True, max_length=24)
    chats = [SAID, turns("one", "two"), turns("one", "two three four"), turns("six", "five")]
    rows = task.prepare(Table({"messages": chats}))
    plain, packed = task.batch(rows, None), task.batch(rows, torch.Generator())
    assert plain["input_ids"].shape == (4, 22)
    assert packed["input_ids"].shape == (3, 22)
    assert packed["segment"].tolist() == [
        [0] * 22,
        [2] * 10 + [1] * 8 + [-1] * 4,
        [3] * 8 + [-1] * 14,
    ]
    assert packed["position_ids"][1].tolist() == [*range(10), *range(8), 0, 0, 0, 0]
    model = task.build([]).eval()
    assert torch.allclose(
        losses_of(task, model, plain), losses_of(task, model, packed), rtol=1e-5, atol=1e-6
    )
    vars(model)["config"]._attn_implementation = "eager"
    assert torch.allclose(
        losses_of(task, model, plain), losses_of(task, model, packed), rtol=1e-5, atol=1e-6
    )


def test_a_model_that_mixes_a_rows_examples_is_not_packed(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    save_chatter(tmp_path, PLAIN)
    config = BloomConfig(vocab_size=14, hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(PlanError, match=r"leave out task\.packing"):
        _task(str(tmp_path), packing=True).build([])


def test_packing_has_no_example_to_clip(chatters: dict[str, str]) -> None:
    task = {"name": "causal-lm", "model": chatters["plain"], "packing": True}
    local = {"name": "dp_sgd", "noise_multiplier": 1.0}
    with pytest.raises(PlanError, match="several examples into one row"):
        read_plan({"task": task, "local": local, "weighting": "uniform"})


@pytest.mark.parametrize("packing", [False, True])
def test_a_federation_of_chats_learns(
    packing: bool, chatters: dict[str, str], tmp_path: Path
) -> None:
    plan = read_plan(
        {
            "task": {
                "name": "causal-lm",
                "model": chatters["plain"],
                "template": "own",
                "loss_on": "answer",
                "max_length": 32,
                "packing": packing,
            },
            "data": {"name": "table", "path": str(save_chats(tmp_path)), "label": "none"},
            "partition": {"name": "column", "column": "who"},
            "method": {"name": "lora", "target": ["q_proj", "v_proj"]},
            "local": {"lr": 0.02, "batch_size": 8, "optimizer": "adamw"},
            "rounds": 2,
            "cohort": 2,
        }
    )
    site = open_site(plan)
    found = [ledger for _, ledger in federate(plan, InProcess(site), start(plan, site.params()))]
    assert [ledger.failed for ledger in found] == [{}, {}]
    assert found[1].metrics["loss"].value < found[0].metrics["loss"].value


def test_what_is_exported_and_sampled_has_the_template_that_was_trained_with(
    chatters: dict[str, str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    run = done(
        tmp_path / "run",
        task={
            "name": "causal-lm",
            "model": chatters["none"],
            "template": "chatml",
            "max_length": 32,
        },
        data={"name": "table", "path": str(save_chats(tmp_path)), "label": "none"},
        partition={"name": "column", "column": "who"},
        method={"name": "lora", "target": ["q_proj", "v_proj"]},
        cohort=2,
    )
    export_run(run.folder.path, tmp_path / "out")
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert read.chat_template == NAMED["chatml"]
    made = read.apply_chat_template(turns("one"), add_generation_prompt=True)["input_ids"]
    assert made == [1, IM_START, USER, ONE, IM_END, IM_START, ASSISTANT]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "tokenizer.apply_chat_template(" in card
    assert f"eos_token_id=[2, {IM_END}]" in card
    told = CliRunner().invoke(app, ["evaluate", str(run.folder.path), "--sample", "2", "--json"])
    assert told.exit_code == 0, told.output
    samples = json.loads(told.stdout)["samples"]
    assert samples[0]["given"].startswith("user ")
    assert samples[0]["given"].endswith(" assistant")
    assert samples[0]["truth"] in WORDS


def test_plans_without_conversations_have_the_names_that_they_had() -> None:
    plan = read_plan({"task": {"name": "causal-lm", "template": "alpaca"}})
    assert "messages" not in plan.toml()
    assert "packing" not in plan.toml()
    packed = read_plan({"task": {"name": "causal-lm", "template": "alpaca", "packing": True}})
    assert read_plan(packed.toml()).fingerprint == packed.fingerprint != plan.fingerprint


def test_the_tokenizers_own_template_may_be_any_of_several(chatters: dict[str, str]) -> None:
    assert chat_template(chatters["marked"], "own") == MARKED


def test_data_without_conversations_and_without_instructions_are_told_of_both(
    chatters: dict[str, str],
) -> None:
    words = "without conversations in a column 'messages' learns from a column 'instruction'"
    with pytest.raises(DataError, match=words):
        _task(chatters["plain"], template="chatml").unfit(Table({"who": ["ann"]}))
