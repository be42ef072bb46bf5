"""What every registered method keeps, on every kind of model that it fits."""

import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from method_models import (
    KINDS,
    Classify,
    batch_of,
    injected,
    logits_of,
    losses_of,
    method,
    model_of,
    random_like,
)
from torch import nn
from torch.func import functional_call, vmap

from fedpeft.compute.objective import Objective
from fedpeft.compute.scores import evaluate
from fedpeft.compute.trainable import read, tensors_of, write
from fedpeft.compute.vectorized import Draws, StackedObjective
from fedpeft.core.seeds import seed_torch
from fedpeft.core.tensors import equal, finite
from fedpeft.core.types import Tensors
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import PlanError
from fedpeft.optimizers.sgd import SGD
from fedpeft.plan.reading import read_plan
from fedpeft.registry import build, describe
from fedpeft.registry import names as registered
from fedpeft.rounds.loop import federate, start

VARIANTS: dict[str, dict[str, Any]] = {name: {"name": name} for name in registered("method")} | {
    "early_exits": {"name": "early_exits", "exits": [1, 3]},
    "early_exits lora": {"name": "early_exits", "exits": [1, 2, 3], "inner": "lora"},
    "early_exits recurrent": {"name": "early_exits", "exits": [1, 3], "heads": "recurrent"},
    "adapter shared": {"name": "adapter", "shared": True},
    "adapter as published": {"name": "adapter", "as_published": True},
    "prompt shallow": {"name": "prompt", "deep": False, "tokens": 3},
    # With the usual reduction these models have two ReLUs an adapter, of which none may be active.
    "dual_adapter": {"name": "dual_adapter", "reduction": 2},
    "prompt low rank": {"name": "prompt", "tokens": 4, "rank": 2},
    "plora dropout": {"name": "plora", "modules": 3, "dropout": 0.2},
    "lora pissa": {"name": "lora", "rank": 4, "start": "pissa"},
    "lora orthogonal": {"name": "lora", "start": "orthogonal"},
    "lora_xs dropout": {"name": "lora_xs", "rank": 4, "dropout": 0.2},
    "perfix trained": {"name": "perfix", "width": 5, "base": "trained"},
    "vera small": {"name": "vera", "rank": 5, "projection_seed": 9},
}
EXITS = {name for name in VARIANTS if name.startswith("early_exits")}
MISFITS = {
    "vit": {"prefix"},
    "bert": {
        "prefix",
        "prompt",
        "early_exits recurrent",
    },  # it says nowhere what its first token is
    "llama": {"prompt", "bias", *EXITS},  # a Llama has no biases
    # and its output layer is not new
    "lm": {"prompt", "bias", "head", "random_features", *EXITS},
}
# random tokens are in the way from the start, and a head is another one
CHANGES_AT_ONCE = {"prompt", "prefix", "random_features", "recurrent"}
# Of the published adapter.
NEVER_LEARN = ("adapter.down.weight", "adapter.down.bias", "adapter.up.weight")
WITHOUT_EFFECT = (
    "k_proj.bias",
    "key.bias",
    "key.perfix.up.bias",
    "k_proj.perfix.up.bias",
)  # softmax does not see what all keys have in common


def _fits(fits: bool) -> list[Any]:
    return [
        pytest.param(kind, spec, id=f"{kind}-{variant.replace(' ', '-')}")
        for kind in KINDS
        for variant, spec in VARIANTS.items()
        if MISFITS[kind].isdisjoint({variant, spec["name"]}) is fits
    ]


every_fit = pytest.mark.parametrize(("kind", "spec"), _fits(True))


@every_fit
def test_reading_after_writing_gives_what_was_written(kind: str, spec: Mapping[str, Any]) -> None:
    model, names = injected(spec, kind)
    before = {n: x.clone() for n, x in model.state_dict().items()}
    old = read(model, names)
    new = random_like(old)
    write(model, new)
    assert equal(read(model, names), new)
    write(model, old)
    assert equal(model.state_dict(), before)


