"""Early exits and clients of several depths: by hand, against shorter models, and in rounds."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from method_models import Classify, batch_of, injected, logits_of, model_of
from networks import Blocks
from parts import Points
from rounds import Recording, distance, last, merged, on, points_plan, run
from test_cohort import read
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from fedpeft import PlanError, federate, open_site, read_plan, start
from fedpeft.compute.feature_cache import FEATURES, keep, with_features
from fedpeft.compute.further import losses_of, metrics_of
from fedpeft.compute.objective import Objective
from fedpeft.compute.scores import conclude
from fedpeft.compute.trainable import read as read_tensors
from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.outputs import further_logits
from fedpeft.core.tensors import equal
from fedpeft.core.types import State, Update, Weighted
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.evaluation.measure import measure
from fedpeft.methods.early_exits import EarlyExits, ExitHead
from fedpeft.methods.exit_heads import Recurrent, Ree
from fedpeft.plan.plan import Plan
from fedpeft.rounds.ledger import Ledger
from fedpeft.routing.depths import Depths

EXITS: dict[str, Any] = {"name": "early_exits", "exits": [1, 2, 3]}
RECURRENT = {**EXITS, "heads": "recurrent"}
KINDS = pytest.mark.parametrize(
    "method",
    [EXITS, {**RECURRENT, "modulate": False}, RECURRENT, {**RECURRENT, "inner": "full"}],
    ids=["own", "recurrent", "modulating", "modulating-full"],
)


def blocks_plan(method: Any = EXITS, **changes: Any) -> Plan:
    """Points through three blocks, with exits after each."""
    some: dict[str, Any] = {
        "task": {"name": "parts:Points", "network": "blocks"},
        "data": {"name": "parts:Blobs", "examples": 160},
        "partition": {"name": "dirichlet", "clients": 6, "alpha": 10.0},
        "rounds": 1,
        "cohort": 6,
    }
    return points_plan(**{**some, "method": method, **changes})


def of_depths(*depths: int, **more: Any) -> dict[str, Any]:
    return {"routing": [{"name": "depths", "depths": list(depths), **more}]}


def exit_head(model: nn.Module) -> ExitHead:
    return next(one for one in model.modules() if isinstance(one, ExitHead))


def every_logits(model: nn.Module, kind: str = "vit") -> dict[str, Tensor]:
    """The logits of all exits; those of the last are called "last"."""
    outputs = Classify().forward(model, batch_of(kind))
    return {**further_logits(outputs), "last": outputs["logits"]}


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_an_exit_is_the_model_that_ends_there(kind: str) -> None:
    """The reference is a model of so many blocks with the same weights."""
    whole, batch = model_of(kind), batch_of(kind)
    got = every_logits(injected(EXITS, kind)[0], kind)
    assert list(got) == ["block 1", "block 2", "last"]
    for depth, logits in zip((1, 2, 3), got.values(), strict=True):
        short = model_of(kind, num_hidden_layers=depth)
        short.load_state_dict(
            {name: x for name, x in whole.state_dict().items() if name in short.state_dict()}
        )
        torch.testing.assert_close(logits, logits_of(short, batch))


@pytest.mark.parametrize("heads", ["own", "recurrent"])
def test_blocks_beyond_the_depth_are_not_computed(heads: str) -> None:
    model, names = injected({**EXITS, "heads": heads}, "vit")
    whole, called = every_logits(model), list[int]()
    for k, layer in enumerate(model.vit.layers):  # type: ignore[union-attr, arg-type]
        layer.mlp.register_forward_hook(lambda *_, k=k: called.append(k))
    limited = Objective(model, Classify(), held={"classifier.depth_limit": torch.tensor(2.0)})  # type: ignore[arg-type]
    batch = batch_of("vit")
    losses = limited(read_tensors(model, names), batch)
    assert called == [0, 1]
    wanted = [cross_entropy(whole[f"block {k}"], batch["label"], reduction="none") for k in (1, 2)]
    torch.testing.assert_close(losses, wanted[0] + wanted[1])
    # The gradient goes the same way, and the model is as it was.
    gradient, each, _ = limited.gradient(read_tensors(model, names), batch)
    torch.testing.assert_close(each, losses)
    beyond = {name for name, x in gradient.items() if not x.any()}
    assert {name for name in names if "exit_layers.2." in name} <= beyond
    assert not any("exit_layers.0." in name or "exit_layers.1." in name for name in beyond)
    assert every_logits(model).keys() == whole.keys()


@pytest.mark.parametrize(("size", "numbers"), [(192, 135_575), (384, 469_914)])
def test_a_recurrent_exit_has_as_many_numbers_as_the_authors_have(size: int, numbers: int) -> None:
    """Of twelve blocks and a hundred classes, the head included (ViT-Tiny and DeiT-S)."""
    made = Recurrent(Ree(nn.Linear(size, 100), size, 12), (3, 6, 9, 12))
    assert sum(x.numel() for x in made.parameters()) == numbers


def mixed_by_hand(ree: Ree, tokens: list[Tensor]) -> Tensor:
    """m of one example's class tokens, head by head."""
    p = dict(ree.named_parameters())
    places = [p[f"exit_layers.{k}.place"] for k in range(len(tokens))]
    x = torch.stack([p["meta"] + p["meta_place"], *map(torch.add, tokens, places)])
    normed = layer_norm(x, x.shape[1:], p["norm1.weight"], p["norm1.bias"], 1e-5)
    q, k, v = (normed @ p["qkv.weight"].T + p["qkv.bias"]).chunk(3, -1)
    heads = []
    for at in range(0, 16, 2):
        one = slice(at, at + 2)
        weight = (q[:, one] @ k[:, one].T * 0.25).softmax(-1)
        heads.append(weight @ v[:, one])
    x = x + torch.cat(heads, -1) @ p["out.weight"].T + p["out.bias"]
    normed = layer_norm(x, x.shape[1:], p["norm2.weight"], p["norm2.bias"], 1e-5)
    up = normed @ p["up.weight"].T + p["up.bias"]
    up = 0.5 * up * (1 + torch.erf(up / 2**0.5))
    return x + up @ p["down.weight"].T + p["down.bias"]


