"""Runs of language models: they learn, and what is exported computes the same elsewhere."""

import json
from collections.abc import Mapping
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import END, WORDS, changes
from exporting import done, loaded_elsewhere
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedpeft import Cohort, InProcess, evaluate, federate, open_site, read_plan, start
from fedpeft.cli.app import app
from fedpeft.core.types import Table
from fedpeft.data.table import HubTable
from fedpeft.evaluation.measure import measure
from fedpeft.evaluation.own_held_out import over_clients
from fedpeft.export.export import export_run
from fedpeft.report.groups import Measure
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.storage.client_memory import Folder
from fedpeft.tasks.causal_lm import CausalLM

METHODS = ("lora", "full", "prefix", "ia3", "adapter")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_to_count(method: str, llama: Path, texts: Path) -> None:
    plan = read_plan(changes(llama, texts, method=method, rounds=4))
    site = open_site(plan)
    losses = []
    for state, ledger in federate(plan, InProcess(site), start(plan, site.params())):
        assert ledger.failed == {}
        losses.append(
            evaluate(plan.task, site.model, state.params, site.data.held_out())["loss"].value
        )
    assert losses[-1] < losses[0]


def test_clients_in_one_stack_learn_the_same(llama: Path, texts: Path) -> None:
    plan = read_plan(changes(llama, texts, method="lora", rounds=1))
    site = open_site(plan)
    begun = start(plan, site.params())
    (alone, _), (together, _) = (
        next(federate(plan, engine(site), begun)) for engine in (InProcess, Cohort)
    )
    for name, x in alone.params.items():
        torch.testing.assert_close(together.params[name], x, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def exported(
    llama: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Any]:
    """Runs of every method, exported, with the logits that were computed elsewhere beside each
    folder."""
    root = tmp_path_factory.mktemp("exported")
    runs = {m: done(root / f"run-{m}", **changes(llama, texts, method=m)) for m in METHODS}
    for method, run in runs.items():
        export_run(run.folder.path, root / method)
    export_run(runs["lora"].folder.path, root / "merged", merge=True)
    loaded_elsewhere(
        {root / m: run for m, run in [*runs.items(), ("merged", runs["lora"])]}, root / "cache"
    )
    return {"root": root, **runs}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_loaded_elsewhere_computes_what_the_run_does(
    method: str, exported: Mapping[str, Any]
) -> None:
    logits = load_file(exported["root"] / f"{method}.out")["logits"]
    assert logits.shape[-1] == 3 + len(WORDS)
    assert torch.equal(logits, exported[method].logits)


def test_a_merged_adapter_is_a_plain_language_model(exported: Mapping[str, Any]) -> None:
    root = exported["root"]
    torch.testing.assert_close(
        load_file(root / "merged.out")["logits"], exported["lora"].logits, rtol=0, atol=1e-5
    )
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
    assert AutoTokenizer.from_pretrained(exported["root"] / "lora")("one two")["input_ids"] == [
        3,
        4,
    ]


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
    assert (
        "perplexity" in CliRunner().invoke(app, ["watch", str(tmp_path / "run"), "--once"]).output
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["held_out_last"]["perplexity"] == pytest.approx(
        exp(summary["held_out_last"]["loss"])
    )


def test_samples_are_of_the_model_before_and_after(
    exported: Mapping[str, Any], llama: Path, texts: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = str(exported["full"].folder.path)
    told = CliRunner().invoke(app, ["evaluate", run, "--sample", "3", "--json"])
    assert told.exit_code == 0, told.output
    made = json.loads(told.stdout)["samples"]
    assert json.loads((Path(run) / "samples.json").read_text())["samples"] == made
    held_out = HubTable(str(texts), label="none").load().test.columns["text"]
    assert [f"{one['given']} {one['truth']}".split() for one in made] == [
        text.split() for text in held_out[:3]
    ]
    bases = {"before": llama, "after": exported["root"] / "full"}
    models = {when: AutoModelForCausalLM.from_pretrained(base) for when, base in bases.items()}
    read = AutoTokenizer.from_pretrained(llama)
    for one in made:
        ids = read(f"<s> {one['given']}", return_tensors="pt")
        for when, model in models.items():
            out = model.generate(**ids, max_new_tokens=60, do_sample=False, pad_token_id=END)
            assert (
                read.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
                == one[when]
            )
    shown = CliRunner().invoke(app, ["evaluate", run, "--sample", "1"])
    assert "before  '" in shown.output
    task = CausalLM(str(llama), "alpaca", max_length=128)
    ((ids, truth),) = task.openings(Table({"instruction": ["one"], "response": ["two"]}), 3)
    whole = task.prepare(Table({"instruction": ["one"], "response": ["two"]}))["input_ids"][
        0
    ].tolist()
    assert (truth, whole) == ("two", [*ids, 4, END])


def test_the_best_perplexity_is_the_lowest_and_the_worst_client_has_the_highest(
    exported: Mapping[str, Any],
) -> None:
    run = exported["lora"]
    saved = load_checkpoint(run.folder.checkpoint, run.site.plan)
    assert saved is not None
    store = Folder(run.folder.clients)
    each = [
        measure(run.site, saved.state.params, client)["perplexity"] for client in ("ann", "bob")
    ]
    spread = over_clients(run.site, saved.state, store)["perplexity"]
    assert spread == {"mean": sum(each) / 2, "worst_tenth": max(each)}
    assert Measure("perplexity").lower_is_better
