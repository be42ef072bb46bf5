"""A whole model as `transformers` has it, and one with layers of fedpeft's own, whose code goes
into its folder."""

import json
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from fedpeft.methods.adapter import Adapted
from fedpeft.methods.prompt import Appended, Cut
from fedpeft.results.result import Result

CODE = "modeling_fedpeft"


def save_model(model: Any, out: Path) -> None:
    """config.json and model.safetensors."""
    model.save_pretrained(str(out))


def is_plain(model: Any) -> bool:
    """Whether the class of the model and its configuration alone make a model with the same
    tensors."""
    with torch.device("meta"):
        made = type(model)(deepcopy(model.config))
    return {n: x.shape for n, x in made.state_dict().items()} == {
        n: x.shape for n, x in model.state_dict().items()
    }


def own_layers(model: nn.Module) -> list[tuple[str, str, int]]:
    """Which of fedpeft's layers are where in the base model, in the order in which they are put
    there."""
    inner, outer = [], []
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            inner.append(("adapter", name, int(module.adapter.down.out_features)))
        elif isinstance(module, Appended):
            around = model.get_submodule(name.rpartition(".")[0])
            place = name.rpartition(".")[0] if isinstance(around, Cut) else name
            inner.append(("prompt", place, len(module.prompt)))
        elif isinstance(module, Cut):
            outer.append(("cut", name, module.tokens))
    return [*inner, *outer]


def save_with_code(model: Any, out: Path, result: Result) -> None:
    """The same two files and modeling_fedpeft.py, whose class makes the layers again. A shared
    adapter is written out for each block.

    Raises:
      RunError: the base model is not one of `transformers` itself.
    """
    import transformers

    name = type(model).__name__
    if getattr(transformers, name, None) is not type(model):
        raise result.refuse(f"its base model {name} is not one of transformers itself")
    code = (files("fedpeft") / "assets" / "export" / f"{CODE}.py").read_text(encoding="utf-8")
    (out / f"{CODE}.py").write_text(
        code.replace("ViTForImageClassification", name), encoding="utf-8"
    )
    config = json.loads(model.config.to_json_string(use_diff=False))
    config |= {
        "model_type": "fedpeft",
        "architectures": ["FedpeftModel"],
        "auto_map": {
            "AutoConfig": f"{CODE}.FedpeftConfig",
            result.loader.auto: f"{CODE}.FedpeftModel",
        },
        "fedpeft": own_layers(model),
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    seen: set[int] = set()
    tensors = {}
    for key, x in model.state_dict().items():
        tensors[key] = x.clone() if x.data_ptr() in seen else x.contiguous()
        seen.add(x.data_ptr())
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