@pytest.mark.parametrize("modulate", [False, True])
def test_recurrent_exits_by_hand(modulate: bool) -> None:
    """Block by block: with modulation m_t goes on in the place of c_t, and stays in the row."""
    torch.manual_seed(4)
    plain = Blocks(5, 3).eval()
    with torch.no_grad():
        for x in plain.parameters():
            x.add_(0.2 * torch.randn(x.shape))
    made = EarlyExits((1, 3), heads="recurrent", modulate=modulate)
    model = made.inject(deepcopy(plain))
    ree = exit_head(model).exits.ree
    with torch.no_grad():
        for x in ree.parameters():
            x.add_(0.2 * torch.randn(x.shape))
    point = torch.randn(1, 5)
    outputs = Points().forward(model, {"point": point})
    hidden = torch.cat([plain.cls_token, plain.embedding(point[..., None])], 1)
    row, wanted = list[Tensor](), {}
    for number, layer in enumerate(plain.layers, start=1):
        hidden = layer(hidden)
        token = hidden[0, 0]
        mixed = mixed_by_hand(ree, [*row, token])
        norm = layer_norm(mixed[0] + token, (6,), ree.norm.weight, ree.norm.bias, 1e-5)
        wanted[number] = norm @ ree.head.weight.T + ree.head.bias
        row.append(mixed[-1] if modulate else token)
        hidden = torch.cat([row[-1][None, None], hidden[:, 1:]], 1)
    torch.testing.assert_close(further_logits(outputs)["block 1"][0], wanted[1])
    torch.testing.assert_close(outputs["logits"][0], wanted[3])


def test_a_mean_is_over_those_who_hold_a_tensor() -> None:
    """Sizes 1, 2 and 1, of whom the first has a alone: a moves by (1 + 2·2 + 5) / 4 = 2.5, b by
    (2·3 + 6) / 3 = 4, c rests, and so does the server's momentum of it."""
    plan = blocks_plan(**of_depths(1, 3), server={"name": "momentum", "momentum": 0.9})
    params = {name: torch.zeros(1) for name in "abc"}
    updates = [
        Update("c0", {"a": torch.tensor([1.0])}, 1.0),
        Update("c1", {"a": torch.tensor([2.0]), "b": torch.tensor([3.0])}, 2.0),
        Update("c2", {"a": torch.tensor([5.0]), "b": torch.tensor([6.0])}, 1.0),
    ]
    plain = merged(blocks_plan(**of_depths(1, 3)), updates, State(0, params), Ledger(0))
    assert {name: float(x) for name, x in plain.params.items()} == {"a": 2.5, "b": 4.0, "c": 0.0}
    begun = plan.server.init(params)
    before = {name: torch.full_like(x, 7.0) for name, x in begun.items()}
    after = merged(plan, updates, State(0, params, {}, {"server": before}), Ledger(0))
    assert float(after.params["c"]) == 0.0
    changed = {
        name for name, x in after.memory["server"].items() if not torch.equal(x, before[name])
    }
    assert changed and not any(name.endswith("c") for name in changed)


