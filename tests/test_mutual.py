"""Two adapters that teach each other (FedDAT, arXiv:2308.12305)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from method_models import injected
from rounds import distance, last, on, points_plan, run
from torch import Tensor, nn

from fedpeft import PlanError, open_site, read_plan
from fedpeft.compute.trainable import read
from fedpeft.core.interfaces import Added
from fedpeft.core.tensors import equal
from fedpeft.core.types import Batch, Context, Tensors
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.local.mutual import MutualDistillation
from fedpeft.methods.dual_adapter import DualAdapted
from fedpeft.plan.plan import Plan
from fedpeft.registry import build
from fedpeft.rounds.loop import federate, start
from fedpeft.storage.client_memory import Folder

PLAIN = {"name": "sgd", "momentum": 0.0, "nesterov": False}
OWN, SHARED, GATE, HEAD = "net.own_adapter.w", "net.shared_adapter.w", "net.gate", "head.w"
KEPT = {"name": "personal", "patterns": ["*.own_adapter.*", "classifier.*"]}
VIT: dict[str, Any] = {
    "task": {"name": "test_cohort_methods:Tiny", "kind": "vit"},
    "data": {"name": "parts:Blobs", "features": 64, "examples": 120},
    "partition": {"name": "iid", "clients": 3},
    "method": {"name": "dual_adapter", "zero_up": False},
    "rounds": 2,
    "cohort": 3,
}


def mutual(inner: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    descent = {"name": "descent", "lr": 0.05, "batch_size": 8, **(inner or {})}
    return {"local": {"name": "mutual", **settings, "inner": descent}}


def vit(**changes: Any) -> Plan:
    return points_plan(**{**VIT, **mutual(), "routing": [KEPT], **changes})


class Logits:
    """The logits z = head + g₀·own + g₁·shared of every example, and the loss ½‖z‖²."""

    def logits(self, params: Tensors) -> Tensor:
        gate = params[GATE]
        return params[HEAD] + gate[0] * params[OWN] + gate[1] * params[SHARED]

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        z = self.logits(params).expand(len(batch["mask"]), -1)
        each = z.square().sum(-1) / 2
        if added is None:
            return each
        [term] = added.terms
        with torch.no_grad():
            theirs = self.logits(added.models["received"]).expand_as(z)
        return each + term.weight * term.loss({"logits": z}, batch, {"received/logits": theirs})

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        leaves = {name: x.detach().requires_grad_() for name, x in params.items()}
        each = self(leaves, batch, added)
        found = torch.autograd.grad(each.mean(), list(leaves.values()), allow_unused=True)
        gradient = {
            name: torch.zeros_like(params[name]) if g is None else g
            for name, g in zip(leaves, found, strict=True)
        }
        return gradient, each.detach(), {}

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        raise NotImplementedError


def after_a_step(local: Any, start_: Tensors) -> tuple[Tensors, Tensors]:
    context, batch = Context("run", 0, 1, "a", 2, 1, 7), {"mask": torch.ones(2)}
    carry = local.step(local.begin(start_, {}, context), batch, Logits())
    delta, memory, totals = local.finish(carry, start_, {})
    assert memory == {} and delta.keys() == start_.keys()
    return delta, totals


def test_the_distance_by_hand() -> None:
    """Of the student's logits (3, 0) from the teacher's (0, 3) at τ = 3, with p = 1 / (1 + e):
    9·KL = 9·((1 − p) − p)·1 = 9·tanh(½)."""
    term = MutualDistillation()._term
    student, teacher = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    told = term.loss({"logits": student}, {}, {"received/logits": teacher})
    assert float(told) == pytest.approx(4.159055, rel=1e-6)


def test_two_steps_by_hand_without_distance() -> None:
    """w = 0 and η = 0.1. head = 1, own = 2 and shared = 4: z_S = 5, and S and the head go by
    −0.1·5/2 = −0.25 each. Then z_T = 0.75 + ½·2 + ½·4 = 3.75 with the S that came: own goes by
    −0.1·½·3.75/2 = −0.09375, and the head by −0.1875 more."""
    inner = build("local", {"name": "descent", "lr": 0.1, "optimizer": PLAIN})
    local = MutualDistillation(weight=0.0, inner=inner)
    numbers = {HEAD: torch.ones(1), OWN: torch.full((1,), 2.0), SHARED: torch.full((1,), 4.0)}
    delta, totals = after_a_step(local, numbers)
    assert float(delta[SHARED]) == pytest.approx(-0.25)
    assert float(delta[OWN]) == pytest.approx(-0.09375)
    assert float(delta[HEAD]) == pytest.approx(-0.25 - 0.1875)
    assert float(totals["loss"]) == pytest.approx(2 * 12.5 / 2)


def test_each_is_drawn_to_the_other() -> None:
    """Against the same steps without distance: the student's logits come nearer to the teacher's,
    and the teacher's to what the student's were."""
    inner = build("local", {"name": "descent", "lr": 0.1, "optimizer": PLAIN})
    own, shared = torch.tensor([0.0, 3.0]), torch.tensor([3.0, 0.0])
    numbers = {HEAD: torch.zeros(2), OWN: own, SHARED: shared}
    far, near = (
        after_a_step(MutualDistillation(weight=weight, inner=inner), numbers)[0]
        for weight in (0.0, 5.0)
    )
    # the teacher's logits are (1.5, 1.5): S loses in its first and gains in its second
    assert near[SHARED][0] < far[SHARED][0] and near[SHARED][1] > far[SHARED][1]
    # the student's were (3, 0): L goes the other way
    assert near[OWN][0] > far[OWN][0] and near[OWN][1] < far[OWN][1]


def test_adapters_that_are_alike_have_no_distance() -> None:
    inner = build("local", {"name": "descent", "lr": 0.1, "optimizer": PLAIN})
    same = torch.tensor([1.0, -2.0])
    numbers = {HEAD: torch.ones(2), OWN: same, SHARED: same.clone()}
    far, near = (
        after_a_step(MutualDistillation(weight=weight, inner=inner), numbers)[0]
        for weight in (0.0, 7.0)
    )
    # in the second step the head has moved, so that only the first one has no distance
    torch.testing.assert_close(near[SHARED], far[SHARED])


def test_a_gate_by_hand() -> None:
    """h = 2 and both branches ReLU(h): 2 + ½·2 + ½·2 = 4; with the gate (0, 1) 2 + 2."""
    base = nn.Linear(1, 1)
    layer = DualAdapted(base, 1, zero_up=False)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        layer.own_adapter.up.weight.fill_(3.0)
        x = torch.full((1, 1), 2.0)
        assert float(layer(x)) == 2 + 0.5 * 6 + 0.5 * 2
        alone = torch.func.functional_call(layer, {"gate": torch.tensor([0.0, 1.0])}, (x,))
        assert torch.equal(alone, base(x) + layer.shared_adapter(base(x)))


def test_the_shared_adapter_alone_travels(tmp_path: Path) -> None:
    plan = vit()
    site, store = open_site(plan), Folder(tmp_path)
    [*_, (state, ledger)] = federate(plan, on(site, plan, store), start(plan, site.params()))
    assert not ledger.failed
    assert all(".shared_adapter." in name for name in state.params)
    _, names = injected(VIT["method"], "vit")
    assert len([name for name in names if ".shared_adapter." in name]) == len(state.params)
    first, second = (store.load(c, state.accepted[c]) for c in site.data.clients[:2])
    own = [name for name in first if ".own_adapter." in name and name.startswith("personal/")]
    assert own and not equal({n: first[n] for n in own}, {n: second[n] for n in own})
    assert not any("gate" in name for name in first)


def test_rounds_lower_the_loss() -> None:
    plan = vit(rounds=3, routing=[], **mutual({"lr": 0.03}))
    losses = [ledger.metrics["loss"].value for _, ledger in run(open_site(plan), plan)]
    assert losses[-1] < 0.7 * losses[0]


def test_one_by_one_and_together(tmp_path: Path) -> None:
    plan = vit()
    site = open_site(plan)
    engine = Cohort(site, Folder(tmp_path / "together"))
    other = list(federate(plan, engine, start(plan, site.params())))
    assert not engine.alone and not any(ledger.failed for _, ledger in other)
    alone = last(run(site, plan, Folder(tmp_path / "alone")))
    assert distance(last(other), alone) <= 1e-4


def test_training_changes_nothing_of_the_module() -> None:
    plan = vit(routing=[], rounds=1)
    site = open_site(plan)
    before = {name: x.clone() for name, x in site.model.named_buffers()}
    last(run(site, plan))
    assert equal(dict(site.model.named_buffers()), before)
    assert any(name.endswith(".gate") for name in before)
    assert "gate" not in " ".join(site.model.state_dict())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (mutual({"terms": ["distillation"]}), "without terms, correction"),
        (mutual({"correction": "prox"}), "without terms, correction"),
        (mutual({"restart_schedule": False}), "restart_schedule = false"),
        ({"local": {"name": "mutual", "inner": "dp_sgd"}}, 'set local.inner = "descent"'),
        (mutual(temperature=0.0), "temperature must be positive"),
        (mutual(weight=-1.0), "weight must be at least 0"),
        (
            {**mutual(), "task": {"name": "forecast", "model": "linear"}},
            "distillation compares logits",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**changes)


def test_without_two_adapters_it_says_so_before_anybody_trains() -> None:
    with pytest.raises(PlanError, match='set method = "dual_adapter"'):
        start(points_plan(**mutual()))
    everything = {"name": "personal", "patterns": ["*_adapter.*"]}
    with pytest.raises(PlanError, match="leave its shared adapter out of `personal`"):
        start(vit(routing=[everything]))


def test_a_plan_reads_back() -> None:
    plan = vit()
    assert read_plan(plan.toml()) == plan
    assert replace(plan.local, weight=0.5) != plan.local  # type: ignore[type-var]


def test_its_first_weights_are_those_of_the_authors() -> None:
    model, names = injected({"name": "dual_adapter", "zero_up": False, "reduction": 2}, "vit")
    found = {name: x for name, x in read(model, names).items() if "_adapter." in name}
    assert {tuple(x.shape) for x in found.values()} == {(16, 32), (16,), (32, 16), (32,)}
    weights = torch.cat([x.flatten() for name, x in found.items() if name.endswith("weight")])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.05)
    assert not any(x.any() for name, x in found.items() if name.endswith("bias"))
