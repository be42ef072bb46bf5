"""Laws of every registered term of the loss."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from parts import Points
from rounds import distance, fits, last, points_plan, run
from torch import Tensor

from fedpeft import Cohort, federate, read_plan, start
from fedpeft.compute.objective import Objective
from fedpeft.compute.trainable import read
from fedpeft.core.interfaces import Added, Term
from fedpeft.core.outputs import Outputs
from fedpeft.core.secrets import Secret
from fedpeft.core.seeds import seed_torch
from fedpeft.core.tensors import equal, map_tensors
from fedpeft.core.types import Batch, Tensors
from fedpeft.errors import PlanError
from fedpeft.local.descent import Descent
from fedpeft.plan.plan import Plan
from fedpeft.registry import build, names
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder, Nowhere
from fedpeft.terms.moon import Moon

every = pytest.mark.parametrize("name", sorted(names("term")))
BESIDE: dict[str, dict[str, object]] = {
    "prototypes": {"algorithms": ["prototypes"]},
    "shared_examples": {
        "algorithms": [{"name": "fed_trend", "every": 1, "client_examples": 4, "steps": 2}],
        "task": {"name": "parts:Slopes", "network": "hidden"},
    },
    "exits": {
        "task": {"name": "parts:Points", "network": "blocks"},
        "method": {"name": "early_exits", "exits": [1, 3], "inner": "full"},
    },
}
"""What a term needs of a plan; those that are not here need nothing."""
CHOSEN: dict[str, dict[str, object]] = {"exits": {"ramp": 0}}
"""Settings with which a term does something in two rounds."""
OWN_TEACHER = {"exits"}
"""Terms whose target the model in training makes, without a gradient through it."""
NETWORK = {"name": "parts:Points", "network": "hidden"}
RAGGED = {
    "task": NETWORK,
    "method": "full",
    "partition": {"name": "dirichlet", "clients": 4, "alpha": 1.0},
    "data": {"name": "parts:Blobs", "examples": 160},
    "rounds": 2,
    "cohort": 4,
}


def local_with(name: str, **settings: object) -> dict[str, object]:
    term = {"name": name, **CHOSEN.get(name, {}), **settings}
    return {"lr": 0.05, "batch_size": 16, "terms": [term]}


def plan_with(name: str, **settings: object) -> Plan:
    """Rounds on clients of several sizes with a term and what it needs."""
    return points_plan(**{**RAGGED, **BESIDE.get(name, {}), "local": local_with(name, **settings)})


def shared_with(plan: Plan, draws: torch.Generator) -> Tensors:
    """What a plan's algorithms share with the term, of three classes and four features."""
    params = {"head.weight": torch.zeros(3, 4)}
    return {
        f"{owner}/{n}": torch.rand(shape, generator=draws)
        for owner, expected in plan.shares(params).items()
        for n, shape, _ in expected
    }


@pytest.fixture(scope="module")
def hidden() -> Site:
    """A layer and a head, on clients of several sizes."""
    return open_site(points_plan(**RAGGED))


def site_with(name: str, hidden: Site) -> Site:
    """The same for a term, which may need another model or task."""
    own = BESIDE.get(name, {}).keys() & {"method", "task"}
    return open_site(plan_with(name)) if own else hidden


@dataclass(frozen=True)
class Setting:
    """An objective with a term, a batch, and three models of one shape."""

    objective: Objective
    params: Tensors
    added: Added
    batch: Batch

    def loss(self, params: Tensors, batch: Batch) -> Tensor:
        """What is descended on."""
        losses = self.objective(params, batch, self.added)
        return (losses * batch["mask"]).sum() / batch["mask"].sum()

    def gradient(self, batch: Batch) -> Tensors:
        return self.objective.gradient(self.params, batch, self.added)[0]


