"""Runs of every method, their exported folders, and what these compute where there is no
fedpeft."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.func import functional_call

from fedpeft import read_plan
from fedpeft.catalogue import CATALOGUE
from fedpeft.compute.feature_cache import FEATURES
from fedpeft.core.low_rank import EXACT, merge_exact
from fedpeft.core.seeds import seed_torch
from fedpeft.core.tensors import take_prefix
from fedpeft.core.types import Batch
from fedpeft.rounds.site import Site
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.execute import execute, open_engine, open_run_site
from fedpeft.runs.folder import RunFolder, create
from fedpeft.storage.locate import locate

SMALL: dict[str, Any] = {
    "name": "small",
    "rounds": 1,
    "cohort": 2,
    "partition": {"name": "iid", "clients": 120},
    "local": {"epochs": 1, "batch_size": 16, "lr": 0.1},
}
RESIZED = {"name": "image-classification", "size": 16}
# "prefix" is for models of texts, and runs of the others are not exported.
LEFT_OUT = ("dual_adapter", "early_exits", "perfix", "prefix", "random_features")
CASES: dict[str, Mapping[str, Any]] = {
    **{name: {"method": name} for name in CATALOGUE["method"] if name not in LEFT_OUT},
    "adapter, shared": {"method": {"name": "adapter", "shared": True}},
    "prompt, shallow": {"method": {"name": "prompt", "deep": False}},
    "prompt, low rank": {"method": {"name": "prompt", "rank": 2}},
    "lora, head not trained": {"method": {"name": "lora", "head": "", "target": ["fc1", "o_proj"]}},
    "lora, SCAFFOLD": {
        "method": "lora",
        "local": {**SMALL["local"], "correction": "scaffold"},
    },
    "lora, FedEx": {"method": "lora", "aggregator": "fedex", "ranks": [2, 8]},
    "lora, pissa": {"method": {"name": "lora", "start": "pissa"}},
    "lora, pissa and FedEx": {
        "method": {"name": "lora", "start": "pissa", "rank": 4},
        "aggregator": "fedex",
    },
    "lora, orthogonal": {"method": {"name": "lora", "start": "orthogonal"}},
    "rslora, FLoRA": {"method": "rslora", "aggregator": "flora"},
    "lora, resized": {"method": "lora", "task": RESIZED},
    "layernorm, resized": {"method": "layernorm", "task": RESIZED},
    "bias, resized": {"method": "bias", "task": RESIZED},
    "prompt, resized": {"method": "prompt", "task": RESIZED},
}
BERT = ("bert, lora", "bert, adapter", "bert, full")
LLAMA = ("llama, prefix", "llama, lora", "llama, adapter")
MERGED = (
    "lora",
    "rslora",
    "dora",
    "ia3",
    "vera",
    "layernorm",
    "lora, resized",
    "lora, FedEx",
    "lora, pissa",
    "lora_xs",
    "ffa",
    "bert, lora",
)
WORDS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
)
ELSEWHERE = """
import json, sys
sys.modules["fedpeft"] = None  # whoever imports it fails
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
for folder in json.loads(sys.argv[1]):
    names = {}
    exec(open(f"{folder}.py").read(), names)
    with torch.inference_mode():
        save_file({"logits": names["model"](**load_file(f"{folder}.in")).logits}, f"{folder}.out")
    with open(f"{folder}.json", "w") as file:
        labels = names["model"].config.id2label
        kind = type(names["model"]).__name__
        json.dump({"labels": [labels[k] for k in sorted(labels)], "class": kind}, file)
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
    inputs = {name: x[:16] for name, x in batch.items() if name not in ("label", "mask", FEATURES)}
    own = {name: saved.state.params[name] for name in plan.method.names(site.model)}
    # The site's multiplies by packed weights, which rounds otherwise.
    model = plan.model(site.classes).eval()
    own |= merge_exact(model, take_prefix(EXACT, saved.state.flat))
    with torch.inference_mode():
        logits = functional_call(model, own, (), inputs).logits
    return Done(folder, site, inputs, logits)


def loading_lines(folder: Path) -> str:
    """The lines of an export's card that load it, with the base where it lies here, as a reader
    sets it."""
    card = (folder / "README.md").read_text()
    found = re.search("```python\n(.*?)```", card, re.S)
    assert found
    model = tomllib.loads((folder / "fedpeft-plan.toml").read_text())["task"]["model"]
    lines, place = found[1], locate(model)
    if not place or not place.is_dir():
        return lines
    assert str(place) not in lines
    return re.sub(r"(?m)^base = .*$", lambda _: f"base = {json.dumps(str(place))}", lines)


def loaded_elsewhere(folders: Mapping[Path, Done], cache: Path) -> None:
    """Each folder's logits to a file beside it."""
    for folder, run in folders.items():
        save_file({name: x.contiguous() for name, x in run.inputs.items()}, f"{folder}.in")
        Path(f"{folder}.py").write_text(loading_lines(folder))
    env = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    names = json.dumps([str(folder) for folder in folders])
    ended = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, names], env=env, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


def text_cases(root: Path, real_data: Path | None) -> dict[str, Mapping[str, Any]]:
    """Runs on texts, with a small BERT, and with the Llama of the real data where these are."""
    rows = (
        {"text": " ".join(WORDS[(k * j) % 13] for j in range(1, 4 + k % 5)), "label": WORDS[k % 3]}
        for k in range(80)
    )
    (root / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_bert(root / "bert")
    data = {
        "data": {"name": "table", "path": str(root / "texts.jsonl")},
        "partition": {"name": "iid", "clients": 4},
    }

    def on(model: Path, method: Any) -> dict[str, Any]:
        return {
            **data,
            "method": method,
            "task": {"name": "text-classification", "model": str(model), "max_length": 6},
        }

    cases: dict[str, Mapping[str, Any]] = {
        name: on(root / "bert", name.split(", ")[1]) for name in BERT
    }
    if real_data is not None and (llama := real_data / "stories260k").is_dir():
        cases |= {name: on(llama, name.split(", ")[1]) for name in LLAMA}
    return cases


def save_bert(folder: Path) -> None:
    """A small BERT without pooler, which a classifier then has at random, and its tokenizer."""
    import transformers as hf
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    size = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    vocabulary = {word: k for k, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    with seed_torch(3):
        hf.BertModel(
            hf.BertConfig(vocab_size=len(vocabulary), **size), add_pooling_layer=False
        ).save_pretrained(folder)
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    hf.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
