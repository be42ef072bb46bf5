"""Which layers a tuner goes into: those that a user named, or the projections of every mixer."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fedpeft.compute.trainable import new_layers, parts_of, within
from fedpeft.errors import PlanError, unknown
from fedpeft.methods.transformer_layout import is_linear, name_model, trained_head

ALL = "all-linear"
"""The target that means every linear layer outside the head."""
PROJECTIONS = {
    "q": (
        *("q_proj", "query", "q_lin", "q", "to_q", "query_proj", "q_b_proj", "q_gate_proj"),
        *("project_q", "Wq", "q_head", "projection_query", "to_query"),
    ),
    "k": (
        *("k_proj", "key", "k_lin", "k", "to_k", "key_proj", "kv_b_proj"),
        *("project_k", "Wk", "k_head", "projection_key", "to_key"),
    ),
    "v": (
        *("v_proj", "value", "v_lin", "v", "to_v", "value_proj", "kv_b_proj"),
        *("project_v", "Wv", "v_head", "projection_value"),
    ),
}
"""The last part of the names that models give their attention's projections; in multi-head latent
attention (DeepSeek-V2, arXiv:2405.04434) those out of the latent space."""
FUSED = (
    "qkv_proj",
    "query_key_value",
    "queries_keys_values",
    "c_attn",
    "Wqkv",
    "qkv",
    "in_proj_qkvz",
    "in_proj_qkv",
    "in_proj",
    "kv_proj",
    "kv",
    "to_query",
    "projection_in",
    "linear_x",
    "pwconv1",
)
"""The same of one layer that makes several projections at once, as attention (GPT-2, Falcon),
linear attention (Qwen3-Next), short convolutions (LFM2) and state spaces (Mamba) do; and where
there is no attention, the layer that lets tokens or pixels into a block: SwiftFormer, FocalNet,
RecurrentGemma, ConvNeXt."""


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers by name."""
    return {name: module for name, module in model.named_modules() if is_linear(module)}


def attention_projections(model: nn.Module, which: str) -> list[str]:
    """The last parts of the names, in this model, of the projections `which`, e.g. "qv", of all
    blocks and towers.

    Each module that mixes tokens has projections of its own names: separate ones, or one that makes
    several. In a model of several kinds of blocks each kind gives its names.

    Raises:
      PlanError: none of the usual names is there, or a block has none of them.
    """
    found: dict[str, None] = {}
    covered: set[str] = set()
    layers = list(linear_layers(model))
    for mixer, parts in _by_parent(layers).items():
        if names := _projections(mixer, parts, which):
            found |= dict.fromkeys(names)
            covered.add(_block(mixer))
    left = [name for name in layers if _mixes(name) and _block(name) not in covered]
    if not found or left:
        present = sorted({name.rpartition(".")[2] for name in layers})
        some = f"of {left[0].rpartition('.')[0]!r} " if found else ""
        raise PlanError(
            f"cannot tell the attention's projections {some}in {name_model(model)}; "
            f'set the method\'s key `target` to "{ALL}", or to some of its linear layers: '
            f"{', '.join(present) or 'it has none'}"
        )
    return list(found)


def target_layers(model: nn.Module, target: tuple[str, ...], head: str) -> list[str]:
    """The whole names of the layers that a tuner goes into: those that a user named, or query and
    value; without what is trained whole.

    Raises:
      PlanError: see `find_targets` and `attention_projections`.
    """
    wanted = find_targets(model, target, head) or attention_projections(model, "qv")
    whole = set(excluded(model, wanted, head))
    return [
        name
        for name, _ in model.named_modules()
        if name not in whole and any(_ends(name, one) for one in wanted)
    ]


def find_targets(
    model: nn.Module, target: tuple[str, ...], head: str = "auto", which: str = "qv"
) -> list[str]:
    """The layers that a user named: by the last parts of their names, by a pattern with `*` for
    whole names, by the part of the model that they lie in, or all.

    Args:
      head: see `trained_head`; what is trained whole takes no tuner.
      which: the attention's projections that a part of the model stands for.

    Raises:
      PlanError: the model has no such layer, or only one that is trained whole.
    """
    whole = set(trained_whole(model, head)) if target else set()
    found: dict[str, None] = {}
    for one in target:
        if one == ALL:
            found |= dict.fromkeys(name for name in _every_linear(model) if name not in whole)
            continue
        if one in (parts := parts_of(model)):
            found |= dict.fromkeys(_projections_within(model, parts[one], which))
            continue
        meant = _meant(model, one)
        if set(meant) <= whole:
            raise PlanError(
                f"target {one!r} means {meant[0]!r} alone, which is trained whole, since it is "
                'new: leave it out of `target`, or leave the head untrained with head = ""'
            )
        found |= dict.fromkeys(meant if "*" in one else [one])
    return list(found)


