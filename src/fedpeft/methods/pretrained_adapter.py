"""Begin with a saved adapter: a folder that Hugging Face `peft` wrote."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.compute.trainable import trainable, within, write
from fedpeft.core.types import Tensors
from fedpeft.errors import PlanError, RunError
from fedpeft.methods.vit_names import new_name, old_name
from fedpeft.storage.files import load_tensors
from fedpeft.storage.locate import locate

SETTINGS = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "fan_in_fan_out",
    "projection_prng_key",
)
"""What changes the function that the same tensors compute; an adapter may begin only where all of
it is equal."""

PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways to initialise LoRA that leave the base's weights as they are; PiSSA, OLoRA and others change
them."""

NEW_HEAD = "; set init_head = false to begin with a new head"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Start:
    """A folder with `adapter_config.json` and `adapter_model.safetensors`, and whether its head is
    taken too."""

    folder: str
    with_head: bool

    @classmethod
    def of(cls, folder: str, with_head: bool) -> "Start | None":
        """None for no folder."""
        return cls(folder, with_head) if folder else None


def start_from(start: Start, config: Any, model: nn.Module, head: str) -> None:
    """Write the saved adapter's tensors, all of them and nothing else, into the injected model.

    Names of vision transformers in the form of `transformers` 4 are understood.

    Raises:
      PlanError: the folder is no adapter, was made with other settings, or has other tensors than
        the model.
    """
    settings, saved = _read(start.folder)
    _check_settings(start.folder, settings, config)
    names = trainable(model)
    if head and not start.with_head:
        names = [name for name in names if not within(name, head)]
        saved = {key: x for key, x in saved.items() if not within(_bare(key), head)}
    wanted = {_key(name): name for name in names}
    trained = _without_frozen(_without_projections(start.folder, saved, model), model, names)
    found = {_match(key, wanted): x for key, x in trained.items()}
    _check_names(start.folder, trained, wanted, head)
    shapes = {name: x.shape for name, x in model.named_parameters()}
    for key, x in found.items():
        _check_shape(start.folder, key, x, shapes[wanted[key]], head)
    write(model, {wanted[key]: x for key, x in found.items()})


def _without_frozen(saved: Tensors, model: nn.Module, trained: Sequence[str]) -> Tensors:
    """Without what an export adds of parts that the base as it is saved has not, such as positions
    of another size, where the model has the very same."""
    frozen = {n: x for n, x in model.named_parameters() if n not in trained}
    return {
        key: x
        for key, x in saved.items()
        if (own := frozen.get(_bare(key))) is None or not torch.equal(own.cpu(), x.to(own.dtype))
    }


def _check_shape(folder: str, key: str, saved: Tensor, shape: torch.Size, head: str) -> None:
    if saved.shape != shape:
        hint = NEW_HEAD if head and within(key, head) else ""
        raise PlanError(
            f"{folder}: {key!r} has the shape {list(saved.shape)}, the model's has "
            f"{list(shape)}{hint}"
        )


def _read(folder: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    place = locate(folder) or Path(folder)
    config, weights = place / "adapter_config.json", place / "adapter_model.safetensors"
    for file in (config, weights):
        if not file.is_file():
            if (place / "config.json").is_file():
                raise PlanError(
                    f"init = {folder!r} is a whole model and no adapter: begin with it by task."
                    f'model = "{folder}"'
                )
            raise PlanError(
                f"init = {folder!r} is no folder of a saved adapter: "
                f"it has no {file.name} (looked here, in $FEDPEFT_DATA and in the package; "
                "a pickled adapter_model.bin is not read)"
            )
    try:
        settings = json.loads(config.read_text())
        tensors = load_tensors(weights)[0]
    except (OSError, ValueError, RunError) as error:
        raise PlanError(f"init = {folder!r} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise PlanError(f"init = {folder!r}: its adapter_config.json holds no settings")
    return settings, tensors


def _check_settings(folder: str, settings: Mapping[str, Any], config: Any) -> None:
    usual = type(config)()
    for key in SETTINGS:
        if not hasattr(config, key):
            continue
        ours, theirs = getattr(config, key), settings.get(key, getattr(usual, key))
        if ours != theirs:
            ours = getattr(ours, "value", ours)
            raise PlanError(
                f"{folder} was made with {key} = {theirs!r}, the plan's method has {ours!r}"
            )
    if settings.get("init_lora_weights", True) not in PLAIN_INITS:
        raise PlanError(
            f"{folder} was made with init_lora_weights = {settings['init_lora_weights']!r}, "
            "which changes the base model; convert it to plain LoRA when saving "
            "(`path_initial_model_for_weight_conversion` of peft)"
        )


def _check_names(folder: str, saved: Tensors, wanted: Mapping[str, str], head: str) -> None:
    matched = {_match(key, wanted): key for key in saved}
    if foreign := sorted(key for match, key in matched.items() if match not in wanted):
        layers = sorted(
            {
                _layer(new_name(_bare(key)))
                for key in saved
                if not (head and within(_bare(key), head))
            }
        )
        raise PlanError(
            f"{folder} has {len(foreign)} tensors that have no place in the model, "
            f"first {foreign[0]!r}; it tunes the layers {', '.join(layers)}: "
            "set the method's `target` to them if the model has these"
        )
    if missing := sorted(set(wanted) - set(matched)):
        hint = NEW_HEAD if head and within(missing[0], head) else ""
        raise PlanError(
            f"{folder} lacks {len(missing)} of the {len(wanted)} tensors that the method trains, "
            f"first {missing[0]!r}{hint}"
        )


def _without_projections(folder: str, saved: Tensors, model: nn.Module) -> dict[str, Tensor]:
    """VeRA's frozen projections come from a seed; a saved copy of them must be the same."""
    made = {name.split(".")[-2]: x for name, x in model.named_buffers() if ".vera_" in name}
    for key in ("vera_A", "vera_B"):
        x = saved.get(f"base_model.{key}")
        if x is not None and (key not in made or not torch.equal(x.float(), made[key].float())):
            raise PlanError(
                f"{folder}: its projection {key} is not the one that the plan's projection_seed, "
                "rank and target make"
            )
    return {key: x for key, x in saved.items() if not key.startswith("base_model.vera_")}


def _match(key: str, wanted: Mapping[str, str]) -> str:
    bare = _bare(key)
    return next((name for name in (bare, new_name(bare), old_name(bare)) if name in wanted), bare)


def _bare(key: str) -> str:
    """A saved tensor's name without what `peft` puts around the model's own."""
    name = key.removeprefix(_PREFIX).replace(".modules_to_save.", ".")
    return name.removesuffix(".weight") if name.endswith("lora_magnitude_vector.weight") else name


def _key(name: str) -> str:
    """A parameter's name as `peft` saves it, without the prefix."""
    name = name.replace(".default", "")
    return name.removesuffix(".weight") if name.endswith("lora_magnitude_vector.weight") else name


def _layer(name: str) -> str:
    """`vit.layers.0.attention.q_proj.lora_A.weight` -> `q_proj`."""
    parts = name.split(".")
    tuner = next(
        (k for k, part in enumerate(parts) if part.startswith(("lora_", "ia3_", "vera_", "ln_"))),
        len(parts),
    )
    return parts[max(tuner - 1, 0)]
