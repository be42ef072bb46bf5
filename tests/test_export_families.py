"""Exports of many families of models: the lines of their cards load them, merged or not, and they
compute what the run does; and runs begin with them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import loading_lines
from torch import Tensor

from fedpeft import PlanError, RunError, read_plan
from fedpeft.compute.trainable import tensors_of, write
from fedpeft.core.tensors import take_prefix
from fedpeft.core.types import State
from fedpeft.export.export import export_run
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.execute import execute, open_engine, open_run_site
from fedpeft.runs.folder import create
from fedpeft.storage.client_memory import Folder
from tools.models.folders import WORDS, save_family

pytestmark = [
    # peft's own, when the lines of a card load an adapter
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    # a LayerNorm has no in and out features
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    # the export of such an adapter unties what is tied
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]

TASKS = {
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForCausalLM": "causal-lm",
    "AutoModelForSeq2SeqLM": "seq2seq",
    "AutoModel": "embedding",
}
IMAGES, TEXTS, TOKENS, LM, SEQ, BARE = TASKS
EVERY = [
    *[(IMAGES, f) for f in ("vit", "deit", "beit", "dinov2", "clip", "siglip", "pvt", "resnet")],
    *[(TEXTS, f) for f in ("bert", "roberta", "distilbert", "deberta-v2", "bart", "gpt2")],
    *[(LM, f) for f in ("gpt2", "llama", "qwen2", "gpt_neox")],
    *[(TOKENS, "bert"), (SEQ, "t5"), (BARE, "bert")],
]
SETTINGS = {"t5": {"decoder_start_token_id": 0}}
CLASSES = ("a", "b", "c")


def run_of(root: Path, auto: str, family: str, method: Any, **settings: Any) -> tuple[Path, Any]:
    """A run's folder with tensors that no training gave, and its model with the same."""
    saved = "AutoModel" if auto in (TEXTS, TOKENS) else auto
    base = save_family(root / "base", family, saved, **settings)
    task: dict[str, Any] = {"name": TASKS[auto], "model": str(base)}
    if auto != IMAGES:
        task["max_length"] = 8
    if auto == TOKENS:
        task["labels"] = ["O", "B-x", "I-x"]
    rows = [{"text": "one two", "label": "a", "input": "one", "output": "two"}]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = read_plan(
        {
            "task": task,
            "method": method,
            "data": {"name": "table", "path": str(root / "rows.jsonl")},
            "classes": list(CLASSES) if auto in (IMAGES, TEXTS) else [],
        }
    )
    return checkpointed(root / "run", plan)


def checkpointed(path: Path, plan: Any) -> tuple[Path, Any]:
    model = plan.model(plan.classes).eval()
    draws = torch.Generator().manual_seed(5)
    every = tensors_of(model)
    params = {
        name: every[name].detach() + 0.1 * torch.randn(every[name].shape, generator=draws)
        for name in plan.method.names(model)
    }
    write(model, params)
    folder = create(plan, path)
    save_checkpoint(folder.checkpoint, plan, State(1, params), {})
    (folder.path / "rounds.jsonl").touch()
    return folder.path, model


def loaded(folder: Path) -> Any:
    """What the card's lines make."""
    names: dict[str, Any] = {}
    exec(loading_lines(folder), names)
    return names["model"]


def outputs(model: Any, auto: str, family: str) -> Tensor:
    if auto == IMAGES:
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        batch = {"pixel_values": x}
    else:
        ids = torch.tensor([[4, 5, 6, 7, 8, 2], [9, 8, 7, 6, 5, 2]])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if auto == SEQ:
        batch["decoder_input_ids"] = batch["input_ids"]
    with torch.inference_mode():
        out = model(**batch)
    found: Tensor = out.last_hidden_state if auto == BARE else out.logits
    return found


def check(root: Path, auto: str, family: str, method: Any, merge: bool, **settings: Any) -> Any:
    path, model = run_of(root, auto, family, method, **settings)
    export_run(path, root / "out", merge)
    again = loaded(root / "out")
    wanted = outputs(model, auto, family)
    torch.testing.assert_close(outputs(again, auto, family), wanted, rtol=1e-4, atol=2e-5)
    assert wanted.abs().max() > 1e-3
    return again


def often(cases: Any, *few: Any) -> list[Any]:
    """Those of every day; all others are slow tests."""
    return [one if one in few else pytest.param(*one, marks=pytest.mark.slow) for one in cases]


CARDS = [
    (*one, merge) for one in EVERY for merge in (False, True) if one[1] != "resnet" or not merge
]
HEADS = [
    (family, method, merge)
    for family in ("roberta", "distilbert", "deberta-v2", "bart")
    for method in ("ia3", "vera", "dora", "layernorm")
    for merge in (False, True)
]


@pytest.mark.parametrize(
    ("auto", "family", "merge"), often(CARDS, (IMAGES, "pvt", False), (LM, "qwen2", True))
)
def test_a_card_s_lines_load_what_was_trained(
    tmp_path: Path, auto: str, family: str, merge: bool
) -> None:
    method = "lora" if family != "resnet" else "head"
    check(tmp_path, auto, family, method, merge, **SETTINGS.get(family, {}))


@pytest.mark.parametrize(
    ("family", "method", "merge"),
    often(HEADS, ("roberta", "ia3", True), ("roberta", "vera", True)),
)
def test_heads_of_several_layers_are_exported(
    tmp_path: Path, family: str, method: str, merge: bool
) -> None:
    check(tmp_path, TEXTS, family, method, merge)


