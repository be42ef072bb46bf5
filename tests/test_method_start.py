"""Beginning with an adapter that `peft` saved, also one saved under the names of `transformers`
4."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import batch_of, injected, logits_of, model_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedpeft.compute.trainable import read
from fedpeft.core.seeds import seed_torch
from fedpeft.errors import PlanError
from fedpeft.methods.peft_tuners import known_warnings_ignored
from fedpeft.methods.vit_names import new_name, old_name

METHODS = ["lora", "dora", "rslora", "ia3", "layernorm", "vera"]
OLD_TARGETS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "fc2": "output.dense"}


def _saved(name: str, folder: Path, kind: str = "vit", **settings: Any) -> Tensor:
    """Save an adapter, all of it at random, as a user of `peft` does; its logits."""
    import peft

    head = "classifier" if kind in ("vit", "bert") else "score"
    qv = ["q_proj", "v_proj"] if kind != "bert" else ["query", "value"]
    low = {"r": 4, "lora_alpha": 6, "target_modules": qv, "modules_to_save": [head]}
    feed = {"feedforward_modules": ["fc2"], "target_modules": ["k_proj", "v_proj", "fc2"]}
    norms = ["layernorm_before", "layernorm_after", "layernorm"]
    config: Any = {
        "lora": lambda: peft.LoraConfig(**{**low, **settings}),
        "dora": lambda: peft.LoraConfig(use_dora=True, **low),
        "rslora": lambda: peft.LoraConfig(use_rslora=True, **low),
        "ia3": lambda: peft.IA3Config(modules_to_save=[head], **feed),
        "layernorm": lambda: peft.LNTuningConfig(target_modules=norms, modules_to_save=[head]),
        "vera": lambda: peft.VeraConfig(r=5, target_modules=qv, modules_to_save=[head]),
    }[name]()
    with known_warnings_ignored(), seed_torch(2):
        wrapper = peft.get_peft_model(model_of(kind), config).eval()
        for parameter in wrapper.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.2 * torch.randn(parameter.shape))
    wrapper.save_pretrained(folder)
    return logits_of(wrapper, batch_of(kind)).detach()


def _edit(
    folder: Path,
    settings: dict[str, Any],
    tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    save_file(tensors(load_file(weights)), weights)


def _spec(name: str, folder: Path, **more: Any) -> dict[str, Any]:
    low = {"rank": 4, "alpha": 6.0} if name in ("lora", "dora", "rslora") else {}
    return {
        "name": name,
        "init": str(folder),
        **low,
        **({"rank": 5} if name == "vera" else {}),
        **more,
    }


@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_saved_by_peft_is_where_training_begins(name: str, tmp_path: Path) -> None:
    expected = _saved(name, tmp_path)
    model, _ = injected(_spec(name, tmp_path), "vit")
    assert torch.allclose(logits_of(model, batch_of("vit")), expected, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_so_is_one_saved_under_the_old_names(name: str, tmp_path: Path) -> None:
    expected = _saved(name, tmp_path)
    prefix = "base_model.model."
    renamed = {"target_modules": list(OLD_TARGETS.values()), "peft_version": "0.10.0"}

    def aged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            prefix + old_name(k.removeprefix(prefix)) if prefix in k else k: x
            for k, x in tensors.items()
        }

    _edit(tmp_path, renamed, aged)
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert not any(".layers." in key for key in keys)
    assert any(".encoder.layer.0." in key for key in keys)
    model, _ = injected(_spec(name, tmp_path), "vit")
    assert torch.allclose(logits_of(model, batch_of("vit")), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_names_that_look_old_but_are_the_model_s_own_stay(kind: str, tmp_path: Path) -> None:
    expected = _saved("lora", tmp_path, kind)
    model, _ = injected(_spec("lora", tmp_path), kind)
    assert torch.allclose(logits_of(model, batch_of(kind)), expected, atol=1e-6)


def test_the_old_names_are_those_that_transformers_writes(tmp_path: Path) -> None:
    model: Any = model_of("vit")
    model.save_pretrained(tmp_path)
    written = set(load_file(tmp_path / "model.safetensors"))
    inside = [name for name, _ in model.named_parameters()]
    assert written == {old_name(name) for name in inside}
    assert inside == [new_name(old_name(name)) for name in inside]
    # Each of a block's weights and biases.
    assert sum(old_name(name) != name for name in inside) == 3 * 16
    assert (
        new_name("vit.encoder.layer.11.attention.attention.query")
        == "vit.layers.11.attention.q_proj"
    )
    assert new_name("bert.pooler.dense.weight") == "bert.pooler.dense.weight"


def test_a_head_for_other_classes_is_left_out_on_request(tmp_path: Path) -> None:
    _saved("lora", tmp_path)
    with pytest.raises(PlanError, match=r"classifier.*init_head = false"):
        injected(_spec("lora", tmp_path), "vit", num_labels=7)
    model, names = injected(_spec("lora", tmp_path, init_head=False), "vit", num_labels=7)
    fresh, _ = injected(_spec("lora", tmp_path) | {"init": ""}, "vit", num_labels=7)
    new, old = read(model, names), read(fresh, names)
    assert all(torch.equal(new[n], old[n]) for n in names if "classifier" in n)
    assert all(not torch.equal(new[n], old[n]) for n in names if "lora_" in n)


def _without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: x for key, x in tensors.items() if part not in key}


def _same(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


@pytest.mark.parametrize(
    ("settings", "tensors", "spec", "message"),
    [
        ({}, _same, {"rank": 8}, "r = 4, the plan's method has 8"),
        ({}, _same, {"alpha": 5.0}, "lora_alpha = 6, the plan's method has 5.0"),
        ({}, _same, {"name": "dora"}, "use_dora = False"),
        ({"peft_type": "IA3"}, _same, {}, "peft_type = 'IA3', the plan's method has 'LORA'"),
        ({"rank_pattern": {"q_proj": 2}}, _same, {}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, _same, {}, "changes the base"),
        (
            {},
            _without("layers.1.attention.q_proj.lora_B"),
            {},
            "lacks 1 of the 14 tensors.*layers.1.*lora_B",
        ),
        ({}, _without("classifier"), {}, "lacks 2 of the 14.*init_head = false"),
        (
            {},
            lambda x: x | {"base_model.model.extra.lora_A.weight": torch.ones(2)},
            {},
            "1 tensors that have no place",
        ),
        ({}, _same, {"target": ["k_proj"]}, "no place.*q_proj, v_proj.*`target`"),
        ({}, _same, {"head": ""}, "no place.*classifier"),
    ],
)
def test_an_adapter_that_does_not_match_says_where(
    settings: dict[str, Any],
    tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    spec: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    _saved("lora", tmp_path)
    _edit(tmp_path, settings, tensors)
    with pytest.raises(PlanError, match=message):
        injected(_spec("lora", tmp_path) | spec, "vit")


def test_vera_needs_the_projections_that_the_adapter_was_trained_with(tmp_path: Path) -> None:
    _saved("vera", tmp_path)
    with pytest.raises(PlanError, match=r"projection_prng_key = 0, the plan's method has 3"):
        injected(_spec("vera", tmp_path, projection_seed=3), "vit")
    _edit(tmp_path, {}, lambda x: x | {"base_model.vera_A": 2 * x["base_model.vera_A"]})
    with pytest.raises(PlanError, match="vera_A is not the one"):
        injected(_spec("vera", tmp_path), "vit")


def test_a_folder_that_holds_no_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nowhere.*adapter_config\.json"):
        injected({"name": "lora", "init": str(tmp_path / "nowhere")}, "vit")
    _saved("lora", tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(PlanError, match="cannot be read"):
        injected(_spec("lora", tmp_path), "vit")
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"pickled")
    with pytest.raises(PlanError, match="pickled"):
        injected(_spec("lora", tmp_path), "vit")
