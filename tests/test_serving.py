"""Exported language models against what servers take: vLLM's rules for adapters, which its loader
checks, and the lines of the card."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import changes, save_llama, save_texts
from safetensors import safe_open
from test_export_families import checkpointed

from fedpeft import read_plan
from fedpeft.export.export import export_run
from fedpeft.export.serving import RANKS, vllm_faults
from fedpeft.registry import REGISTERED

SERVED: dict[str, Any] = {
    "lora": "lora",
    "every linear layer": {"name": "lora", "target": ["all-linear"], "rank": 4},
    "rslora": "rslora",
    "ffa": "ffa",
    "lora_xs": {"name": "lora_xs", "rank": 4},
    "plora": "plora",
    "pissa": {"name": "lora", "start": "pissa", "rank": 4},
}
NOT_SERVED: dict[str, tuple[Any, str]] = {
    "dora": ("dora", "of DoRA"),
    "ia3": ("ia3", "of the kind IA3"),
    "vera": ({"name": "vera", "rank": 4}, "of the kind VERA"),
    "prefix": ("prefix", "of the kind PREFIX_TUNING"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("served")
    save_llama(found / "llama")
    save_texts(found)
    return found


def exported(root: Path, folder: Path, method: Any, merge: bool = False) -> Path:
    """The export of a run with tensors that no training gave."""
    plan = read_plan(changes(root / "llama", root / "texts.jsonl", method=method))
    run, _ = checkpointed(folder / "run", plan)
    export_run(run, folder / "out", merge, REGISTERED)
    return folder / "out"


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return found


@pytest.mark.parametrize("case", SERVED)
def test_an_adapter_keeps_the_rules_of_vllm(root: Path, tmp_path: Path, case: str) -> None:
    folder = exported(root, tmp_path, SERVED[case])
    config = config_of(folder)
    keeps: dict[str, Any] = {
        "peft_type": "LORA",
        "bias": "none",
        "modules_to_save": None,
        "use_dora": False,
    }
    keeps |= {"rank_pattern": {}, "alpha_pattern": {}}
    assert {name: config[name] for name in keeps} == keeps
    assert config["lora_alpha"] and config["target_modules"]
    sides: dict[str, list[torch.Size]] = {}
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
            assert match, name
            # its loader knows layers by the last parts of their names, and takes whole names too
            assert any(match[1].endswith(one) for one in config["target_modules"])
            shape = file.get_tensor(name).shape
            assert shape[0 if match[2] == "A" else 1] == config["r"]
            sides.setdefault(match[1], []).append(shape)
    assert sides and all(len(both) == 2 for both in sides.values())
    served = re.search(r"--max-lora-rank (\d+) ", (folder / "README.md").read_text())
    assert served and config["r"] <= int(served[1]) in RANKS


@pytest.mark.parametrize("case", NOT_SERVED)
def test_what_vllm_refuses_is_told_at_the_export(
    root: Path, tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    method, why = NOT_SERVED[case]
    with caplog.at_level(logging.WARNING, "fedpeft"):
        folder = exported(root, tmp_path, method)
    remedy = "peft alone runs it" if case == "prefix" else "export with --merge to serve it"
    line = f"vLLM takes no adapter {why}: {remedy}"
    assert line in caplog.messages and f"{line}." in (folder / "README.md").read_text()


def test_a_whole_model_is_served_as_it_is(root: Path, tmp_path: Path) -> None:
    folder = exported(root, tmp_path, "dora", merge=True)
    card = (folder / "README.md").read_text()
    assert f"vllm serve {folder}\n" in card and "convert_hf_to_gguf.py" in card


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"bias": "lora_only"}, ["with biases"]),
        ({"modules_to_save": ["lm_head"]}, ["with lm_head trained whole"]),
        ({"rank_pattern": {"q_proj": 2}}, ["of several ranks"]),
        ({"r": 513, "use_dora": True}, ["of DoRA", "of a rank above 512"]),
        ({"r": 512}, []),
    ],
)
def test_further_faults(changed: dict[str, Any], why: list[str]) -> None:
    assert list(vllm_faults({"peft_type": "LORA", "r": 8, **changed})) == why
