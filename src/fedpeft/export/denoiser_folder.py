"""The tuned denoiser of a text-to-image run as `diffusers` has it: LoRA for a pipeline to load, or
a whole `unet`."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from fedpeft.export.adapter_folder import merge_adapter
from fedpeft.methods.full import Full
from fedpeft.methods.peft_tuners import known_warnings_ignored
from fedpeft.results.result import Result, fill


def save_denoiser(result: Result, out: Path, merge: bool) -> Literal["adapter", "model"]:
    """pytorch_lora_weights.safetensors, or unet/; returns which.

    Raises:
      RunError: the method is one that `diffusers` has no form for.
    """
    configure = getattr(result.plan.method, "config", None)
    if callable(configure) and not merge:
        return _save_lora(result, out)
    if callable(configure):
        from peft import get_peft_model

        base: Any = _base(result)
        with known_warnings_ignored():
            wrapped = get_peft_model(base, configure(base))
        fill(wrapped, {f"base_model.model.{name}": x for name, x in result.tensors.items()}, result)
        model = merge_adapter(wrapped, result)
    else:
        model = result.plan.model(())
        fill(model, result.tensors, result)
        if model.state_dict().keys() != _base(result).state_dict().keys():
            raise result.refuse(
                "its layers are not the denoiser's own, and diffusers cannot load them"
            )
    model.save_pretrained(str(out / "unet"))
    return "model"


def _base(result: Result) -> Any:
    return replace(result.plan.of_one_rank, method=Full()).model(())


def _save_lora(result: Result, out: Path) -> Literal["adapter"]:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from peft import get_peft_model_state_dict

    model: Any = result.plan.model(())
    config = model.peft_config["default"]
    if config.peft_type.value != "LORA":
        raise result.refuse(
            f"diffusers loads no adapter of the kind {config.peft_type.value}; take --merge"
        )
    fill(model, result.tensors, result)
    _scale_into_factors(model, config)
    # A set is written in another order by each process.
    config.target_modules = sorted(config.target_modules)
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        str(out),
        unet_lora_layers=get_peft_model_state_dict(model),
        unet_lora_adapter_metadata=config.to_dict(),
    )
    return "adapter"


def _scale_into_factors(model: Any, config: Any) -> None:
    """Multiply each B by its α/r, under an α that equals r: loaders that read neither the
    metadata nor an α take 1 for the scale."""
    for module in model.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and "default" in getattr(module, "lora_B", {}):
            with torch.no_grad():
                module.lora_B["default"].weight.mul_(scaling["default"])
            scaling["default"] = 1.0
    config.lora_alpha, config.alpha_pattern, config.use_rslora = config.r, {}, False