def test_one_exit_is_the_plain_head_to_the_bit() -> None:
    one, plain = blocks_plan({**EXITS, "exits": [3]}), blocks_plan("head")
    got, want = (list(last(run(open_site(plan), plan)).values()) for plan in (one, plain))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)) and len(want) == 2


@KINDS
def test_all_at_full_depth_is_no_routing_to_the_bit(method: Any) -> None:
    plain, deep = blocks_plan(method), blocks_plan(method, **of_depths(3))
    site = open_site(plain)
    assert equal(last(run(site, plain)), last(run(site, deep)))
    assert Fact.MIXED_TENSORS not in offered_by(deep.routing[0])


def test_what_a_client_of_a_depth_is_sent_and_sends() -> None:
    plan = blocks_plan({**EXITS, "inner": "full"}, **of_depths(1, 3, 2))
    site = open_site(plan)
    engine = Recording(on(site, plan))
    begun = start(plan, site.params())
    [(_, ledger)] = federate(plan, engine, begun)
    assert not ledger.failed
    every, sizes = set(site.params()), dict[int, int]()
    for k, (job, reply) in enumerate(zip(engine.jobs, engine.replies, strict=True)):
        depth = (1, 3, 2)[k % 3]
        sent = set(read(plan, reply).delta)
        beyond = {name for name in every for at in range(depth, 3) if f"layers.{at}." in name}
        assert sent == every - beyond and len(beyond) == 8 * (3 - depth)
        sizes[depth] = len(job.payload)
    assert sizes[1] < sizes[2] < sizes[3]


@KINDS
def test_one_by_one_and_together(method: Any) -> None:
    plan = blocks_plan(method, **of_depths(1, 3, 2))
    site = open_site(plan)
    engine = Cohort(site)
    together = last(list(federate(plan, engine, start(plan, site.params()))))
    assert not engine.alone and distance(together, last(run(site, plan))) <= 1e-4


def test_depths_change_what_is_learned_where_nothing_else_tells_them_apart() -> None:
    """Of recurrent exits with frozen blocks all clients hold nearly the same tensors."""
    method = {**RECURRENT, "modulate": False}
    deep, mixed = blocks_plan(method), blocks_plan(method, **of_depths(1, 3))
    site = open_site(deep)
    assert distance(last(run(site, mixed)), last(run(site, deep))) > 1e-3
    alone = blocks_plan(method, **of_depths(1))
    after = last(run(site, alone))
    moved = {n for n, x in site.params().items() if not torch.equal(x, after[n])}
    assert "head.exits.ree.exit_layers.0.place" in moved
    assert not moved & {f"head.exits.ree.exit_layers.{k}.place" for k in (1, 2)}


@pytest.mark.parametrize("method", [EXITS, {**RECURRENT, "modulate": False}])
@pytest.mark.parametrize("depth", [1.0, 3.0])
def test_what_frozen_blocks_make_of_an_example_is_kept(method: Any, depth: float) -> None:
    plan = blocks_plan(method)
    site = open_site(plan)
    rows = {"point": torch.randn(20, 8), "label": torch.arange(20) % 3}
    plain, names = Objective(site.model, plan.task), list(site.params())
    batch = {**rows, "mask": torch.ones(20)}
    held = {"head.depth_limit": torch.tensor(depth)}
    wanted = Objective(site.model, plan.task, held=held).gradient(site.params(), batch)
    kept = keep(plan.task, site.model, names, rows, rows, "")
    assert kept.cut is not None and kept.cut.at == "head.exits" and kept.train is not None
    task = with_features(plan.task, kept)
    fed = task.batch({**rows, FEATURES: kept.train}, torch.Generator())
    got = Objective(site.model, task, held=held).gradient(
        site.params(), {**fed, "mask": torch.ones(20)}
    )
    torch.testing.assert_close(got[1], wanted[1])
    for name in names:
        torch.testing.assert_close(got[0][name], wanted[0][name])
    # Without features the model is still whole.
    assert plain(site.params(), batch).isfinite().all()


def test_every_exit_is_measured() -> None:
    plan = blocks_plan()
    site = open_site(plan)
    outputs = plan.task.forward(site.model, batch := next(iter(site.data.held_out())))
    told = metrics_of(plan.task, outputs, batch)
    assert list(told) == ["accuracy", "at block 1/accuracy", "at block 2/accuracy"]
    found = measure(site, site.params())
    for place, logits in further_logits(outputs).items():
        right = float((logits.argmax(-1) == batch["label"]).float().mean())
        assert found[f"accuracy at {place}"] == pytest.approx(right)
    assert conclude(plan.task, {"at block 1/loss": Weighted(3.0, 2.0)}) == {"loss at block 1": 1.5}


