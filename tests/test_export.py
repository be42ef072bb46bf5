"""Exported folders: loaded by their cards' own lines, where there is no fedpeft, they compute what the run does."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from typer.testing import CliRunner

from fedpeft import RunError, __version__, read_plan, start
from fedpeft.cli.app import app
from fedpeft.client import Site
from fedpeft.core.seeds import seeded
from fedpeft.core.trainable import trainable
from fedpeft.core.types import Batch, State, Table
from fedpeft.data.digits import Digits
from fedpeft.methods.anatomy import train_parts
from fedpeft.registry import CATALOGUE
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.execute import execute, open_engine, open_run_site
from fedpeft.runs.export import export_run
from fedpeft.runs.folder import RunFolder, create, read_json, read_rounds
from fedpeft.runs.model_card import listed
from fedpeft.tasks.image_classification import ImageClassification

SMALL: dict[str, Any] = {
    "name": "small",
    "rounds": 1,
    "cohort": 2,
    "partition": {"name": "iid", "clients": 120},
    "local": {"epochs": 1, "batch_size": 16, "lr": 0.1},
}
RESIZED = {"name": "image-classification", "size": 16}
CASES: dict[str, Mapping[str, Any]] = {
    **{name: {"method": name} for name in CATALOGUE["method"] if name != "prefix"},  # which no vision model takes
    "adapter, shared": {"method": {"name": "adapter", "shared": True}},
    "prompt, shallow": {"method": {"name": "prompt", "deep": False}},
    "lora, head not trained": {"method": {"name": "lora", "head": "", "target": ["fc1", "o_proj"]}},
    "lora, SCAFFOLD": {
        "method": "lora",
        "local": {**SMALL["local"], "correction": "scaffold"},
        "server": "scaffold",
    },
    "lora, resized": {"method": "lora", "task": RESIZED},
    "layernorm, resized": {"method": "layernorm", "task": RESIZED},
    "bias, resized": {"method": "bias", "task": RESIZED},
    "prompt, resized": {"method": "prompt", "task": RESIZED},
}
BERT = ("bert, lora", "bert, adapter", "bert, full")
LLAMA = ("llama, prefix", "llama, lora", "llama, adapter")
MERGED = ("lora", "rslora", "dora", "ia3", "vera", "layernorm", "lora, resized", "bert, lora")
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen")
ELSEWHERE = """
import json, re, sys
sys.modules["fedpeft"] = None  # whoever imports it fails
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
for folder in json.loads(sys.argv[1]):
    lines = re.search("```python\\n(.*?)```", open(f"{folder}/README.md").read(), re.S)[1]
    names = {}
    exec(lines, names)
    with torch.inference_mode():
        save_file({"logits": names["model"](**load_file(f"{folder}.in")).logits}, f"{folder}.out")
    with open(f"{folder}.json", "w") as file:
        labels = names["model"].config.id2label
        json.dump({"labels": [labels[k] for k in sorted(labels)], "class": type(names["model"]).__name__}, file)
"""


@dataclass(frozen=True)
class Done:
    """A run, and what its model says of some held-out examples."""

    folder: RunFolder
    site: Site
    inputs: Batch
    logits: Tensor


def done(path: Path, **changes: Any) -> Done:
    plan = read_plan({**SMALL, **changes})
    site = open_run_site(plan)
    folder = create(plan, path)
    for _ in execute(folder, site, open_engine(folder, site)):
        pass
    saved = load_checkpoint(folder.checkpoint, plan)
    assert saved is not None
    batch = next(iter(site.data.held_out()))
    inputs = {name: x[:16] for name, x in batch.items() if name not in ("label", "mask")}
    own = {name: saved.state.params[name] for name in plan.method.names(site.model)}
    with torch.inference_mode():
        logits = functional_call(site.model.eval(), own, (), inputs).logits
    return Done(folder, site, inputs, logits)


def loaded_elsewhere(folders: Mapping[Path, Done], cache: Path) -> None:
    """Each folder's logits to a file beside it."""
    for folder, run in folders.items():
        save_file({name: x.contiguous() for name, x in run.inputs.items()}, f"{folder}.in")
    env = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    names = json.dumps([str(folder) for folder in folders])
    ended = subprocess.run([sys.executable, "-c", ELSEWHERE, names], env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, real_data_if_any: Path | None) -> dict[str, Done]:
    root = tmp_path_factory.mktemp("runs")
    cases = {**CASES, **text_cases(root, real_data_if_any)}
    return {name: done(root / f"run-{k}", **changes) for k, (name, changes) in enumerate(cases.items())}


