import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any

import pytest
import torch
from method_models import Classify, batch_of, injected, model_of
from rounds import last, plan_of, run
from torch import Tensor, nn

from fedpeft.algorithms.class_means import ClassMeans
from fedpeft.compute.feature_cache import FEATURES, Featured, folder, keep, make_room
from fedpeft.compute.model_split import Cut, find_cut
from fedpeft.compute.objective import Objective
from fedpeft.compute.scores import evaluate
from fedpeft.compute.trainable import read, train_only, trainable
from fedpeft.core.tensors import equal, finite
from fedpeft.core.types import Batch, State, Tensors
from fedpeft.engines.processes import Processes
from fedpeft.evaluation.measure import measure
from fedpeft.evaluation.own_held_out import over_clients
from fedpeft.plan.plan import Plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder, Nowhere

FEW = {"partition": {"name": "dirichlet", "clients": 4, "alpha": 10.0}}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path))
    yield tmp_path / "features"


def cut_of(model: nn.Module, kind: str) -> Cut | None:
    batch, names = batch_of(kind), trainable(model)
    objective = Objective(model, Classify())  # type: ignore[arg-type]
    params = {n: x.detach().requires_grad_() for n, x in model.named_parameters() if n in names}
    return find_cut(model, names, len(batch["label"]), lambda: objective(params, batch))


@pytest.mark.parametrize(
    ("kind", "trained", "at", "shape"),
    [
        ("vit", "classifier", "classifier", (32,)),
        ("vit", "layers.2", "vit.layers.2", (5, 32)),
        ("vit", "layers.2.mlp", "vit.layers.2", (5, 32)),
        ("vit", "layernorm_after", None, None),
        ("bert", "classifier", "classifier", (32,)),
        ("bert", "layer.2.attention", "bert.encoder.layer.2.attention", (6, 32)),
        ("llama", "score", "score", (6, 32)),
        ("llama", "layers.1.mlp", "model.layers.1", (6, 32)),
    ],
)
def test_the_cut_is_before_the_block_or_head_with_the_first_that_is_trained(
    kind: str, trained: str, at: str | None, shape: tuple[int, ...] | None
) -> None:
    model = model_of(kind)
    train_only(model, [n for n, _ in model.named_parameters() if trained in n])
    cut = cut_of(model, kind)
    assert (cut and cut.at, cut and cut.shape) == (at, shape)


@pytest.mark.parametrize("method", ["lora", "bias", "full", "prompt"])
def test_what_is_trained_from_the_start_is_not_cut(method: str) -> None:
    model, _ = injected(method, "vit")
    before = {name: module.__dict__.get("forward") for name, module in model.named_modules()}
    assert cut_of(model, "vit") is None
    assert {
        name: module.__dict__.get("forward") for name, module in model.named_modules()
    } == before


def test_the_gradient_after_the_cut_is_that_of_the_whole_and_nothing_before_it_is_called() -> None:
    model = train_only(model_of("vit"), ["vit.layers.2.mlp.fc2.bias", "classifier.weight"])
    batch, task = batch_of("vit"), Classify()
    whole = Objective(model, task).gradient(read(model, trainable(model)), batch)  # type: ignore[arg-type]
    cut = cut_of(model, "vit")
    assert cut is not None
    with torch.no_grad():
        features = cut.features(lambda: task.forward(model, batch))
    called: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    featured = Featured(task, cut)  # type: ignore[arg-type]
    short = Objective(model, featured).gradient(
        read(model, trainable(model)),
        {**batch, FEATURES: features, "pixel_values": torch.zeros(4, 1, 8, 8)},
    )
    assert not any(
        name.startswith(("vit.layers.0.", "vit.layers.1.", "vit.embeddings.")) for name in called
    )
    assert "vit.layers.2.mlp.fc2" in called
    assert torch.allclose(short[1], whole[1], atol=1e-6)
    assert all(torch.allclose(short[0][n], g, atol=1e-6) for n, g in whole[0].items())


