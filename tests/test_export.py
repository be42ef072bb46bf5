"""Exported folders: loaded by the lines of their card, in a process that has no fedpeft, they compute what the run does."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

from fedpeft import read_plan
from fedpeft.client import Site
from fedpeft.core.types import Batch
from fedpeft.registry import CATALOGUE
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.execute import execute, open_engine, open_run_site
from fedpeft.runs.export import export_run
from fedpeft.runs.folder import RunFolder, create

SMALL: dict[str, Any] = {
    "name": "small",
    "rounds": 1,
    "cohort": 2,
    "partition": {"name": "iid", "clients": 60},
    "local": {"epochs": 1, "batch_size": 16, "lr": 0.1},
}
RESIZED = {"name": "image-classification", "size": 16}
CASES: dict[str, Mapping[str, Any]] = {
    **{name: {"method": name} for name in CATALOGUE["method"] if name != "prefix"},  # which no vision model takes
    "adapter, shared": {"method": {"name": "adapter", "shared": True}},
    "prompt, shallow": {"method": {"name": "prompt", "deep": False}},
    "lora, head not trained": {"method": {"name": "lora", "head": "", "target": ["fc1", "o_proj"]}},
    "lora, resized": {"method": "lora", "task": RESIZED},
    "layernorm, resized": {"method": "layernorm", "task": RESIZED},
    "bias, resized": {"method": "bias", "task": RESIZED},
    "prompt, resized": {"method": "prompt", "task": RESIZED},
}
MERGED = ("lora", "rslora", "dora", "ia3", "vera", "layernorm", "lora, resized")
ELSEWHERE = """
import json, re, sys, traceback
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
    with torch.inference_mode():
        logits = functional_call(site.model.eval(), dict(saved.state.params), (), inputs).logits
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
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    root = tmp_path_factory.mktemp("runs")
    return {name: done(root / str(k), **changes) for k, (name, changes) in enumerate(CASES.items())}


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


def test_show(runs, folders):
    for name, f in folders.items():
        run = runs[name.removesuffix(", merged")]
        got = load_file(f"{f}.out")["logits"]
        print(name, float((got-run.logits).abs().max()), torch.equal(got, run.logits), sorted(p.name for p in f.iterdir()), json.load(open(f"{f}.json"))["class"])