def text_cases(root: Path, real_data: Path | None) -> dict[str, Mapping[str, Any]]:
    """Runs on texts, with a small BERT, and with the Llama of the real data where these are."""
    rows = (
        {"text": " ".join(WORDS[(k * j) % 13] for j in range(1, 4 + k % 5)), "label": WORDS[k % 3]} for k in range(80)
    )
    (root / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_bert(root / "bert")
    data = {"data": {"name": "table", "path": str(root / "texts.jsonl")}, "partition": {"name": "iid", "clients": 4}}

    def on(model: Path, method: Any) -> dict[str, Any]:
        return {**data, "method": method, "task": {"name": "text-classification", "model": str(model), "max_length": 6}}

    cases: dict[str, Mapping[str, Any]] = {name: on(root / "bert", name.split(", ")[1]) for name in BERT}
    if real_data is not None and (llama := real_data / "stories260k").is_dir():
        cases |= {name: on(llama, name.split(", ")[1]) for name in LLAMA}
    return cases


def save_bert(folder: Path) -> None:
    """A small BERT without pooler, which a classifier then has at random, and its tokenizer."""
    import transformers as hf
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    vocabulary = {word: k for k, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    with seeded(3):
        hf.BertModel(hf.BertConfig(vocab_size=len(vocabulary), **size), add_pooling_layer=False).save_pretrained(folder)
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(runs: Mapping[str, Done], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exported")
    made = {name: root / re.sub(r"\W+", "-", name) for name in runs}
    made |= {f"{name}, merged": root / re.sub(r"\W+", "-", f"{name}, merged") for name in MERGED}
    of = {}
    for name, folder in made.items():
        of[folder] = runs[name.removesuffix(", merged")]
        export_run(of[folder].folder.path, folder, merge=name.endswith("merged"))
    loaded_elsewhere(of, root / "cache")
    return made


def output(folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """The logits that were computed elsewhere, and the model's labels and class."""
    return load_file(f"{folder}.out")["logits"], json.loads(Path(f"{folder}.json").read_text())


@pytest.mark.parametrize("name", [*CASES, *BERT, *LLAMA, *(f"{name}, merged" for name in MERGED)])
def test_what_is_loaded_computes_what_the_run_does(
    name: str, runs: Mapping[str, Done], folders: Mapping[str, Path]
) -> None:
    if name in LLAMA and name not in folders:
        pytest.skip("no Llama: FEDPEFT_DATA names no folder with stories260k")
    run = runs[name.removesuffix(", merged")]
    logits, what = output(folders[name])
    assert run.logits.abs().max() > 1e-3
    assert what["labels"] == list(run.site.classes)
    if name.endswith("merged"):  # W + BA is rounded, where the adapter computes Wx + B(Ax)
        torch.testing.assert_close(logits, run.logits, rtol=0, atol=1e-5)
    else:
        assert torch.equal(logits, run.logits)


def test_an_adapter_is_small_and_a_merged_one_is_a_plain_model(folders: Mapping[str, Path]) -> None:
    files = {file.name for file in folders["lora"].iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"}
    saved = load_file(folders["lora"] / "adapter_model.safetensors")
    # 5 blocks, query and value, A and B of rank 8 for a width of 128; 10 classes
    assert sum(x.numel() for x in saved.values()) == 5 * 2 * 2 * 8 * 128 + 10 * 128 + 10
    assert output(folders["lora, merged"])[1]["class"] == "ViTForImageClassification"
    assert output(folders["layernorm, merged"])[1]["class"] == "ViTForImageClassification"


def test_files_say_the_same_in_every_process(folders: Mapping[str, Path]) -> None:
    config = json.loads((folders["ia3"] / "adapter_config.json").read_text())
    for key in ("target_modules", "feedforward_modules"):
        assert config[key] == sorted(config[key])
    assert len(config["target_modules"]) > len(config["feedforward_modules"]) == 5


def test_what_the_base_does_not_have_is_in_the_adapter(folders: Mapping[str, Path]) -> None:
    resized = load_file(folders["lora, resized"] / "adapter_model.safetensors")
    positions = [x for name, x in resized.items() if name.endswith("position_embeddings")]
    assert [x.shape for x in positions] == [(1, 1 + 16, 128)]  # 16 pixels, patches of 4, and the class token
    pooler = load_file(folders["bert, lora"] / "adapter_model.safetensors")
    assert "base_model.model.bert.pooler.dense.weight" in pooler


def test_a_resized_model_says_its_size(folders: Mapping[str, Path]) -> None:
    for name in ("bias, resized", "lora, resized, merged", "prompt, resized"):
        assert json.loads((folders[name] / "config.json").read_text())["image_size"] == 16
        assert json.loads((folders[name] / "preprocessor_config.json").read_text())["size"]["height"] == 16


def test_code_is_not_run_without_leave(folders: Mapping[str, Path]) -> None:
    from transformers import AutoModelForImageClassification

    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForImageClassification.from_pretrained(folders["adapter"], trust_remote_code=False)


@pytest.mark.parametrize("name", ["lora", "lora, resized", "prompt"])
def test_the_processor_makes_the_inputs_of_the_run(
    name: str, runs: Mapping[str, Done], folders: Mapping[str, Path]
) -> None:
    from transformers import AutoImageProcessor

    task, read = runs[name].site.plan.task, AutoImageProcessor.from_pretrained(folders[name])
    assert isinstance(task, ImageClassification)

    def difference(pictures: Sequence[Image.Image]) -> Tensor:
        rows = task.prepare(Table({"image": pictures, "label": torch.zeros(len(pictures), dtype=torch.long)}))
        made: Tensor = read(images=pictures, return_tensors="pt")["pixel_values"]
        return (made - task.batch(rows, None)["pixel_values"]).abs()

    draws = torch.Generator().manual_seed(1)
    for shape in ((task.input.size,) * 2, (40, 50)):
        noise = [torch.randint(0, 256, shape, generator=draws, dtype=torch.uint8).numpy() for _ in range(3)]
        assert difference([Image.fromarray(x) for x in noise]).max() < 1e-6
    # The task enlarges small pictures as float; Pillow rounds to 255ths and cuts off overshoots along each side.
    digits = difference([Image.fromarray(x[0].numpy()) for x in Digits().load().test.columns["image"][:8]])
    assert (digits <= 2 / 255 / 0.5).float().mean() > 0.9


@pytest.mark.parametrize("name", ["bert, lora", "bert, adapter", "bert, lora, merged"])
def test_the_tokenizer_makes_the_inputs_of_the_run(
    name: str, runs: Mapping[str, Done], folders: Mapping[str, Path]
) -> None:
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(folders[name], trust_remote_code=name == "bert, adapter")
    texts = ["one two three four five six seven", "eight"]
    made = read(texts, truncation=True, padding=True)
    assert made["input_ids"] == [[2, 3, 4, 5, 6, 7], [9, 0, 0, 0, 0, 0]]
    assert made["attention_mask"] == [[1] * 6, [1, 0, 0, 0, 0, 0]]
    assert read.model_max_length == 6


def front_matter(card: str) -> dict[str, Any]:
    values: dict[str, Any] = pytest.importorskip("yaml").safe_load(card.split("---\n")[1])
    return values


def test_the_card_tells_what_the_run_was(runs: Mapping[str, Done], folders: Mapping[str, Path]) -> None:
    card, run = (folders["lora"] / "README.md").read_text(), runs["lora"]
    assert front_matter(card) == {
        "library_name": "peft",
        "pipeline_tag": "image-classification",
        "tags": ["fedpeft", "federated-learning", "lora"],
        "base_model": "micro-vit",
        "base_model_relation": "adapter",
    }
    line = read_rounds(run.folder)[-1]
    rows = dict(re.findall(r"^\| (\w.*?) \| (.*) \|$", card, re.M))
    assert rows["base model"] == "`micro-vit`"
    assert rows["method"] == "`lora`, 21,770 trained parameters"
    assert (rows["clients"], rows["rounds"], rows["seed"]) == ("120", "1", "1")
    assert rows["cohort"] == "2 clients a round"
    assert rows["bytes up, measured"].startswith(f"{line['bytes_up']:,} in all, {line['bytes_up'] / 2:,.0f} for")
    assert rows["bytes down, measured"].startswith(f"{line['bytes_down']:,} in all")
    assert rows["accuracy on held-out examples"] == f"{line['held_out']['accuracy']:.4f} after round 1"
    assert rows["partition"] == f"`{(read_json(run.folder.partition) or {})['fingerprint']}`"
    assert rows["fedpeft"] == f"{__version__}, exported with {__version__}"
    plan = re.search("```toml\n(.*?)```", card, re.S)
    assert plan and read_plan(plan[1]) == run.site.plan


def test_the_card_of_a_model_from_scratch_claims_no_base(folders: Mapping[str, Path]) -> None:
    card = (folders["scratch"] / "README.md").read_text()
    assert "base_model" not in front_matter(card)
    assert front_matter(card)["library_name"] == "transformers"
    assert "its weights not used" in card


def test_class_names_are_not_broken_by_a_card_s_lines() -> None:
    names = [f'a class, with a "name" of its own, number {k}' for k in range(40)]
    lines = listed("classes", names)
    assert len(lines) > 2
    found: dict[str, Any] = {}
    exec("\n".join(lines), found)
    assert found["classes"] == names


def test_a_run_cut_off_is_exported_as_far_as_it_came(tmp_path: Path) -> None:
    plan = read_plan({**SMALL, "rounds": 3, "method": "head", "evaluate_every": 3})
    site = open_run_site(plan)
    folder = create(plan, tmp_path / "run")
    next(iter(execute(folder, site, open_engine(folder, site))))
    export_run(folder.path, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| rounds | 1 of 3 |" in card
    assert "| accuracy on held-out examples | not measured |" in card


@dataclass(frozen=True)
class Doubled:
    """A method that exporting knows nothing of: a second head whose outputs are added."""

    @property
    def pretrained(self) -> bool:
        return True

    def inject(self, model: nn.Module) -> nn.Module:
        head = model.get_submodule("classifier")
        second = nn.Linear(128, 10)
        second.register_module("first", head)
        model.set_submodule("classifier", second)
        return train_parts(model, [second], "")

    def names(self, model: nn.Module) -> Sequence[str]:
        return trainable(model)


def without_rounds(path: Path, **changes: Any) -> Path:
    """A run as it is before its first round, with a checkpoint."""
    plan = read_plan({**SMALL, **changes})
    site = open_run_site(plan)
    folder = create(plan, path)
    save_checkpoint(folder.checkpoint, plan, start(plan, site.params()), {})
    return path


def refused(path: Path, out: Path, reason: str, merge: bool = False) -> None:
    """The export raises one line, and leaves nothing at `out` or beside it."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(RunError, match=reason) as error:
        export_run(path, out, merge)
    assert "\n" not in str(error.value)
    assert sorted(out.parent.rglob("*")) == before


def test_a_method_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = without_rounds(tmp_path / "run", method="test_export:Doubled")
    refused(path, tmp_path / "out", "transformers and peft do not know")


def test_a_task_without_a_transformers_model_is_refused(tmp_path: Path) -> None:
    task = {"task": "parts:Points", "data": "parts:Blobs", "partition": {"name": "iid", "clients": 6}}
    refused(without_rounds(tmp_path / "run", method="full", **task), tmp_path / "out", "no model of transformers")


@pytest.mark.parametrize("name", ["adapter", "prompt", "llama, prefix"])
def test_what_cannot_be_merged_is_refused(name: str, runs: Mapping[str, Done], tmp_path: Path) -> None:
    if name not in runs:
        pytest.skip("no Llama: FEDPEFT_DATA names no folder with stories260k")
    refused(runs[name].folder.path, tmp_path / "out", "leave out --merge", merge=True)


def test_a_run_without_checkpoint_is_refused(tmp_path: Path) -> None:
    create(read_plan(SMALL), tmp_path / "run")
    refused(tmp_path / "run", tmp_path / "out", "no round of it is done")
    refused(tmp_path / "none", tmp_path / "out", "not a run's folder")


def test_only_a_new_or_an_empty_folder_is_written_to(runs: Mapping[str, Done], tmp_path: Path) -> None:
    run = runs["bias"].folder.path
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    refused(run, tmp_path / "full", "is not empty")
    refused(run, tmp_path / "full" / "mine", "is a file")
    (tmp_path / "empty").mkdir()
    written = export_run(run, tmp_path / "empty")
    assert written == sorted((tmp_path / "empty").iterdir())
    assert {file.stat().st_mode for file in written} == {(tmp_path / "full" / "mine").stat().st_mode}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def test_after_an_error_in_the_middle_nothing_is_left(runs: Mapping[str, Done], tmp_path: Path) -> None:
    copied = shutil.copytree(runs["full"].folder.path, tmp_path / "run")
    (copied / "rounds.jsonl").write_text("damaged\n")  # read for the card, when the model is written
    refused(copied, tmp_path / "out", "damaged")


def test_tensors_of_another_shape_are_refused(runs: Mapping[str, Done], tmp_path: Path) -> None:
    plan, folder = runs["lora"].site.plan, create(runs["lora"].site.plan, tmp_path / "run")
    params = {"classifier.weight": torch.zeros(3, 128)}
    save_checkpoint(folder.checkpoint, plan, State(1, params), {})
    refused(folder.path, tmp_path / "out", "the model has .*10, 128.* of shape .3, 128.")


def test_the_command_lists_what_it_wrote(runs: Mapping[str, Done], tmp_path: Path) -> None:
    run = str(runs["lora"].folder.path)
    done = CliRunner().invoke(app, ["export", run, str(tmp_path / "model"), "--merge"])
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "model" / "config.json") in done.output.split()
    done = CliRunner().invoke(app, ["export", run, str(tmp_path / "model")])
    assert done.exit_code == 2
    assert "is not empty" in done.output
