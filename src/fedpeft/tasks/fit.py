"""Whether a checkpoint fits its model, and what of the model is new."""

from collections.abc import Collection, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from fedpeft.compute.trainable import HEADS, NewLayers, mark_new_layers, within
from fedpeft.core.seeds import seed_torch
from fedpeft.errors import PlanError

SHOWN = 3
"""Names in an error."""


def check_loaded(
    model: nn.Module, name: str, report: Mapping[str, Any], new: Collection[str]
) -> None:
    """Make sure that all weights but those in `new` came from the checkpoint.

    Args:
      report: what `from_pretrained` gives with `output_loading_info`.
      new: the names that may be random.

    Raises:
      PlanError: some are missing, or of another shape, and would be random.
    """
    mismatched = {one[0]: one[1:] for one in report["mismatched_keys"]}
    if wrong := sorted(key for key in mismatched if key not in new):
        saved, wanted = (list(shape) for shape in mismatched[wrong[0]][:2])
        raise PlanError(
            f"model {name!r}: its weights do not fit its configuration: {len(wrong)} tensors have "
            f"another shape, first {wrong[0]!r}: {saved} is saved, {wanted} is wanted. They would "
            "be random. Mend config.json, or name another model"
        )
    every = {key for key, x in model.state_dict().items() if x.is_floating_point()}
    if missing := sorted((set(report["missing_keys"]) & every) - set(new)):
        other = sorted(report["unexpected_keys"])
        has = f"; {len(other)} others are there that the model has no place for, " if other else ""
        raise PlanError(
            f"model {name!r}: its weights are not those of a {type(model).__name__}: "
            f"{len(missing)} of {len(every)} tensors are missing, first {_some(missing)}{has}"
            f"{'first ' + _some(other) if other else ''}. They would be random. Rename the saved "
            "tensors, mend config.json, name another model, or train all from scratch "
            '(method = "scratch")'
        )


def find_new(model: nn.Module, outputs: Collection[str], report: Mapping[str, Any]) -> NewLayers:
    """The head, and what else may be new: what stands between the pre-trained part and the head,
    and further heads.

    Args:
      outputs: the modules with a row for each class.
      report: see `check_loaded`.
    """
    head = _principal(model, outputs)
    absent = {*report["missing_keys"], *(one[0] for one in report["mismatched_keys"])}
    base = _base(model)
    further = [one for one in outputs if not (head and within(one, head))]
    beside = [
        key
        for key, _ in model.named_parameters()
        if not (head and within(key, head))
        and (_within_any(key, further) or (key in absent and not _pretrained(key, base)))
    ]
    return NewLayers(head, tuple(beside))


def note_new(model: nn.Module, found: NewLayers) -> None:
    """Keep on the model what is new in it."""
    usual = found.head in HEADS and _first_usual(model) == found.head
    mark_new_layers(model, head="" if usual else found.head, beside=found.beside)


def note_output(model: nn.Module) -> None:
    """Keep on a language model which module is its output layer, where the usual names do not tell:
    GPT-NeoX calls it `embed_out`, XLNet `lm_loss`."""
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if not _first_usual(model) and output is not None:
        names = (name for name, module in model.named_modules() if module is output)
        mark_new_layers(model, head=next(names, ""))


def output_layers(model: nn.Module, config: Any) -> list[str]:
    """The modules whose tensors have another shape with one class more; none where that cannot be
    told."""
    other = deepcopy(config)
    other.num_labels = len(config.id2label) + 1
    try:
        with seed_torch(0), torch.device("meta"):
            larger = type(model)(other)
    except Exception:  # some models compute with numbers of their own while they are made
        return []
    shapes = {key: x.shape for key, x in larger.state_dict().items()}
    changed = [key for key, x in model.named_parameters() if shapes.get(key, x.shape) != x.shape]
    return list(dict.fromkeys(key.rpartition(".")[0] for key in changed))


def _principal(model: nn.Module, outputs: Collection[str]) -> str:
    """The head: the usual one where it has an output layer, or the outermost module around the
    first output layer that is not the pre-trained part; "" for none."""
    usual = _first_usual(model)
    if not outputs or any(within(one, usual) for one in outputs if usual):
        return usual
    first = next(iter(outputs))
    top = first.partition(".")[0]
    return first if top in (_base(model), "") else top


def _first_usual(model: nn.Module) -> str:
    return next((one for one in HEADS if isinstance(getattr(model, one, None), nn.Module)), "")


def _base(model: nn.Module) -> str:
    """The name of the pre-trained part; "" where the model is not divided so."""
    prefix = getattr(model, "base_model_prefix", "")
    return prefix if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""


def _pretrained(key: str, base: str) -> bool:
    """Whether a tensor belongs to what was pre-trained. A pooler behind the blocks does not: only
    some checkpoints have one."""
    if base and not within(key, base):
        return False
    inside = key[len(base) + 1 :] if base else key
    before, found, _ = inside.partition("pooler")
    return not found or any(part.isdigit() for part in before.split("."))


def _within_any(key: str, modules: Iterable[str]) -> bool:
    return any(within(key, one) for one in modules)


def _some(names: Collection[str]) -> str:
    return ", ".join(map(repr, list(names)[:SHOWN]))