def setting(name: str, size: int = 5) -> Setting:
    plan, draws = plan_with(name, weight=0.7), torch.Generator().manual_seed(2)
    term: Term = plan.local.terms[0]  # type: ignore[attr-defined]
    task = replace(plan.task, features=4)  # type: ignore[type-var]
    with seed_torch(3):
        model = plan.method.inject(task.build(["a", "b", "c"])).requires_grad_(False)
    params = {n: x.detach().clone() for n, x in model.named_parameters()}

    def other() -> Tensors:
        return map_tensors(lambda x: x + 0.5 * torch.randn(x.shape, generator=draws), params)

    models = {model: other() for model in term.compares}
    batch = {
        "point": torch.randn(size, 4, generator=draws),
        "label": torch.arange(size) % 3,
        "mask": torch.ones(size),
    }
    given = {**shared_with(replace(plan, task=task), draws), "round": torch.tensor(1.0)}
    objective = Objective(model, task, given=given)
    return Setting(objective, params, Added((term,), models), batch)


def rows(batch: Batch, places: list[int]) -> Batch:
    return {name: x[places] for name, x in batch.items()}


@every
def test_a_term_gives_a_finite_number_for_each_example(name: str) -> None:
    one = setting(name)
    whole = one.objective(one.params, one.batch, one.added)
    alone = one.objective(one.params, one.batch)
    assert whole.shape == (5,) and whole.isfinite().all()
    assert not torch.equal(whole, alone)


@every
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    if name in OWN_TEACHER:
        pytest.skip("differences move its teacher too, through which no gradient goes")
    one, step = setting(name), 1e-3
    gradient = one.gradient(one.batch)
    draws = torch.Generator().manual_seed(5)
    for _ in range(4):
        way = map_tensors(lambda x: torch.randn(x.shape, generator=draws), one.params)
        ahead, behind = (
            one.loss({n: x + by * way[n] for n, x in one.params.items()}, one.batch)
            for by in (step, -step)
        )
        slope = sum(float((gradient[n] * way[n]).sum()) for n in way)
        assert float(ahead - behind) / (2 * step) == pytest.approx(slope, rel=0.01, abs=2e-3)


@every
def test_no_gradient_goes_through_the_models_that_are_compared_with(name: str) -> None:
    one = setting(name)
    if not one.added.models:
        pytest.skip("it compares with no model")
    leaves = {m: map_tensors(lambda x: x.requires_grad_(), x) for m, x in one.added.models.items()}
    params = map_tensors(lambda x: x.requires_grad_(), one.params)
    losses = one.objective(params, one.batch, Added(one.added.terms, leaves))
    theirs = [x for model in leaves.values() for x in model.values()]
    found = torch.autograd.grad(losses.sum(), theirs, allow_unused=True)
    assert all(x is None for x in found)


@every
def test_the_order_of_a_batch_does_not_matter(name: str) -> None:
    one, order = setting(name), [3, 0, 4, 1, 2]
    whole = one.objective(one.params, one.batch, one.added)
    turned = one.objective(one.params, rows(one.batch, order), one.added)
    torch.testing.assert_close(turned, whole[order])


@every
def test_padding_does_not_count(name: str) -> None:
    """As a stack of clients fills up a short batch: the last row again, with a mask of 0."""
    one = setting(name)
    padded = rows(one.batch, [0, 1, 2, 3, 4, 4, 4])
    padded = {**padded, "mask": torch.tensor([1.0] * 5 + [0.0] * 2)}
    short, long = one.gradient(one.batch), one.gradient(padded)
    for n, x in short.items():
        torch.testing.assert_close(long[n], x, rtol=1e-4, atol=1e-6)


@every
def test_a_term_says_whether_it_couples_examples(name: str) -> None:
    """If it does not, an example alone has the loss that it has among others, and DP-SGD takes the
    term; if it does, DP-SGD refuses it."""
    one = setting(name)
    whole = one.objective(one.params, one.batch, one.added)
    alone = [one.objective(one.params, rows(one.batch, [k]), one.added) for k in range(5)]
    couples = one.added.terms[0].couples_examples
    assert couples or torch.allclose(torch.cat(alone), whole, atol=1e-5)
    if name in BESIDE:
        pytest.skip("what it needs may refuse a private plan for reasons of its own")
    assert couples != fits(**private(name))


