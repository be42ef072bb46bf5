"""An adapter as Hugging Face `peft` has it: only what differs from the base model, to be loaded on
top of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedpeft.compute.trainable import head_of, within
from fedpeft.methods.full import Full
from fedpeft.methods.peft_tuners import known_warnings_ignored
from fedpeft.results.result import Result, fill
from fedpeft.tasks.pretrained import NO_CODE

LABELS = ("id2label", "label2id", "num_labels", "architectures", "dtype", "transformers_version")
"""What a configuration says of the classes, and of how it was saved."""


@dataclass(frozen=True)
class Base:
    """The base model as a user loads it.

    Attributes:
      place: the folder or hub name.
      settings: what `from_pretrained` must be told beside the number of classes, e.g. another
        `image_size`.
    """

    place: str
    settings: Mapping[str, Any]


def wrap_adapter(result: Result, configure: Callable[[nn.Module], Any]) -> tuple[Any, Base]:
    """The base model in `peft`'s wrapper, with the run's tensors; and the base as a user has it.

    What the plan's base has and the user's has not, because it is random or was resized, belongs to
    the adapter.

    Args:
      configure: gives `peft`'s configuration for a base model.

    Raises:
      RunError: the adapter has tensors that the wrapper has no place for, or the base is nowhere.
    """
    from peft import get_peft_model

    model: Any = replace(result.plan.unquantized.of_one_rank, method=Full()).model(result.classes)
    if not model.config._name_or_path:
        raise result.refuse(
            "its base has random weights and lies in no folder, so that nobody could load the "
            "adapter onto it: train the whole model (method full), or save a base first"
        )
    base = _base(model, result)
    config, also = configure(model), _unlike(model, base, result)
    if hasattr(config, "modules_to_save"):
        config.modules_to_save = also or None
    elif foreign := [name for name in also if name != head_of(model)]:
        raise result.refuse(
            f"peft saves no further parts beside a {config.peft_type.value}, and {foreign} are "
            "random"
        )
    with known_warnings_ignored():
        wrapped: Any = get_peft_model(model, config)
    places = {_bare(name): name for name, _ in wrapped.named_parameters()}
    fill(wrapped, {places.get(_bare(name), name): x for name, x in result.tensors.items()}, result)
    return wrapped.eval(), base


def save_adapter(wrapped: Any, out: Path, name: str) -> None:
    """adapter_config.json and adapter_model.safetensors.

    Args:
      name: the base model's, as it is known elsewhere.
    """
    config = wrapped.peft_config["default"]
    config.base_model_name_or_path = name  # peft's would be the folder on this machine
    for key in ("target_modules", "feedforward_modules", "modules_to_save"):
        if isinstance(value := getattr(config, key, None), list | set):
            # A set is written in another order by each process.
            setattr(config, key, sorted(set(value)))
    # without the setting peft may ask the hub whether the vocabulary grew
    wrapped.save_pretrained(str(out), save_embedding_layers=False)


def merge_adapter(wrapped: Any, result: Result) -> Any:
    """The base model with the adapter computed into its weights.

    Raises:
      RunError: the adapter cannot be.
    """
    if wrapped.peft_config["default"].is_prompt_learning:
        raise result.refuse(
            "a prefix stands beside the input and cannot be merged into weights; leave out --merge"
        )
    _untie(wrapped)
    _unwrap_whole(wrapped)
    model: Any = wrapped.merge_and_unload(safe_merge=True)
    return model


def _unwrap_whole(wrapped: Any) -> None:
    """Put modules that were trained whole in the places of peft's wrappers around them. Merging
    LayerNorms, peft leaves these, and merging IA3 and VeRA it takes a head of several layers for
    one."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = wrapped.get_base_model()
    for name, module in list(model.named_modules()):
        unload = getattr(module, "unload_and_optionally_merge_module", None)
        if unload is not None and not isinstance(module, BaseTunerLayer):
            model.set_submodule(name, unload(merge=True, safe_merge=True, adapter_names=None))


def _untie(wrapped: Any) -> None:
    """Give each tuned layer a weight of its own: merged into one that an embedding and the output
    layer share, an adapter on one of them would change both."""
    every = [id(x) for _, x in wrapped.named_parameters(remove_duplicate=False)]
    for module in wrapped.modules():
        layer = module.get_base_layer() if hasattr(module, "get_base_layer") else None
        weight = getattr(layer, "weight", None)
        if layer is not None and weight is not None and every.count(id(weight)) > 1:
            layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
            wrapped.get_base_model().config.tie_word_embeddings = False


def _base(model: Any, result: Result) -> Base:
    from transformers import AutoConfig

    place = model.config._name_or_path
    stock = AutoConfig.from_pretrained(place, **NO_CODE).to_dict()
    ours = model.config.to_dict()
    settings = {
        key: x for key, x in ours.items() if key not in LABELS and _differs(x, stock.get(key))
    }
    if result.loader.classifies:
        names = dict(enumerate(result.classes))
        named = AutoConfig.from_pretrained(place, id2label=names, **NO_CODE)
        if named.num_labels != len(names):  # PVT counts them apart from their names
            settings["num_labels"] = len(names)
    return Base(place, settings)


def _differs(x: Any, stock: Any) -> bool:
    """Whether a setting is another than the base's. The configuration of a part of a model, as of
    its vision tower, is compared key by key: loading alone notes a dtype in it."""
    if isinstance(x, dict) and isinstance(stock, dict) and "model_type" in x:
        keys = {*x, *stock} - {*LABELS}
        return any(_differs(x.get(key), stock.get(key)) for key in keys)
    return bool(x != stock)


def _unlike(model: nn.Module, base: Base, result: Result) -> list[str]:
    """The modules to be saved with the adapter: a new or trained head, and the owners of what the
    base has not."""
    import transformers

    load = getattr(transformers, result.loader.auto).from_pretrained
    settings = {"num_labels": len(result.classes)} if result.loader.classifies else {}
    plain = load(
        base.place,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        **{**settings, **base.settings},
        **NO_CODE,
    )
    theirs, head, ours = plain.state_dict(), head_of(model), model.state_dict()
    unlike = [n for n, x in ours.items() if n not in theirs or not torch.equal(x, theirs[n])]
    owners = sorted({name.rpartition(".")[0] for name in unlike if not within(name, head)})
    # A language model's head is the base's own, unless it was trained.
    if result.loader.classifies or any(
        within(name, head) for name in result.tensors if name in ours
    ):
        owners = [head, *owners] if head else owners
    return _outermost(owners)


def _outermost(modules: Sequence[str]) -> list[str]:
    """Those that lie within none of the others."""
    return [
        one for one in modules if not any(one != other and within(one, other) for other in modules)
    ]


def _bare(name: str) -> str:
    """A tensor's name without what `peft` puts around the model's own."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