@pytest.mark.parametrize(
    ("trained", "first"), [("classifier", 3), ("vit.layers.2", 2), ("vit.layers.1.attention", 1)]
)
def test_autograd_does_nothing_before_the_first_that_is_trained(trained: str, first: int) -> None:
    model = model_of("vit")
    train_only(model, [n for n, _ in model.named_parameters() if trained in n])
    follows: dict[str, bool] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: object, output: Any) -> None:
            follows[name] = output.requires_grad

        return keep

    for name in ("vit.layers.0", "vit.layers.1", "vit.layers.2", "classifier"):
        model.get_submodule(name).register_forward_hook(hook(name))
    Objective(model, Classify()).gradient(read(model, trainable(model)), batch_of("vit"))  # type: ignore[arg-type]
    assert list(follows.values()) == [k >= first for k in range(4)]


class Aside(nn.Module):
    """What comes before the head goes past it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, aside: float) -> Tensor:
        h = self.first(x)
        out: Tensor = self.head(h) + aside * h
        return out


@pytest.mark.parametrize("aside", [0.0, 1.0])
def test_a_way_past_the_module_is_seen_even_where_it_adds_nothing(aside: float) -> None:
    model, x = Aside(), torch.randn(5, 8)
    train_only(model, ["head.weight"])
    assert find_cut(model, ["head.weight"], 5, lambda: model(x, aside)) is None
    assert model(x, aside).isfinite().all()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of(**FEW, rounds=4)


@pytest.fixture(scope="module")
def sites(plan: Plan) -> tuple[Site, Site]:
    """Without features and with them."""
    return open_site(replace(plan, compute=replace(plan.compute, features=False))), open_site(plan)


@pytest.mark.slow
def test_rounds_and_metrics_are_those_of_the_whole_model(sites: tuple[Site, Site]) -> None:
    without, site = sites
    assert without.kept.cut is None
    assert site.kept.cut is not None and site.kept.cut.at == "classifier"
    assert "100% of the parameters lie before" in site.kept.note
    assert site.data.size(site.data.clients[0]) == without.data.size(site.data.clients[0])
    seen: list[int] = []
    hook = site.model.vit.embeddings.register_forward_hook(lambda *_: seen.append(1))  # type: ignore[union-attr]
    ours = last(run(site, site.plan))
    metrics = measure(site, ours)
    spread = over_clients(site, State(0, ours), Nowhere())
    assert not seen
    plain = evaluate(site.plan.task, site.model, ours, site.data.held_out())
    hook.remove()
    assert seen, "a plan's own task goes through the whole model"
    theirs = last(run(without, without.plan))
    assert finite(ours)
    assert all(torch.allclose(ours[n], x, rtol=1e-5, atol=1e-5) for n, x in theirs.items())
    assert metrics == pytest.approx(measure(without, ours), rel=1e-5)
    assert metrics["loss"] == pytest.approx(plain["loss"].value, rel=1e-5)
    assert spread["loss"] == pytest.approx(
        over_clients(without, State(0, ours), Nowhere())["loss"], rel=1e-5
    )


@pytest.mark.slow
def test_class_means_and_terms_see_the_kept_features(sites: tuple[Site, Site]) -> None:
    """Nothing comes into the head then; what is kept is its input."""
    heads, features = [], []
    for site in sites:
        heads.append(last(run(site, replace(site.plan, algorithms=(ClassMeans(),), rounds=1))))
        batch = next(iter(site.data.held_out()))
        with torch.no_grad():
            features.append(site.task.forward(site.model.eval(), batch, "classifier")["features"])
    for name, x in heads[0].items():
        torch.testing.assert_close(heads[1][name], x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features[1], features[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_worker_processes_have_the_same_bits(
    sites: tuple[Site, Site], plan: Plan, tmp_path: Path
) -> None:
    site = sites[1]
    ours = last(run(site, plan))
    engine = Processes(site, Folder(tmp_path), 2)
    try:
        theirs = last(list(federate(plan, engine, start(plan, site.params()))))
    finally:
        engine.close()
    assert equal(ours, theirs)


@pytest.mark.slow
def test_a_file_is_found_again_and_mended_where_it_is_another(plan: Plan, cache: Path) -> None:
    def kept() -> Tensor:
        found = open_site(plan).kept.train
        assert found is not None
        return found.clone()

    first = kept()
    files = sorted(cache.iterdir())
    assert len(files) == 2 and folder() == cache
    times = [file.stat().st_mtime_ns for file in files]
    assert torch.equal(kept(), first)
    assert [file.stat().st_mtime_ns for file in files] == times
    good = [file.read_bytes() for file in files]
    files[0].write_bytes(good[0][:-100])
    files[1].write_bytes(good[1][:128] + bytes(len(good[1]) - 128))
    assert torch.equal(kept(), first)
    assert [file.read_bytes() for file in files] == good
    assert sorted(cache.iterdir()) == files


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "files"),
    [
        pytest.param({"seed": 4}, 0, marks=pytest.mark.slow),
        pytest.param({"local": {"lr": 0.3}}, 0, marks=pytest.mark.slow),
        pytest.param({"base_dtype": "bfloat16"}, 2, marks=pytest.mark.slow),
        ({"task": {"mean": [0.1]}}, 2),
    ],
)
def test_files_are_named_after_what_the_numbers_depend_on(
    plan: Plan, cache: Path, changes: dict[str, object], files: int
) -> None:
    open_site(plan)
    before = set(cache.iterdir())
    open_site(plan_of(**FEW, **{"rounds": 4, **changes}))
    assert len(set(cache.iterdir()) - before) == files


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"task": {"crop": 2}}, "at random"),
        ({"rounds": 1, "cohort": 1}, ""),
        ({"local": {"precision": "bfloat16"}}, ""),
    ],
)
def test_what_keeps_features_from_being_used(
    cache: Path, changes: dict[str, object], why: str
) -> None:
    site = open_site(plan_of(**FEW, **{"rounds": 4, **changes}))
    assert site.kept.cut is None and why in site.kept.note and bool(why) == bool(site.kept.note)
    assert not cache.exists()
    assert all(FEATURES not in batch for batch in site.data.held_out())


class Rows(Classify):
    """The rows are the batch."""

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return rows


@pytest.mark.parametrize(
    ("kind", "trained", "why"),
    [
        ("bert", "classifier", "dropout"),
        ("llama", "layers.1", "a row a token"),
        ("lm", "lm_head", "a row a token"),
    ],
)
def test_what_keeps_a_texts_features_from_being_used(
    cache: Path, kind: str, trained: str, why: str
) -> None:
    model = model_of(kind)
    train_only(model, [n for n, _ in model.named_parameters() if trained in n])
    kept = keep(Rows(), model, trainable(model), batch_of(kind), batch_of(kind), "")  # type: ignore[arg-type]
    assert kept.cut is None and why in kept.note
    assert not model.training and not cache.exists()


def test_a_texts_features_are_kept_where_nothing_is_drawn(cache: Path) -> None:
    model = model_of("bert", attention_probs_dropout_prob=0.0)
    train_only(model, ["classifier.weight"])
    kept = keep(Rows(), model, trainable(model), batch_of("bert", 300), batch_of("bert"), "")  # type: ignore[arg-type]
    assert kept.train is not None and kept.train.shape == (300, 32)


def test_a_task_that_cannot_take_an_example_fails_where_it_is_trained(cache: Path) -> None:
    class Raising(Rows):
        def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
            raise ValueError("an example")

    model = train_only(model_of("vit"), ["classifier.weight"])
    kept = keep(Raising(), model, trainable(model), batch_of("vit"), batch_of("vit"), "")  # type: ignore[arg-type]
    assert kept.cut is None and "features are not kept: an example" in kept.note


def test_where_no_file_can_be_written_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "file"))
    site = open_site(plan_of(**FEW, rounds=4))
    assert site.kept.cut is None and "not kept" in site.kept.note


def test_files_that_were_not_asked_for_the_longest_make_room(tmp_path: Path) -> None:
    for age, name in enumerate(("new.npy", "used.npy", "old.npy", ".half.part", "other.txt")):
        (tmp_path / name).write_bytes(bytes(100))
        at = time() - age * 30_000
        os.utime(tmp_path / name, (at, at))
    make_room(tmp_path, 300)
    assert {file.name for file in tmp_path.iterdir()} == {
        "new.npy",
        "used.npy",
        "old.npy",
        "other.txt",
    }
    make_room(tmp_path, 250)
    assert {file.name for file in tmp_path.iterdir()} == {"new.npy", "used.npy", "other.txt"}
    make_room(tmp_path / "none", 0)


def test_a_later_hook_sees_what_the_module_at_the_cut_gets() -> None:
    model = train_only(model_of("vit"), ["classifier.weight"])
    cut = cut_of(model, "vit")
    assert cut is not None and cut.at == "classifier"
    features, seen = torch.randn(4, *cut.shape), []
    model.get_submodule(cut.at).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with cut.fed(features):
        Classify().forward(model, batch_of("vit"))
    assert seen[0] is features