def private(term: object) -> dict[str, object]:
    local = {"name": "dp_sgd", "noise_multiplier": 1.0, "terms": [term]}
    return {"local": local, "weighting": "uniform", "privacy": {"delta": 1e-3, "accountant": "rdp"}}


@every
def test_example_gradients_are_those_of_each_example(name: str) -> None:
    one = setting(name)
    if one.added.terms[0].couples_examples:
        return
    each = one.objective.gradients(one.params, one.batch, one.added)
    for k in range(5):
        alone = one.gradient(rows(one.batch, [k]))
        for n, x in alone.items():
            torch.testing.assert_close(each[n][k], x, rtol=1e-3, atol=1e-5)


@every
def test_weight_zero_is_no_term_to_the_bit(name: str, hidden: Site) -> None:
    """Nor does a client remember anything then: it has no store here."""
    nothing = plan_with(name, weight=0.0)
    plain = replace(nothing, local=replace(nothing.local, terms=()))  # type: ignore[type-var]
    site = site_with(name, hidden)
    assert equal(last(run(site, nothing)), last(run(site, plain)))


@every
def test_a_term_changes_what_is_trained_and_engines_agree(
    name: str, hidden: Site, tmp_path: Path
) -> None:
    """Clients differ in size, so that short batches of a stack are filled up."""
    plan = plan_with(name)
    site = replace(site_with(name, hidden), plan=plan)
    begun = start(plan, site.params())
    alone = last(run(site, plan, store(tmp_path / "alone")))
    engine = Cohort(site, store(tmp_path / "together"))
    together = last(list(federate(plan, engine, begun)))
    assert not engine.alone and distance(together, alone) <= 1e-4
    without = replace(plan, local=replace(plan.local, terms=()))  # type: ignore[type-var]
    assert distance(alone, last(run(site, without))) > 1e-3


def store(where: Path) -> Folder:
    where.mkdir()
    return Folder(where)


@every
def test_a_plan_with_a_term_is_written_and_read_again(name: str) -> None:
    plan = plan_with(name)
    assert read_plan(plan.toml()) == plan and read_plan(plan.toml()).fingerprint == plan.fingerprint
    assert "terms" not in points_plan(**RAGGED).toml()


@pytest.mark.parametrize("name", sorted(set(names("term")) - {"moon", "shared_examples"}))
def test_a_denoiser_has_no_logits(name: str) -> None:
    task = {"name": "text-to-image", "model": "somewhere"}
    with pytest.raises(PlanError, match="gives no logits of classes or words: leave it out"):
        read_plan({**BESIDE.get(name, {}), "task": task, "local": {"terms": [name]}})


@pytest.mark.parametrize("key", ["weight", "temperature"])
@every
def test_values_out_of_range(name: str, key: str) -> None:
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(PlanError, match=key):
            build("term", {"name": name, key: value})


def test_moon_remembers_the_model_that_a_client_ended_with(hidden: Site, tmp_path: Path) -> None:
    """The first round has no other past than the received model, so that MOON does nothing in it;
    in the second the past is what each client had trained."""
    whole = {**RAGGED, "local": local_with("moon", weight=5.0)}
    plan, short = points_plan(**whole), points_plan(**{**whole, "rounds": 1})
    with pytest.raises(PlanError, match="give the engine a store"):
        run(hidden, plan)
    rounds = run(hidden, plan, store(tmp_path / "clients"))
    without = run(hidden, replace(short, local=replace(short.local, terms=())))  # type: ignore[type-var]
    assert distance(rounds[0][0].params, without[0][0].params) < 1e-6
    kept = Folder(tmp_path / "clients").load("c000", 0)
    assert {n for n in kept if n.startswith("local/previous/")} == {
        f"local/previous/{n}" for n in hidden.params()
    }
    for n, x in hidden.params().items():
        assert not torch.equal(kept[f"local/previous/{n}"], x)
    last(run(hidden, short))  # of one round nobody remembers anything


