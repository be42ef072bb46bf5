"""Every method in a stack, with SGD and AdamW: each client's change is the one that it makes
alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from method_models import Classify, model_of
from rounds import distance
from test_cohort import TOLERANCE, both, read
from torch import nn

from fedpeft.core.types import Batch, Table, Tensors
from fedpeft.plan.reading import read_plan
from fedpeft.registry import names
from fedpeft.rounds.site import open_site

KEYS = ("k_proj.bias", "k_proj.perfix.up.bias")
"""It adds the same to all scores of a query, which softmax takes away again: the true gradient is
zero."""


FAST = ("adapter", "dora", "dual_adapter", "lora", "prompt")
"""Methods of the normal run."""
EPS = {"adopt": {"eps": 0.01}}
"""ADOPT divides by the first gradient, and with its usual ε by what rounding leaves of a zero."""


@dataclass(frozen=True)
class Tiny(Classify):
    """Points with 64 features, seen by a small ViT as pictures of 8x8, or by a small Llama as texts
    of 64 tokens."""

    kind: str

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return model_of(self.kind)

    def prepare(self, table: Table) -> Tensors:
        point, label = table.columns["point"], table.columns["label"]
        if self.kind == "vit":
            return {"pixel_values": point.reshape(-1, 1, 8, 8), "label": label}
        tokens = (32 + 8 * point).round().clamp(1, 63).long()
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "label": label}

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return rows


@pytest.mark.parametrize("optimizer", slow_but(["adamw"], names("optimizer")))
@pytest.mark.parametrize("method", slow_but(FAST, names("method")))
def test_every_method_together_is_one_after_another(
    method: str, optimizer: str, tmp_path: Path
) -> None:
    """But for the key biases that AdamW moves: it makes whole steps of what rounding leaves of
    their zero gradient."""
    settings: dict[str, Any] = {
        "task": {
            "name": "test_cohort_methods:Tiny",
            "kind": "llama" if method == "prefix" else "vit",
        },
        "data": {"name": "parts:Blobs", "features": 64, "examples": 120},
        "partition": {"name": "dirichlet", "clients": 4, "alpha": 2.0},
        "local": {
            "lr": 0.01,
            "batch_size": 8,
            "optimizer": {"name": optimizer, **EPS.get(optimizer, {})},
        },
        "rounds": 2,
        "cohort": 3,
    }
    own = {"early_exits": {"exits": [1, 2]}}.get(method, {})
    plan = read_plan({**settings, "method": {"name": method, **own}})
    engine, pairs = both(open_site(plan), plan, tmp_path)
    assert not engine.alone
    whole = []
    for got, want in pairs:
        mine, theirs = (read(plan, reply).delta for reply in (got, want))
        but = {name: theirs[name] if name.endswith(KEYS) else x for name, x in mine.items()}
        # AdamW makes whole steps of other gradients near zero too: 1.3e-4 on some processors
        assert distance(but, theirs) <= (2 if optimizer == "adamw" else 1) * TOLERANCE
        whole.append(distance(mine, theirs))
    assert (max(whole) > TOLERANCE) == (
        optimizer == "adamw" and any(name.endswith(KEYS) for name in theirs)
    )