@every_fit
def test_names_are_what_is_trained_and_each_memory_once(kind: str, spec: Mapping[str, Any]) -> None:
    model, names = injected(spec, kind)
    marked = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == marked  # these models have no running statistics
    every = tensors_of(model)
    assert len({every[name].data_ptr() for name in names}) == len(names) > 0


@every_fit
def test_untouched_the_model_computes_what_the_base_computes(
    kind: str, spec: Mapping[str, Any]
) -> None:
    batch = batch_of(kind)
    base = logits_of(model_of(kind), batch)
    model, names = injected(spec, kind)
    assert (logits_of(model, batch) - base).abs().max() <= 1e-6 or (
        {spec["name"], spec.get("heads")} & CHANGES_AT_ONCE
    )
    write(model, random_like(read(model, names)))
    # And the tensors do reach the output.
    assert (logits_of(model, batch) - base).abs().max() > 1e-3


@every_fit
def test_swapping_tensors_in_is_writing_them(kind: str, spec: Mapping[str, Any]) -> None:
    model, names = injected(spec, kind)
    batch = batch_of(kind)
    new = random_like(read(model, names))
    inputs = {n: x for n, x in batch.items() if n not in ("label", "mask")}
    swapped = functional_call(model, new, (), inputs).logits
    write(model, new)
    assert torch.equal(swapped, logits_of(model, batch))


@every_fit
def test_the_objective_gives_the_gradient_of_backward(kind: str, spec: Mapping[str, Any]) -> None:
    model, names = injected(spec, kind)
    batch = batch_of(kind)
    write(model, random_like(read(model, names)))
    gradient, _, _ = Objective(model, Classify()).gradient(read(model, names), batch)  # type: ignore[arg-type]
    losses_of(Classify(), model, batch).mean().backward()  # type: ignore[no-untyped-call]
    every = dict(model.named_parameters())
    for name in names:
        expected = every[name].grad
        assert expected is None or torch.allclose(gradient[name], expected, rtol=1e-4, atol=1e-6), (
            name
        )
    assert {name for name, p in every.items() if p.grad is not None} <= set(names)


@every_fit
def test_training_moves_every_tensor_and_nothing_of_the_module(
    kind: str, spec: Mapping[str, Any]
) -> None:
    model, names = injected(spec, kind)
    before = {n: x.clone() for n, x in model.state_dict().items()}
    objective = Objective(model, Classify())  # type: ignore[arg-type]
    first = read(model, names)
    params, optimizer, lr = first, SGD(momentum=0.0, nesterov=False), torch.tensor(0.1)
    reached: set[str] = set()
    model.train()
    with seed_torch(1):
        for _ in range(2):
            gradient, _, _ = objective.gradient(params, batch_of(kind))
            reached |= {name for name, g in gradient.items() if bool((g != 0).any())}
            params = dict(optimizer.step(params, {}, gradient, lr)[0])
    still = {
        name for name in names if name not in reached and torch.equal(params[name], first[name])
    }
    expected = (
        {name for name in names if name.endswith(NEVER_LEARN)}
        if spec.get("as_published")
        else set()
    )
    assert {name for name in still if not name.endswith(WITHOUT_EFFECT)} == expected
    assert equal(model.state_dict(), before)


# Of attention, for want of a rule.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@every_fit
def test_many_clients_may_run_as_one(kind: str, spec: Mapping[str, Any]) -> None:
    model, names = injected(spec, kind)
    inputs = {n: x for n, x in batch_of(kind).items() if n not in ("label", "mask")}
    clients = [read(model, names), random_like(read(model, names))]
    stacked = {name: torch.stack([c[name] for c in clients]) for name in names}
    together = vmap(
        lambda tensors: functional_call(model, tensors, (), inputs).logits, randomness="different"
    )(stacked)
    for logits, tensors in zip(together, clients, strict=True):
        assert torch.allclose(logits, functional_call(model, tensors, (), inputs).logits, atol=1e-4)


