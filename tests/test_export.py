"""Exported folders: loaded by their cards' own lines, where there is no fedpeft, they compute what
the run does."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from conftest import file_name
from exporting import BERT, CASES, LLAMA, MERGED, Done, loaded_elsewhere
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from fedpeft.cli.app import app
from fedpeft.core.types import Table
from fedpeft.data.digits import Digits
from fedpeft.tasks.image_classification import ImageClassification

Outputs: TypeAlias = Callable[[str], tuple[Tensor, dict[str, Any]]]
FEW = ("lora", "bert, lora", "lora, merged", "layernorm, merged")
"""Those of every day; all others are slow tests."""
EVERY = (*CASES, *BERT, *LLAMA, *(f"{name}, merged" for name in MERGED))


@pytest.fixture(scope="module")
def output(
    runs: Mapping[str, Done],
    folders: Mapping[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Outputs:
    """The logits that are computed elsewhere, and the model's labels and class: the few in one
    process, and all others in another."""
    cache = tmp_path_factory.mktemp("elsewhere")

    def load(name: str) -> tuple[Tensor, dict[str, Any]]:
        folder = folders[name]
        if not Path(f"{folder}.out").exists():
            same = [one for one in EVERY if one in folders and (one in FEW) == (name in FEW)]
            of = {folders[one]: runs[one.removesuffix(", merged")] for one in same}
            loaded_elsewhere(of, cache / file_name(name))
        return load_file(f"{folder}.out")["logits"], json.loads(Path(f"{folder}.json").read_text())

    return load


@pytest.mark.parametrize(
    "name", [one if one in FEW else pytest.param(one, marks=pytest.mark.slow) for one in EVERY]
)
def test_what_is_loaded_computes_what_the_run_does(
    name: str, runs: Mapping[str, Done], folders: Mapping[str, Path], output: Outputs
) -> None:
    if name in LLAMA and name not in folders:
        pytest.skip("no Llama: FEDPEFT_DATA names no folder with stories260k")
    run = runs[name.removesuffix(", merged")]
    logits, what = output(name)
    assert run.logits.abs().max() > 1e-3
    assert what["labels"] == list(run.site.classes)
    # W + BA is rounded, where the adapter computes Wx + B(Ax); so are BR, what PiSSA takes out, and
    # the W + D of a sparse change.
    if name.endswith(("merged", "FedEx", "FLoRA", "lora_xs", "pissa", "sparse")):
        torch.testing.assert_close(logits, run.logits, rtol=0, atol=1e-5)
    else:
        assert torch.equal(logits, run.logits)


def test_an_adapter_is_small_and_a_merged_one_is_a_plain_model(
    folders: Mapping[str, Path], output: Outputs
) -> None:
    files = {file.name for file in folders["lora"].iterdir()}
    assert files == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "fedpeft-plan.toml",
        "preprocessor_config.json",
        "ro-crate-metadata.json",
    }
    saved = load_file(folders["lora"] / "adapter_model.safetensors")
    # 5 blocks, query and value, A and B of rank 8 for a width of 128; 10 classes
    assert sum(x.numel() for x in saved.values()) == 5 * 2 * 2 * 8 * 128 + 10 * 128 + 10
    assert output("lora, merged")[1]["class"] == "ViTForImageClassification"
    assert output("layernorm, merged")[1]["class"] == "ViTForImageClassification"


def test_files_say_the_same_in_every_process(folders: Mapping[str, Path]) -> None:
    config = json.loads((folders["ia3"] / "adapter_config.json").read_text())
    for key in ("target_modules", "feedforward_modules"):
        assert config[key] == sorted(config[key])
    assert len(config["target_modules"]) > len(config["feedforward_modules"]) == 5


def test_what_the_base_does_not_have_is_in_the_adapter(folders: Mapping[str, Path]) -> None:
    resized = load_file(folders["lora, resized"] / "adapter_model.safetensors")
    positions = [x for name, x in resized.items() if name.endswith("position_embeddings")]
    # 16 pixels, patches of 4, and the class token.
    assert [x.shape for x in positions] == [(1, 1 + 16, 128)]
    pooler = load_file(folders["bert, lora"] / "adapter_model.safetensors")
    assert "base_model.model.bert.pooler.dense.weight" in pooler


def test_a_resized_model_says_its_size(folders: Mapping[str, Path]) -> None:
    for name in ("bias, resized", "lora, resized, merged", "prompt, resized"):
        assert json.loads((folders[name] / "config.json").read_text())["image_size"] == 16
        assert (
            json.loads((folders[name] / "preprocessor_config.json").read_text())["size"]["height"]
            == 16
        )


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
        rows = task.prepare(
            Table({"image": pictures, "label": torch.zeros(len(pictures), dtype=torch.long)})
        )
        made: Tensor = read(images=pictures, return_tensors="pt")["pixel_values"]
        return (made - task.batch(rows, None)["pixel_values"]).abs()

    draws = torch.Generator().manual_seed(1)
    for shape in ((task.input.height, task.input.width), (40, 50)):
        noise = [
            torch.randint(0, 256, shape, generator=draws, dtype=torch.uint8).numpy()
            for _ in range(3)
        ]
        assert difference([Image.fromarray(x) for x in noise]).max() < 1e-6
    # The task enlarges small pictures as float; Pillow rounds to 255ths and cuts off overshoots
    # along each side.
    digits = difference(
        [Image.fromarray(x[0].numpy()) for x in Digits().load().test.columns["image"][:8]]
    )
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


def test_the_command_lists_what_it_wrote(runs: Mapping[str, Done], tmp_path: Path) -> None:
    run = str(runs["lora"].folder.path)
    done = CliRunner().invoke(app, ["export", run, str(tmp_path / "model"), "--merge"])
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "model" / "config.json") in done.output.split()
    done = CliRunner().invoke(app, ["export", run, str(tmp_path / "model")])
    assert done.exit_code == 2
    assert "is not empty" in done.output