def trained_whole(model: nn.Module, head: str) -> list[str]:
    """The modules that are trained without a tuner: the head and its parts, and new layers."""
    trained, new = trained_head(model, head), new_layers(model).beside
    if not trained:
        return []
    owners = {name.rpartition(".")[0] for name in new}
    return [name for name, _ in model.named_modules() if within(name, trained) or name in owners]


def excluded(model: nn.Module, targets: list[str], head: str) -> list[str]:
    """The modules among those that the targets mean which are trained whole."""
    whole = trained_whole(model, head)
    return [name for name in whole if any(_ends(name, one) for one in targets)]


def _projections_within(model: nn.Module, part: str, which: str) -> list[str]:
    """The whole names of the attention's projections in one part of a model."""
    inner = model.get_submodule(part)
    wanted = attention_projections(inner, which)
    return [
        f"{part}.{name}" for name in linear_layers(inner) if any(_ends(name, one) for one in wanted)
    ]


def _every_linear(model: nn.Module) -> Iterator[str]:
    """All linear layers by their whole names, but for a language model's output."""
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    return (name for name, module in linear_layers(model).items() if module is not output)


def _meant(model: nn.Module, one: str) -> list[str]:
    """The modules that a target means, at least one."""
    if "*" in one:
        found = [name for name in linear_layers(model) if fnmatchcase(name, one)]
    else:
        found = [name for name, _ in model.named_modules() if _ends(name, one)]
    if not found:
        raise _unknown_layer(model, one)
    return found


def _unknown_layer(model: nn.Module, one: str) -> PlanError:
    if any(_ends(name, one) for name, _ in model.named_parameters()):
        return PlanError(
            f"{name_model(model)}: {one!r} is a parameter and no layer (a mixture's experts in one "
            f'tensor are), and tuners go into layers: set `target` to "{ALL}" or to layers, or use '
            'method = "full"'
        )
    if "*" in one:
        first = next(iter(linear_layers(model)), "none")
        return PlanError(
            f"{name_model(model)}: no linear layer has a name like {one!r}; a pattern is of whole "
            f"names, such as {first!r}"
        )
    last = {name.rpartition(".")[2] for name in linear_layers(model)} | {ALL, *parts_of(model)}
    return PlanError(f"{name_model(model)}: " + unknown("layer", one, last))


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _by_parent(layers: list[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in layers:
        found.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
    return found


def _projections(mixer: str, parts: list[str], which: str) -> list[str]:
    """What of a module's linear layers are projections, by the ends of their names."""
    if parts == ["linear"]:  # inside of a module of the usual name: LeViT, Moshi
        outer = mixer.rpartition(".")[2]
        return [f"{outer}.linear"] if _usual(outer, which) else []
    return _separate(parts, which) or [one for one in FUSED if one in parts][:1]


def _separate(parts: list[str], which: str) -> list[str]:
    """The names of all of `which` in a module; none if one lacks."""
    found = [next((name for name in PROJECTIONS[one] if name in parts), "") for one in which]
    return list(dict.fromkeys(found)) if all(found) else []


def _usual(name: str, which: str) -> bool:
    return name in FUSED or any(name in PROJECTIONS[one] for one in which)


def _block(name: str) -> str:
    """The part of a name that says in which block it is; "" outside all blocks."""
    parts = name.split(".")
    place = next((k for k, part in enumerate(parts) if part.isdigit()), None)
    return "" if place is None else ".".join(parts[: place + 1])


def _mixes(name: str) -> bool:
    """Whether a layer's name says that it is part of what mixes tokens."""
    inside = name[len(_block(name)) :].lower()
    return bool(_block(name)) and any(word in inside for word in ("att", "mamba"))
