"""Language models that read left to right: what counts, by how much, and what comes of a run."""

import json
from collections.abc import Mapping
from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import done, loaded_elsewhere
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedpeft import Cohort, DataError, InProcess, PlanError, evaluate, federate, open_site, read_plan, start
from fedpeft.cli.app import app
from fedpeft.core.seeds import generator
from fedpeft.core.stores import Folder
from fedpeft.core.types import Table, Weighted
from fedpeft.data.table import HubTable
from fedpeft.partitions.column import Column
from fedpeft.partitions.dirichlet import Dirichlet
from fedpeft.partitions.iid import IID
from fedpeft.partitions.lists import Lists
from fedpeft.partitions.redrawn import Redrawn
from fedpeft.partitions.shards import Shards
from fedpeft.report.study import Measure
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.division import division_at
from fedpeft.runs.export import export_run
from fedpeft.runs.measure import measure, over_clients
from fedpeft.tasks.causal_lm import CausalLM
from fedpeft.tasks.instructions import alpaca

WORDS = ("one", "two", "three", "four", "five", "six")
BEGIN, END = 1, 2
METHODS = ("lora", "full", "prefix", "ia3", "adapter")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 16 dimensions with random weights, and a tokenizer of one token a word: <s> 1, </s> 2, one 3, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    vocabulary = {word: k for k, word in enumerate(("<unk>", "<s>", "</s>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers who count, each from a number of its own, and an empty line of each."""
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [
        {"who": who, "text": " ".join(WORDS[(k + j) % 6] for j in range(k % 5 + at))}
        for k in range(30)
        for at, who in enumerate(("ann", "bob"))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def changes(llama: Path, texts: Path, **other: Any) -> dict[str, Any]:
    return {
        "task": {"name": "causal-lm", "model": str(llama), "max_length": 16},
        "data": {"name": "table", "path": str(texts), "label": "none"},
        "partition": {"name": "column", "column": "who"},
        "local": {"lr": 0.01, "batch_size": 4, "optimizer": "adamw"},
        "cohort": 2,
        **other,
    }


def test_the_template_is_alpacas() -> None:
    assert alpaca("Add.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n"
    )
    assert alpaca("Add.", "1, 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n"
    )
    assert alpaca("Use {braces}.", "") == alpaca("Use {braces}.")


def test_a_text_has_a_beginning_and_an_end_and_all_but_the_first_token_count(llama: Path) -> None:
    task = CausalLM(str(llama), max_length=5)
    rows = task.prepare(Table({"text": ["one two", "", "one two three four five six"]}))
    assert rows["input_ids"].dtype == torch.int32
    assert rows["input_ids"].tolist() == [[BEGIN, 3, 4, END, END], [BEGIN, END, END, END, END], [BEGIN, 3, 4, 5, 6]]
    assert rows["attention_mask"].sum(1).tolist() == [4, 2, 5]
    assert rows["labels"].tolist() == [[-100, 3, 4, END, -100], [-100, END, -100, -100, -100], [-100, 3, 4, 5, 6]]
    batch = task.batch({name: x[:2] for name, x in rows.items()}, None)
    assert {name: tuple(x.shape) for name, x in batch.items()} == dict.fromkeys(batch, (2, 4))


def test_of_an_instruction_the_answer_may_be_all_that_counts(llama: Path) -> None:
    columns = {"instruction": ["one"], "context": [None], "response": ["two three"]}
    given = CausalLM(str(llama), "alpaca", max_length=128)
    every, answer = (replace(given, loss_on=what).prepare(Table(columns)) for what in ("all", "answer"))
    assert torch.equal(every["input_ids"], answer["input_ids"])
    assert every["input_ids"][0, -3:].tolist() == [4, 5, END]
    length = every["input_ids"].shape[1]
    assert (every["labels"] != -100).sum() == length - 1
    assert answer["labels"][0].tolist() == [-100] * (length - 3) + [4, 5, END]


def test_what_is_too_long_loses_the_beginning_of_its_prompt_and_the_end_of_its_answer(llama: Path) -> None:
    """9 tokens: <s>, and room for 8, of which the answer has 4 or what the prompt leaves."""
    task = CausalLM(str(llama), "alpaca", loss_on="answer", max_length=9)
    columns = {"instruction": ["one"] * 2, "response": ["two two two two two two", "two"]}
    rows = task.prepare(Table(columns))
    prompt = CausalLM(str(llama), "alpaca", max_length=128).prepare(Table({"instruction": ["one"], "response": [""]}))
    tail = prompt["input_ids"][0, :-1].tolist()
    assert rows["input_ids"].tolist() == [[BEGIN, *tail[-4:], 4, 4, 4, 4], [BEGIN, *tail[-6:], 4, END]]
    assert (rows["labels"] != -100).sum(1).tolist() == [4, 2]


def test_an_example_is_the_mean_of_its_tokens_and_held_out_examples_count_by_theirs(llama: Path) -> None:
    task = CausalLM(str(llama), max_length=16)
    rows = task.prepare(Table({"text": ["one two three four five", "six", ""]}))
    batch = task.batch(rows, None)
    model = task.build([]).eval().requires_grad_(False)
    chances = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits.log_softmax(-1)
    ids = batch["input_ids"]
    each = [[-float(chances[k, t - 1, ids[k, t]]) for t in range(1, n)] for k, n in enumerate((7, 3, 2))]
    assert task.losses(model, batch).tolist() == pytest.approx([sum(one) / len(one) for one in each], rel=1e-5)
    alone = [task.losses(model, task.batch({n: x[k : k + 1] for n, x in rows.items()}, None)) for k in range(3)]
    assert torch.allclose(torch.cat(alone), task.losses(model, batch), atol=1e-6)
    halves = [{n: x[some] for n, x in batch.items()} for some in (slice(0, 1), slice(1, 3))]
    measured = evaluate(task, model, {}, ({**half, "mask": torch.ones(len(half["labels"]))} for half in halves))
    total = sum(map(sum, each))
    assert measured["loss"].weight == 6 + 2 + 1
    assert measured["loss"].value == pytest.approx(total / 9, rel=1e-5)
    assert measured["perplexity"].value == pytest.approx(exp(total / 9), rel=1e-5)
    masked = evaluate(task, model, {}, [{**batch, "mask": torch.tensor([0.0, 1.0, 0.0])}])
    assert masked["loss"].value == pytest.approx(sum(each[1]) / 2, rel=1e-5)


def test_an_example_without_a_counted_token_has_no_loss_and_no_weight(llama: Path) -> None:
    task = CausalLM(str(llama))
    batch = {"input_ids": torch.tensor([[BEGIN, END]]), "attention_mask": torch.ones(1, 2, dtype=torch.int64)}
    batch["labels"] = torch.full((1, 2), -100)
    model = task.build([]).eval()
    assert task.losses(model, batch).tolist() == [0.0]
    assert task.metrics(model, batch)["loss"].weights.tolist() == [0.0]


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


def test_labels_that_there_are_divide_and_do_not_reach_the_model(llama: Path, tmp_path: Path) -> None:
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
        with pytest.raises(DataError, match=f"the partition '{name}' divides by labels, and these data have none"):
            partition.split(table, draws)
    assert [len(part) for part in IID(2).split(table, draws).parts.values()] == [3, 3]
    assert Column("who").split(table, draws).parts["y"].tolist() == [2, 3, 4]
    assert Lists({"a": (0, 5)}).split(table, draws).parts["a"].tolist() == [0, 5]


def test_bad_settings(llama: Path, texts: Path) -> None:
    for settings, match in (
        ({"template": "chatml"}, "no template called 'chatml'"),
        ({"loss_on": "answers"}, r"no loss_on called 'answers'. Did you mean 'answer'\?"),
        ({"loss_on": "answer"}, "a plain text has no answer"),
        ({"max_length": 3}, "at least 4, got 3"),
    ):
        with pytest.raises(PlanError, match=match):
            read_plan({"task": {"name": "causal-lm", **settings}})
    with pytest.raises(PlanError, match=r"max_length = 256, but .* takes at most 128 tokens"):
        CausalLM(str(llama)).prepare(Table({"text": ["one"]}))
    task = CausalLM(str(llama), "alpaca", max_length=16)
    with pytest.raises(DataError, match="'alpaca' learns from a column 'instruction'; the data have text"):
        task.prepare(Table({"text": ["one"]}))
    with pytest.raises(DataError, match="1 of 2 examples have no 'instruction'"):
        task.prepare(Table({"instruction": ["one", None], "response": ["two", "two"]}))
    with pytest.raises(DataError, match="divides by labels"):
        open_site(read_plan(changes(llama, texts, partition="dirichlet")))
    with pytest.raises(DataError, match="text classification learns from a column 'label'"):
        plan = changes(llama, texts, task={"name": "text-classification", "model": str(llama), "max_length": 8})
        open_site(read_plan(plan))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_to_count(method: str, llama: Path, texts: Path) -> None:
    plan = read_plan(changes(llama, texts, method=method, rounds=4))
    site = open_site(plan)
    losses = []
    for state, ledger in federate(plan, InProcess(site), start(plan, site.params())):
        assert ledger.failed == {}
        losses.append(evaluate(plan.task, site.model, state.params, site.data.held_out())["loss"].value)
    assert losses[-1] < losses[0]


def test_clients_in_one_stack_learn_the_same(llama: Path, texts: Path) -> None:
    plan = read_plan(changes(llama, texts, method="lora", rounds=1))
    site = open_site(plan)
    begun = start(plan, site.params())
    (alone, _), (together, _) = (next(federate(plan, engine(site), begun)) for engine in (InProcess, Cohort))
    for name, x in alone.params.items():
        torch.testing.assert_close(together.params[name], x, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def exported(llama: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Runs of every method, exported, with the logits that were computed elsewhere beside each folder."""
    root = tmp_path_factory.mktemp("exported")
    runs = {m: done(root / f"run-{m}", **changes(llama, texts, method=m)) for m in METHODS}
    for method, run in runs.items():
        export_run(run.folder.path, root / method)
    export_run(runs["lora"].folder.path, root / "merged", merge=True)
    loaded_elsewhere({root / m: run for m, run in [*runs.items(), ("merged", runs["lora"])]}, root / "cache")
    return {"root": root, **runs}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_loaded_elsewhere_computes_what_the_run_does(method: str, exported: Mapping[str, Any]) -> None:
    logits = load_file(exported["root"] / f"{method}.out")["logits"]
    assert logits.shape[-1] == 3 + len(WORDS)
    assert torch.equal(logits, exported[method].logits)


def test_a_merged_adapter_is_a_plain_language_model(exported: Mapping[str, Any]) -> None:
    root = exported["root"]
    torch.testing.assert_close(load_file(root / "merged.out")["logits"], exported["lora"].logits, rtol=0, atol=1e-5)
    assert json.loads((root / "merged.json").read_text())["class"] == "LlamaForCausalLM"
    names = load_file(root / "lora" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in names)  # the base's own head is not in it


def test_the_card_says_how_to_go_on_and_the_tokenizer_is_there(exported: Mapping[str, Any]) -> None:
    from transformers import AutoTokenizer

    card = (exported["root"] / "lora" / "README.md").read_text()
    assert 'pipeline_tag: "text-generation"' in card
    assert "| perplexity on held-out tokens |" in card
    assert "accuracy" not in card
    assert "model.generate(" in card
    assert AutoTokenizer.from_pretrained(exported["root"] / "lora")("one two")["input_ids"] == [3, 4]


def test_the_commands_show_what_there_is_without_labels(
    exported: Mapping[str, Any], llama: Path, texts: Path, tmp_path: Path
) -> None:
    report = json.loads((exported["lora"].folder.partition).read_text())
    assert "histograms" not in report
    assert report["size"]["max"] <= 30
    plan = tmp_path / "plan.toml"
    plan.write_text(read_plan(changes(llama, texts, rounds=1)).toml())
    shown = CliRunner().invoke(app, ["partition", str(plan)])
    assert shown.exit_code == 0, shown.output
    assert "48 on 2 clients" in shown.output
    ended = CliRunner().invoke(app, ["run", str(plan), "--out", str(tmp_path / "run")])
    assert ended.exit_code == 0, ended.output
    assert "held-out perplexity, last" in ended.output
    assert "perplexity" in CliRunner().invoke(app, ["watch", str(tmp_path / "run"), "--once"]).output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["held_out_last"]["perplexity"] == pytest.approx(exp(summary["held_out_last"]["loss"]))


def test_samples_are_of_the_model_before_and_after(exported: Mapping[str, Any], llama: Path, texts: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = str(exported["full"].folder.path)
    told = CliRunner().invoke(app, ["evaluate", run, "--sample", "3", "--json"])
    assert told.exit_code == 0, told.output
    made = json.loads(told.stdout)["samples"]
    assert json.loads((Path(run) / "samples.json").read_text())["samples"] == made
    held_out = HubTable(str(texts), label="none").load().test.columns["text"]
    assert [f"{one['given']} {one['truth']}".split() for one in made] == [text.split() for text in held_out[:3]]
    bases = {"before": llama, "after": exported["root"] / "full"}
    models = {when: AutoModelForCausalLM.from_pretrained(base) for when, base in bases.items()}
    read = AutoTokenizer.from_pretrained(llama)
    for one in made:
        ids = read(f"<s> {one['given']}", return_tensors="pt")
        for when, model in models.items():
            out = model.generate(**ids, max_new_tokens=60, do_sample=False, pad_token_id=END)
            assert read.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == one[when]
    shown = CliRunner().invoke(app, ["evaluate", run, "--sample", "1"])
    assert "before  '" in shown.output
    task = CausalLM(str(llama), "alpaca", max_length=128)
    ((ids, truth),) = task.openings(Table({"instruction": ["one"], "response": ["two"]}), 3)
    whole = task.prepare(Table({"instruction": ["one"], "response": ["two"]}))["input_ids"][0].tolist()
    assert (truth, whole) == ("two", [*ids, 4, END])


def test_the_best_perplexity_is_the_lowest_and_the_worst_client_has_the_highest(exported: Mapping[str, Any]) -> None:
    run = exported["lora"]
    saved = load_checkpoint(run.folder.checkpoint, run.site.plan)
    assert saved is not None
    store = Folder(run.folder.clients)
    each = [measure(run.site, saved.state.params, client)["perplexity"] for client in ("ann", "bob")]
    spread = over_clients(run.site, saved.state, store)["perplexity"]
    assert spread == {"mean": sum(each) / 2, "worst_tenth": max(each)}
    assert Measure("perplexity").lower_is_better