def test_the_models_compared_with_have_no_dropout_and_the_own_one_has() -> None:
    one, task = setting("distillation"), Points("dropping", 4)
    model = task.build(["a", "b", "c"]).requires_grad_(False).train()
    objective, params = Objective(model, task), dict(model.named_parameters())
    with seed_torch(1):
        plain = objective(params, one.batch)
    with seed_torch(1):
        whole = objective(params, one.batch, Added((Given(),), {"received": params}))
    assert model.training
    with seed_torch(2):
        assert not torch.allclose(objective(params, one.batch), plain)
    still = task.forward(model.eval(), one.batch)["logits"].sum(-1)
    torch.testing.assert_close(whole - plain, still)


def test_the_models_compared_with_leave_statistics_alone() -> None:
    one, task = setting("distillation"), Points("convolution", 4)
    model = task.build(["a", "b", "c"]).requires_grad_(False).train()
    objective, params = Objective(model, task), read(model, list(model.state_dict())[:-1])
    received = map_tensors(lambda x: x + 1, params)
    added = Added((Given(),), {"received": received})
    before = map_tensors(Tensor.clone, received)
    _, _, plain = objective.gradient(params, one.batch)
    _, _, buffers = objective.gradient(params, one.batch, added)
    assert {"norm.running_mean", "norm.running_var"} <= buffers.keys() and equal(buffers, plain)
    assert equal(received, before) and equal(read(model, list(params)), params)


@dataclass(frozen=True)
class Given:
    """Tells the received logits."""

    weight: float = 1.0
    compares: tuple[str, ...] = ("received",)
    head: str | None = None
    couples_examples: bool = False

    def loss(self, outputs: Outputs, batch: Batch, held: Tensors) -> Tensor:
        return held["received/logits"].sum(-1)


@dataclass(frozen=True)
class Spread:
    """A term that couples examples: how far features are from their mean, without padding."""

    weight: float = 0.1
    compares: tuple[str, ...] = ()
    head: str | None = "head"
    couples_examples: bool = True

    def loss(self, outputs: Outputs, batch: Batch, held: Tensors) -> Tensor:
        mask = batch["mask"][:, None]
        mean = (outputs["features"] * mask).sum(0) / mask.sum()
        return (outputs["features"] - mean).square().sum(-1)


def test_dp_sgd_refuses_a_term_that_couples_examples() -> None:
    assert fits(**private("distillation"))
    with pytest.raises(PlanError, match="Spread lets the examples of a batch change each other's"):
        points_plan(**private(Spread()))


def test_a_term_of_ones_own_that_couples_examples_is_the_same_in_a_stack(hidden: Site) -> None:
    local = Descent(lr=0.05, batch_size=16, terms=(Spread(),))
    plan = replace(points_plan(**RAGGED), local=local)
    alone = last(run(hidden, plan))
    engine = Cohort(replace(hidden, plan=plan))
    together = last(list(federate(plan, engine, start(plan, hidden.params()))))
    assert not engine.alone and distance(together, alone) <= 1e-4


def test_terms_of_two_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="must agree on the head"):
        Descent(terms=(Moon(head="head"), Moon(head="other")))


def test_dp_sgd_trains_with_a_term(hidden: Site) -> None:
    """The same noise, with and without a term."""
    ends = []
    for terms in ([], [{"name": "distillation", "weight": 20.0}]):
        local = {"name": "dp_sgd", "noise_multiplier": 1.0, "lr": 0.5, "terms": terms}
        plan = points_plan(**{**RAGGED, **private("distillation"), "local": local, "rounds": 1})
        ends.append(last(run(hidden, plan, Nowhere(Secret(bytes(32))))))
    assert distance(ends[1], ends[0]) > 1e-3