@pytest.mark.parametrize(
    ("target", "merge"), [("lm_head", True), ("embed_tokens", True), ("lm_head", False)]
)
def test_an_adapter_on_one_of_two_tied_layers_changes_one(
    tmp_path: Path, target: str, merge: bool
) -> None:
    method = {"name": "lora", "target": [target]}
    model = check(tmp_path, LM, "llama", method, merge, tie_word_embeddings=True)
    if merge:
        assert not model.config.tie_word_embeddings
        one, other = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert not torch.equal(one, other)


def test_no_file_but_the_card_names_a_folder_of_this_machine(tmp_path: Path) -> None:
    path, _ = run_of(tmp_path, TEXTS, "bert", "lora")
    for merge in (False, True):
        out = tmp_path / f"out{merge}"
        export_run(path, out, merge)
        for file in out.glob("*.json"):
            assert str(tmp_path) not in file.read_text(), file.name
    config = json.loads((tmp_path / "outFalse" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"


@pytest.mark.parametrize(
    "method",
    ["vera", *(pytest.param(one, marks=pytest.mark.slow) for one in ("lora", "dora", "ia3"))],
)
def test_a_run_begins_with_an_adapter_that_was_exported(tmp_path: Path, method: str) -> None:
    path, model = run_of(tmp_path, TEXTS, "bert", method)
    export_run(path, tmp_path / "out")
    plan = read_plan((path / "plan.toml").read_text())
    own = replace(plan.method, init=str(tmp_path / "out"))  # type: ignore[type-var]
    begun = replace(plan, method=own).model(CLASSES)
    wanted = tensors_of(model)
    for name in plan.method.names(begun):
        assert torch.equal(tensors_of(begun)[name], wanted[name]), name


def test_a_run_begins_with_an_adapter_for_another_size(tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", "vit", IMAGES)
    task = {"name": "image-classification", "model": str(base), "size": 48}
    plan = read_plan({"task": task, "method": "lora", "classes": list(CLASSES)})
    path, model = checkpointed(tmp_path / "run", plan)
    export_run(path, tmp_path / "out")
    method = replace(plan.method, init=str(tmp_path / "out"))  # type: ignore[type-var]
    begun = replace(plan, method=method).model(CLASSES)
    x = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        assert torch.equal(begun.eval()(x).logits, model(x).logits)


def test_a_merged_folder_is_a_model_and_no_adapter(tmp_path: Path) -> None:
    path, model = run_of(tmp_path, TEXTS, "bert", "lora")
    export_run(path, tmp_path / "out", merge=True)
    plan = read_plan((path / "plan.toml").read_text())
    with pytest.raises(PlanError, match=r"is a whole model and no adapter.*task\.model = "):
        method = replace(plan.method, init=str(tmp_path / "out"))  # type: ignore[type-var]
        replace(plan, method=method).model(CLASSES)
    task = replace(plan.task, model=str(tmp_path / "out"))  # type: ignore[type-var]
    further = replace(plan, task=task)
    merged = further.model(CLASSES)
    name = "bert.encoder.layer.0.attention.self.query.base_layer.weight"
    assert not torch.equal(tensors_of(merged)[name], tensors_of(model)[name])


def test_a_client_s_own_model_is_exported(tmp_path: Path) -> None:
    base = save_family(tmp_path / "base", "bert")
    rows = [{"text": WORDS[k % 8], "label": "ab"[k % 2]} for k in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = read_plan(
        {
            "task": {"name": "text-classification", "model": str(base), "max_length": 4},
            "data": {"name": "table", "path": str(tmp_path / "rows.jsonl")},
            "partition": {"name": "iid", "clients": 2},
            "method": "lora",
            "personal": ["classifier.*"],
            "local": {"batch_size": 8, "lr": 0.1},
            "rounds": 1,
            "cohort": 2,
        }
    )
    site = open_run_site(plan)
    folder = create(plan, tmp_path / "run")
    for _ in execute(folder, site, open_engine(folder, site)):
        pass
    with pytest.raises(RunError, match=r"each client's own; export one client's .*--client NAME"):
        export_run(folder.path, tmp_path / "none")
    with pytest.raises(RunError, match="no reply of a client 'nobody' was counted"):
        export_run(folder.path, tmp_path / "none", client="nobody")
    saved, heads = load_checkpoint(folder.checkpoint, plan), []
    assert saved is not None and len(saved.state.accepted) == 2
    for name, last in saved.state.accepted.items():
        export_run(folder.path, tmp_path / name, client=name)
        mine = take_prefix("personal", Folder(folder.clients).load(name, last))
        every = dict(loaded(tmp_path / name).named_parameters())
        [head] = [
            x for n, x in every.items() if n.endswith("classifier.modules_to_save.default.weight")
        ]
        assert torch.equal(head, mine["classifier.weight"])
        assert f"the client `{name}`'s own model" in (tmp_path / name / "README.md").read_text()
        heads.append(head)
    assert not torch.equal(*heads)


def test_a_run_whose_clients_have_one_model_has_no_other(tmp_path: Path) -> None:
    path, _ = run_of(tmp_path, TEXTS, "bert", "lora")
    with pytest.raises(RunError, match="have no models of their own: leave out --client"):
        export_run(path, tmp_path / "out", client="one")