@every_fit
def test_the_gradients_of_a_stack_are_those_of_each_alone(
    kind: str, spec: Mapping[str, Any]
) -> None:
    """In training, with the dropout that each draws from its own stream."""
    model, names = injected(spec, kind)
    model.train()
    objective = Objective(model, Classify())  # type: ignore[arg-type]
    clients = [read(model, names), random_like(read(model, names))]
    batches = [batch_of(kind), {name: x.flip(0) for name, x in batch_of(kind).items()}]
    draws = Draws([torch.Generator().manual_seed(seed) for seed in (1, 2)], [4, 4], 4)
    params, batch = (
        {name: torch.stack([one[name] for one in two]) for name in two[0]}
        for two in (clients, batches)
    )
    together, losses, _ = vmap(StackedObjective(objective, draws).gradient)(params, batch)
    for k, (tensors, batch) in enumerate(zip(clients, batches, strict=True)):
        with seed_torch(k + 1):
            alone, each, _ = objective.gradient(tensors, batch)
        assert torch.allclose(losses[k], each, atol=1e-5)
        mine, theirs = (
            torch.cat([some[name].flatten() for name in names])
            for some in (_row(together, k), alone)
        )
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


def _row(stack: Tensors, k: int) -> Tensors:
    return {name: x[k] for name, x in stack.items()}


@pytest.mark.parametrize(("kind", "spec"), _fits(False))
def test_a_method_that_does_not_fit_says_what_it_found(kind: str, spec: Mapping[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"the model .*For.*(use|method|needs)"):
        injected(spec, kind)


@pytest.mark.parametrize(
    "spec", VARIANTS.values(), ids=[name.replace(" ", "-") for name in VARIANTS]
)
def test_a_method_survives_pickling_and_the_plan(spec: Mapping[str, Any]) -> None:
    made = method(spec)
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301  # our own bytes
    written = describe("method", made)
    assert written["name"] == spec["name"]
    assert build("method", written) == made
    plan = read_plan({"method": dict(spec)})
    assert read_plan(plan.toml()).method == made


QUICK = ("adapter", "bias", "lora", "prompt")
RATES = {"scratch": 0.02, "vera": 0.5, "vera small": 0.5, "ia3": 0.5, "head": 0.3}


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(v, id=v.replace(" ", "-"), marks=() if v in QUICK else pytest.mark.slow)
        for v, s in VARIANTS.items()
        if s["name"] not in MISFITS["vit"]
    ],
)
def test_federated_rounds_on_digits_lower_the_loss(variant: str) -> None:
    plan = read_plan(
        {
            "method": VARIANTS[variant],
            "partition": {"name": "dirichlet", "clients": 24, "alpha": 100.0},
            "local": {"lr": RATES.get(variant, 0.1), "batch_size": 16, "clip_norm": 1.0},
            "rounds": 2,
            "cohort": 2,
        }
    )
    engine = InProcess.of(plan)
    site = engine.site
    before = {n: x.clone() for n, x in site.model.state_dict().items()}
    rounds = list(federate(plan, engine, start(plan, site.params())))
    assert not any(ledger.failed for _, ledger in rounds)
    trained = rounds[-1][0].params
    assert finite(trained)
    assert trained.keys() == site.params().keys()
    held_out = {name: x[:100] for name, x in next(iter(site.data.held_out())).items()}
    first, last = (
        evaluate(plan.task, site.model, p, [held_out])["loss"].value
        for p in (site.params(), trained)
    )
    assert last < first
    assert equal(site.model.state_dict(), before)


@pytest.mark.slow
def test_two_sites_begin_with_the_same_bits() -> None:
    def site(spec: Mapping[str, Any]) -> nn.Module:
        return read_plan({"method": dict(spec), "seed": 4}).model(("a", "b"))

    for spec in VARIANTS.values():
        if spec["name"] in MISFITS["vit"]:
            continue
        one, other = site(spec), site(spec)
        assert equal(one.state_dict(), other.state_dict()), spec
        assert {n for n, _ in one.named_buffers()} == {n for n, _ in other.named_buffers()}
