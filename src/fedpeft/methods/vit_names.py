"""The two ways in which `transformers` names the layers of a vision transformer.

    up to version 4                                       from version 5
    vit.encoder.layer.0.attention.attention.query         vit.layers.0.attention.q_proj
    vit.encoder.layer.0.attention.output.dense            vit.layers.0.attention.o_proj
    vit.encoder.layer.0.intermediate.dense                vit.layers.0.mlp.fc1
    vit.encoder.layer.0.output.dense                      vit.layers.0.mlp.fc2

Adapters outlive versions: one saved beside the old names is read, and written, by these functions.
"""

import re

_PAIRS = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)
_OLD_BLOCK = re.compile(r"(?:^|(?<=\.))encoder\.layer\.(\d+)\.")
_NEW_BLOCK = re.compile(r"(?:^|(?<=\.))layers\.(\d+)\.")


def new_name(name: str) -> str:
    """A module's or parameter's name as version 5 has it; a name that is not an old one stays."""
    return _rename(name, _OLD_BLOCK, "layers", _PAIRS)


def old_name(name: str) -> str:
    """The inverse of `new_name`."""
    return _rename(name, _NEW_BLOCK, "encoder.layer", tuple((new, old) for old, new in _PAIRS))


def _rename(
    name: str, block: re.Pattern[str], prefix: str, pairs: tuple[tuple[str, str], ...]
) -> str:
    found = block.search(name)
    if not found:
        return name
    inner = name[found.end() :]
    for before, after in pairs:
        if inner == before or inner.startswith(f"{before}."):
            inner = after + inner[len(before) :]
            break
    return f"{name[: found.start()]}{prefix}.{found[1]}.{inner}"