def test_owners_measure_the_exits_that_they_hold() -> None:
    plan = blocks_plan(
        task={"name": "parts:ClassedPoints", "network": "blocks"},
        partition={"name": "dirichlet", "clients": 6, "alpha": 10.0, "held_out": 0.2},
        classes=["class 0", "class 1", "class 2"], evaluate_at=["server", "owners"],
        **of_depths(1, 2, 3),
    )  # fmt: skip
    site = open_site(plan)
    [(_, ledger)] = run(site, plan)
    told = ledger.reports["owners"]
    assert not told["failed"], told["failed"]
    at_second = told["metrics"]["accuracy at block 2"]["each"]
    assert at_second["c002"] is not None and at_second["c001"] is None
    assert set(told["metrics"]["accuracy"]["each"]) == set(site.data.clients)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {**EXITS, "exits": [2, 1]}}, "from 1 on and ascending"),
        ({"method": {**EXITS, "exits": [0]}}, "from 1 on and ascending"),
        ({"method": {**EXITS, "heads": "both"}}, "heads"),
        ({"method": {**EXITS, "inner": EXITS}}, "and not early_exits"),
        ({"method": "head", **of_depths(1)}, "depths are of a model that can end early"),
        (of_depths(1, 4), r"depths: 4 is none of method.exits = \[1, 2, 3\]"),
        (of_depths(), "depths must be numbers"),
        (of_depths(1, blocks=["*.layers.*"]), "must have one {} each"),
        ({**of_depths(1, 3), "aggregator": "median"}, "Median takes updates of one layout"),
    ],
)
def test_plans_that_do_not_fit(changes: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        blocks_plan(**changes)


def test_no_exits_are_one_after_every_block() -> None:
    whole, listed = blocks_plan("early_exits"), blocks_plan(EXITS)
    params = open_site(whole).params()
    assert list(params) == list(open_site(listed).params()) and len(params) == 6
    assert set(listed.method.logits_at) < set(whole.method.logits_at)  # type: ignore[attr-defined]


def test_models_that_do_not_fit() -> None:
    with pytest.raises(PlanError, match="has 3 blocks, and exits"):
        injected({**EXITS, "exits": [4]}, "vit")
    with pytest.raises(PlanError, match="0 stacks of transformer blocks"):
        open_site(points_plan(method=EXITS))


def test_names_that_do_not_tell_their_block() -> None:
    some = Depths((1, 2))
    tell = {"m.layers.0.a": 1, "m.exit_layers.0.a": 1, "m.conv.2.a": 1}
    some.check_params({name: torch.zeros(1) for name in tell})
    with pytest.raises(PlanError, match=r"'m\.stages\.0\.a' belongs to no block"):
        some.check_params({name: torch.zeros(1) for name in ("m.stages.0.a", "m.exit_layers.0.b")})
    with pytest.raises(PlanError, match="belongs to the blocks 0 and 3"):
        some.check_params({"m.layers.3.mlp.layers.0.a": torch.zeros(1)})
    view = Depths((1, 2), ("*.stages.{}.*",)).view("b", 0, ["a", "b"])
    names = ("m.stages.1.x", "m.stages.2.x", "m.stages.2.y.1.z", "head.exit_layers.2.w", "norm")
    assert list(view.select({name: torch.zeros(1) for name in names})) == ["m.stages.1.x", "norm"]


def test_losses_are_summed_over_exits() -> None:
    """Two exits with the logits (0, 0) and (ln 3, 0), and the label 0."""
    outputs = {"logits": torch.tensor([[3.0, 1.0]]).log(), "logits/block 1": torch.zeros(1, 2)}
    batch = {"label": torch.tensor([0])}
    assert float(losses_of(Classify(), outputs, batch)) == pytest.approx(0.693147 + 0.287682)  # type: ignore[arg-type]


@pytest.mark.slow
def test_on_digits_with_adapters_and_depths() -> None:
    plan = read_plan(
        {
            "method": {**RECURRENT, "exits": [1, 3, 5], "inner": "lora"},
            "partition": {"name": "dirichlet", "clients": 24, "alpha": 100.0},
            "local": {"lr": 0.1, "batch_size": 16, "clip_norm": 1.0},
            "rounds": 3, "cohort": 6, **of_depths(1, 3, 5),
        }
    )  # fmt: skip
    site = open_site(plan)
    before, after = measure(site, site.params()), measure(site, last(run(site, plan)))
    for name in ("loss", "loss at block 1", "loss at block 3"):
        assert after[name] < before[name]
