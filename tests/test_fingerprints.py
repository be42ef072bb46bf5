"""Names of bases and transforms: whatever frozen thing makes an example another one makes the name
another one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from captioned import changes, save_diffusion
from safetensors.torch import load_file, save_file
from transformers import ByT5Tokenizer

from fedpeft.core.tensors import map_tensors
from fedpeft.errors import PlanError
from fedpeft.oneshot.invitation import base_fingerprint, transforms_digest
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.tasks.causal_lm import CausalLM
from fedpeft.tasks.taef2 import Taef2
from fedpeft.tasks.text_classification import TextClassification, tokenizer, tokenizer_settings


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Tokenizers are kept by name, and these tests put others under one name."""
    tokenizer.cache_clear()
    yield
    tokenizer.cache_clear()


@pytest.fixture
def language(llama: Path, tmp_path: Path) -> Path:
    return copytree(llama, tmp_path / "language")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_diffusion(tmp_path_factory.mktemp("diffusion"))


@pytest.fixture
def diffusion(saved: Path, tmp_path: Path) -> Path:
    return copytree(saved, tmp_path / "diffusion")


def edited(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def moved(file: Path) -> None:
    save_file(map_tensors(lambda x: x + 1 if x.is_floating_point() else x, load_file(file)), file)


def pictures(model: Path, **task: Any) -> Plan:
    plan = changes(model, model / "table.jsonl")
    return read_plan({**plan, "task": {**plan["task"], **task}})


LOWER = {"type": "Lowercase"}
TOKENIZER: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "normalizer": ("tokenizer.json", lambda d: d.update(normalizer=LOWER)),
    "splits": ("tokenizer.json", lambda d: d.update(pre_tokenizer={"type": "WhitespaceSplit"})),
    "begin": ("tokenizer_config.json", lambda d: d.update(bos_token="</s>")),
    "end": ("tokenizer_config.json", lambda d: d.update(eos_token="<s>")),
    "side": ("tokenizer_config.json", lambda d: d.update(truncation_side="left")),
}


@pytest.mark.parametrize("task", [CausalLM, TextClassification])
@pytest.mark.parametrize("what", TOKENIZER)
def test_transforms_know_all_of_a_tokenizer(what: str, task: Any, language: Path) -> None:
    mine = task(model=str(language), max_length=16)
    before, words = transforms_digest(mine), tokenizer(mine.base).get_vocab()
    file, change = TOKENIZER[what]
    edited(language / file, change)
    tokenizer.cache_clear()
    assert transforms_digest(mine) != before
    assert tokenizer(mine.base).get_vocab() == words


def test_transforms_know_the_merges_of_a_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words, seen = {word: k for k, word in enumerate(("a", "b", "c", "ab", "bc", "abc"))}, set()
    for merges in ([("a", "b"), ("ab", "c")], [("b", "c"), ("a", "bc")]):
        made = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE(words, merges)), unk_token="a"
        )
        assert made.get_vocab() == words
        seen.add(json.dumps(tokenizer_settings(made), sort_keys=True))
    assert len(seen) == 2


def test_using_a_tokenizer_does_not_change_the_name(language: Path) -> None:
    task = CausalLM(model=str(language), max_length=16)
    before, read = transforms_digest(task), tokenizer(task.base)
    read.pad_token = "</s>"
    padded = transforms_digest(task)
    read(["one two", "three"], truncation=True, max_length=3, padding="max_length")
    assert json.loads(read.backend_tokenizer.to_str())["padding"] is not None
    assert transforms_digest(task) == padded != before


def test_a_tokenizer_without_a_backend_is_its_class_words_and_special_tokens() -> None:
    one, other = ByT5Tokenizer(), ByT5Tokenizer(eos_token="<end>")
    told = tokenizer_settings(one)
    assert told["does"] == {"class": "ByT5Tokenizer", "vocabulary": one.get_vocab()}
    assert told == tokenizer_settings(ByT5Tokenizer()) != tokenizer_settings(other)


@pytest.mark.parametrize(
    "part", ["text_encoder/model", "vae/diffusion_pytorch_model", "unet/diffusion_pytorch_model"]
)
def test_the_base_of_text_to_image_is_all_that_is_frozen(part: str, diffusion: Path) -> None:
    plan = pictures(diffusion)
    before, again = base_fingerprint(plan), base_fingerprint(plan, plan.model(()))
    moved(diffusion / f"{part}.safetensors")
    assert base_fingerprint(plan) != before == again


def test_the_base_of_text_to_image_knows_another_autoencoder(diffusion: Path) -> None:
    place = diffusion / "taef2"
    place.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = Taef2()
    for name in ("encoder", "decoder"):
        save_file(small.get_submodule(name).state_dict(), place / f"{name}.safetensors")
    own, other = (
        base_fingerprint(pictures(diffusion)),
        base_fingerprint(plan := pictures(diffusion, vae=str(place))),
    )
    moved(place / "encoder.safetensors")
    assert len({own, other, base_fingerprint(plan)}) == 3


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("scheduler/scheduler_config.json", lambda d: d.update(beta_end=0.5)),
        ("scheduler/scheduler_config.json", lambda d: d.update(prediction_type="v_prediction")),
        ("vae/config.json", lambda d: d.update(scaling_factor=0.5)),
        ("unet/config.json", lambda d: d.update(sample_size=8)),
        ("tokenizer/tokenizer_config.json", lambda d: d.update(model_max_length=5)),
        (
            "tokenizer/tokenizer.json",
            lambda d: d["model"]["vocab"].update({"a</w>": 3, "b</w>": 2}),
        ),
    ],
)
def test_transforms_of_text_to_image_know_its_settings(
    file: str, change: Callable[[dict[str, Any]], object], diffusion: Path
) -> None:
    from fedpeft.tasks.diffusion import denoiser_config

    task = pictures(diffusion).task
    before = transforms_digest(task)
    assert transforms_digest(task) == before
    edited(diffusion / file, change)
    denoiser_config.cache_clear()
    assert transforms_digest(task) != before
    denoiser_config.cache_clear()


def test_the_version_that_saved_a_scheduler_is_no_setting(diffusion: Path) -> None:
    task = pictures(diffusion).task
    before = transforms_digest(task)
    edited(
        diffusion / "scheduler" / "scheduler_config.json",
        lambda d: d.update(_diffusers_version="0.1"),
    )
    assert transforms_digest(task) == before


def test_a_part_that_is_gone_is_named(diffusion: Path) -> None:
    (diffusion / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(PlanError, match="has no text_encoder that can be read"):
        base_fingerprint(pictures(diffusion))


def test_names_of_pictures_are_what_they_were() -> None:
    """Golden numbers of this package, before bases and transforms of other tasks had more in
    them."""
    plan = read_plan({"task": "image-classification", "method": "bias", "classes": ["a", "b"]})
    assert base_fingerprint(plan) == "1a65e7ed254ed58113a08029a6a39377"
    assert transforms_digest(plan.task) == "cc4aa002134f07deee4c07d9e06fbdb7"
