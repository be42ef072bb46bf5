"""Adapters on keys and values that stay with each client (FedPerfix)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import batch_of, injected, logits_of, method, model_of
from rounds import on
from torch import nn

from fedpeft import PlanError, open_site, read_plan
from fedpeft.compute.trainable import read
from fedpeft.methods.perfix import Shift, Shifted
from fedpeft.rounds.loop import federate, start
from fedpeft.storage.client_memory import Folder

SMALL: dict[str, Any] = {"name": "perfix", "width": 6}
KEPT = {"name": "personal", "patterns": ["*perfix*", "classifier.*"]}
PLAN: dict[str, Any] = {
    "task": {"name": "test_cohort_methods:Tiny", "kind": "vit"},
    "data": {"name": "parts:Blobs", "features": 64, "examples": 120},
    "partition": {"name": "iid", "clients": 4},
    "method": {**SMALL, "base": "trained"},
    "routing": [KEPT],
    "local": {"batch_size": 8, "lr": 0.05},
    "cohort": 2,
    "rounds": 1,
}


def test_a_key_by_hand() -> None:
    """d = 1, x = 0.5, K(x) = x, down 1, up 2 and s = 1.5: 0.5 + 1.5·2·tanh(0.5) = 1.886351."""
    base = nn.Linear(1, 1)
    shifted = Shifted(base, Shift(base, 1, 1.5, zero_up=True))
    values = {"base": 1.0, "perfix.down": 1.0, "perfix.up": 2.0}
    with torch.no_grad():
        for name, x in values.items():
            nn.init.constant_(shifted.get_submodule(name).weight, x)  # type: ignore[arg-type]
            nn.init.zeros_(shifted.get_submodule(name).bias)  # type: ignore[arg-type]
        assert float(shifted(torch.tensor([0.5]))) == pytest.approx(1.886351, abs=1e-6)


@pytest.mark.parametrize("changes", [{"zero_up": True}, {"zero_up": False, "scale": 0.0}], ids=str)
def test_what_adds_nothing_is_the_base_to_the_bit(changes: dict[str, Any]) -> None:
    model, _ = injected({**SMALL, **changes}, "vit")
    batch = batch_of("vit")
    assert torch.equal(logits_of(model, batch), logits_of(model_of("vit"), batch))


def test_as_published_it_is_another_model_at_first() -> None:
    model, _ = injected({**SMALL, "zero_up": False}, "vit")
    batch = batch_of("vit")
    assert (logits_of(model, batch) - logits_of(model_of("vit"), batch)).abs().max() > 1e-4


def test_what_is_trained() -> None:
    """d = 32 and width m = 6: d·m + m + 2·(m·d + d) a block, of which there are three, and a head
    of 3 classes; all of the base beside them if it is trained."""
    model, names = injected(SMALL, "vit")
    assert sum(x.numel() for x in read(model, names).values()) == 3 * (32 * 6 + 6 + 2 * 224) + 99
    assert len([name for name in names if ".perfix.down." in name]) == 3 * 2
    whole, every = injected({**SMALL, "base": "trained"}, "vit")
    assert len(every) == len(names) + len(injected({"name": "full"}, "vit")[1]) - 2
    assert set(names) < set(every) and all(p.requires_grad for p in whole.parameters())


def test_adapters_stay_and_the_base_travels(tmp_path: Path) -> None:
    """A client that was not drawn keeps its first adapter."""
    plan, store = read_plan(PLAN), Folder(tmp_path)
    site = open_site(plan)
    begun = start(plan, site.params())
    [(state, ledger)] = federate(plan, on(site, plan, store), begun)
    assert not ledger.failed and not ledger.note
    assert not any("perfix" in name or "classifier" in name for name in state.params)
    assert any(not torch.equal(x, begun.params[name]) for name, x in state.params.items())
    for client in site.data.clients:
        memory = store.load(client, state.accepted.get(client))
        kept = {name for name in memory if name.startswith("personal/") and "perfix" in name}
        assert bool(kept) == (client in ledger.weights)


def test_with_a_frozen_base_nothing_travels() -> None:
    plan = read_plan({**PLAN, "method": SMALL})
    site = open_site(plan)
    assert not start(replace(plan), site.params()).params


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"scale": float("inf")}, "scale must be finite"),
        ({"base": "thawed"}, "no base called 'thawed'"),
    ],
)
def test_values_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        method({**SMALL, **changes})


def test_a_model_without_keys_and_values_is_refused() -> None:
    fused = nn.Sequential()
    fused.add_module("qkv", nn.Linear(4, 12))
    fused.add_module("head", nn.Linear(4, 2))
    with pytest.raises(PlanError, match="no attention with linear layers of their own for keys"):
        method(SMALL).inject(fused)


def test_a_run_tells_before_it_begins_that_nothing_will_be_exported() -> None:
    notes = open_site(read_plan(PLAN)).notes
    assert any("the adapters beside its keys and values" in line for line in notes)
    plain = open_site(read_plan({**PLAN, "method": "head", "routing": []})).notes
    assert not any("nothing to export" in line for line in plain)
