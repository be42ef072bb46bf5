"""Sparse fine-tuning, and LoRA that begins with what it changed (SLoRA, arXiv:2308.06522)."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import Done, done
from method_models import injected, model_of
from rounds import points_plan
from torch import nn

from fedpeft import RunError, read_plan
from fedpeft.compute.trainable import read, tensors_of, write
from fedpeft.core.low_rank import A, B, pairs
from fedpeft.export.export import export_run
from fedpeft.export.nearest_factors import _factors
from fedpeft.export.provenance import CRATE
from fedpeft.methods.sparse import Scattered, Sparse
from fedpeft.plan.models import build_model
from fedpeft.plan.plan import Plan
from fedpeft.runs.checkpoint import load_checkpoint

HIDDEN: dict[str, Any] = {"task": {"name": "parts:Points", "network": "hidden"}}
SPARSE: dict[str, Any] = {"name": "sparse", "density": 0.05}
FIRST = {**SPARSE, "target": ["first"], "head": "head"}


def layer(weight: list[list[float]]) -> nn.Module:
    """A model of one linear layer without bias."""
    model = nn.Module()
    model.one = nn.Linear(len(weight[0]), len(weight), bias=False)
    model.one.weight.data = torch.tensor(weight)
    return model.requires_grad_(False)


def test_entries_by_hand() -> None:
    """W = diag(3, 2): entries 1 and 2 of D, counted along rows, are 10 and 20."""
    made: Any = Sparse(0.5, target=("one",), head="").inject(layer([[3.0, 0.0], [0.0, 2.0]]))
    x = torch.tensor([[1.0, 2.0]])
    assert made.one(x).tolist() == [[3.0, 4.0]]
    assert Sparse().names(made) == ["one.entries"] and made.one.entries.shape == (2,)
    made.one.places.copy_(torch.tensor([1, 2]))
    write(made, {"one.entries": torch.tensor([10.0, 20.0])})
    assert made.one(x).tolist() == [[3.0 + 20.0, 4.0 + 20.0]]
    method, plain = Sparse(0.5, head="").as_exported(made, {"one.entries": made.one.entries.data})
    assert plain["one.weight"].tolist() == [[3.0, 10.0], [20.0, 2.0]]
    assert method.head == ""


def test_a_layer_that_holds_its_weight_transposed() -> None:
    from transformers.pytorch_utils import Conv1D

    model = nn.Module()
    model.one = Conv1D(2, 3)  # 3 in, 2 out
    made: Any = Sparse(0.5, target=("one",), head="").inject(model.requires_grad_(False))
    write(made, {"one.entries": torch.tensor([1.0, 2.0, 3.0])})
    x = torch.randn(4, 3)
    plain = Sparse().as_exported(made, read(made, ["one.entries"]))[1]
    wanted = x @ plain["one.weight"] + made.one.base.bias
    torch.testing.assert_close(made.one(x), wanted)


def test_places_are_alike_on_every_site_and_differ_by_layer_and_seed() -> None:
    plans = [
        points_plan(**HIDDEN, method={**FIRST, "seed": seed}, seed=plan_seed)
        for seed, plan_seed in ((0, 3), (0, 4), (1, 3))
    ]
    first, same, other = map(_places, plans)
    assert torch.equal(first, same) and not torch.equal(first, other)
    dense = points_plan(**HIDDEN, method={**FIRST, "density": 1.0})
    assert torch.equal(_places(dense), torch.arange(64))
    model, _ = injected({"name": "sparse", "density": 0.1}, "vit")
    found = [module.places for module in model.modules() if isinstance(module, Scattered)]
    assert len(found) == 6 and all(len(x) == round(0.1 * 32 * 32) for x in found)
    assert all(len(set(x.tolist())) == len(x) for x in found)
    assert not any(torch.equal(found[0], x) for x in found[1:])


def _places(plan: Plan) -> torch.Tensor:
    layer = build_model(plan, ["a", "b"]).get_submodule("first")
    assert isinstance(layer, Scattered)
    return layer.places


@pytest.mark.parametrize("density", [0.0, 1.1, float("nan")])
def test_densities_out_of_range(density: float) -> None:
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        Sparse(density)


def test_factors_by_hand() -> None:
    """D = diag(8, 2, 0) with α = 16. Of rank 1 the scale is 16, and √(8 / 16)² · 16 = 8 is kept: 64
    of 68 squares. Of rank 3 the third direction has a zero in B and a row of length 1 in A."""
    change = {"one": torch.diag(torch.tensor([8.0, 2.0, 0.0]))}
    factors, kept = _factors(change, 1)
    a, b = factors[f"one{A}default.weight"], factors[f"one{B}default.weight"]
    torch.testing.assert_close(a, torch.tensor([[0.5**0.5, 0.0, 0.0]]))
    torch.testing.assert_close(16 * b @ a, torch.diag(torch.tensor([8.0, 0.0, 0.0])))
    assert kept == pytest.approx(64 / 68)
    factors, kept = _factors(change, 3)
    a, b = factors[f"one{A}default.weight"], factors[f"one{B}default.weight"]
    torch.testing.assert_close(16 / 3 * b @ a, change["one"])
    assert not b[:, 2].any() and float(a[2].norm()) == pytest.approx(1) and kept == pytest.approx(1)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("runs") / "sparse", method=SPARSE)


def test_lora_begins_with_the_nearest_factors_of_the_change(
    ran: Done, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fedpeft"):
        export_run(ran.folder.path, tmp_path / "start", rank=4)
    assert "LoRA of rank 4 keeps" in caplog.text and "rest is left out" in caplog.text
    crate = json.loads((tmp_path / "start" / CRATE).read_text())["@graph"]
    told = {one["name"]: one.get("value") for one in crate if one["@type"] == "PropertyValue"}
    assert told["lora-rank"] == 4
    settings = json.loads((tmp_path / "start" / "adapter_config.json").read_text())
    assert settings["r"] == 4 and settings["target_modules"] == ["q_proj", "v_proj"]
    second = read_plan({"method": {"name": "lora", "rank": 4, "init": str(tmp_path / "start")}})
    model = second.model(ran.site.classes)
    every, first = tensors_of(model), ran.site.model
    for name, (a, b) in pairs(every).items():
        scattered = first.get_submodule(name)
        assert isinstance(scattered, Scattered)
        u, s, vt = torch.linalg.svd(
            scattered.change(_tensor(ran, f"{name}.entries")), full_matrices=False
        )
        wanted = u[:, :4] * s[:4] @ vt[:4]
        torch.testing.assert_close(4 * every[b] @ every[a], wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(every["classifier.weight"], _tensor(ran, "classifier.weight"))


def _tensor(ran: Done, name: str) -> torch.Tensor:
    saved = load_checkpoint(ran.folder.checkpoint, ran.site.plan)
    assert saved is not None
    return saved.state.params[name]


def test_of_all_directions_nothing_is_lost(ran: Done, tmp_path: Path) -> None:
    least = min(min(x.shape) for x in _scattered_shapes(ran))
    export_run(ran.folder.path, tmp_path / "start", rank=least)
    plan = read_plan({"method": {"name": "lora", "rank": least, "init": str(tmp_path / "start")}})
    model = plan.model(ran.site.classes).eval()
    with torch.inference_mode():
        logits = model(**ran.inputs).logits
    torch.testing.assert_close(logits, ran.logits, rtol=1e-4, atol=1e-4)


def _scattered_shapes(ran: Done) -> list[torch.Tensor]:
    modules = ran.site.model.modules()
    return [one.weight for one in modules if isinstance(one, Scattered)]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("bias", r"no weight of a linear layer.*leave out --lora-rank"),
        pytest.param("lora", "is no weight of the base", marks=pytest.mark.slow),
        pytest.param("head", "it changed no linear layer", marks=pytest.mark.slow),
    ],
)
def test_what_is_no_change_of_linear_layers_is_refused(
    method: str, words: str, tmp_path: Path
) -> None:
    other = done(tmp_path / method, method=method)
    with pytest.raises(RunError, match=words):
        export_run(other.folder.path, tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()


def test_the_model_is_the_base_where_nothing_was_trained() -> None:
    model, names = injected({"name": "sparse", "head": ""}, "vit")
    plain = Sparse(head="").as_exported(model, read(model, names))[1]
    base = tensors_of(model_of("vit"))
    assert all(torch.equal(x, base[name]) for name, x in plain.items())
