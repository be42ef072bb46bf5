"""DP-SGD: each example's gradient by itself, bounded, drawn by chance, under noise of the size that
is accounted."""

from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import pytest
import torch
from parts import Points
from rounds import on, points_plan, run
from torch import Tensor

from fedpeft.core.interfaces import Added
from fedpeft.core.outputs import Outputs
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import add_prefix, layout
from fedpeft.core.types import Batch, Context, Failure, Job, Reply, Tensors
from fedpeft.errors import PlanError
from fedpeft.evaluation.measure import measure
from fedpeft.evaluation.probe import check_gradients
from fedpeft.local.dp_sgd import DpSgd, Private, _clipped_sum
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.client import Worker
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.runs.execute import open_run_site
from fedpeft.storage.client_memory import Nowhere
from fedpeft.wire.payloads import unpack

SECRET = Secret(bytes(32))
DP = {"weighting": "uniform", "delta": 1e-3, "accountant": "rdp"}


def private_plan(**local: Any) -> Plan:
    return points_plan(
        **DP,
        local={"name": "dp_sgd", "lr": 0.1, "noise_multiplier": 0.0, "clip_norm": inf, **local},
    )


@dataclass(frozen=True)
class Given:
    """A loss whose gradients are given."""

    each: Tensors

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        raise AssertionError("nobody asks for the losses")

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        return {n: x[batch["row"]] for n, x in self.each.items()}

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        raise AssertionError("nobody asks for their mean")


def noisy_sum(each: Tensors, limit: float, **batch: Tensor) -> Tensors:
    rows = torch.arange(len(next(iter(each.values()))))
    still = add_prefix("noise", {n: torch.zeros(x.shape[1:]) for n, x in each.items()})
    whole = {"mask": torch.ones(len(rows)), "row": rows, **still, **batch}
    return Private(Given(each), limit, 2, 2).gradient({}, whole)[0]


def test_clipping_by_hand() -> None:
    """(3, 4) and 12 are 13 long together, and shortened to 6.5; (0, 0), 1 stays; both are divided
    by B = 2."""
    each = {"a": torch.tensor([[3.0, 4.0], [0.0, 0.0]]), "b": torch.tensor([12.0, 1.0])}
    got = noisy_sum(each, 6.5)
    torch.testing.assert_close(got["a"], torch.tensor([0.75, 1.0]))
    torch.testing.assert_close(got["b"], torch.tensor(3.5))


def test_an_infinite_clip_norm_and_no_noise_change_no_bit() -> None:
    draws = torch.Generator().manual_seed(1)
    each = {"a": torch.randn(2, 50, generator=draws), "b": 1e6 * torch.randn(2, generator=draws)}
    for name, g in noisy_sum(each, inf).items():
        assert torch.equal(g, each[name].sum(0) / 2)


@pytest.mark.parametrize("broken", [float("nan"), inf, -inf])
def test_a_broken_gradient_counts_as_zero_and_a_masked_one_not_at_all(broken: float) -> None:
    each = {"a": torch.tensor([[1.0, 0.0], [broken, 1.0], [0.0, 0.0]])}
    assert noisy_sum(each, 10.0)["a"].tolist() == [0.5, 0.0]
    assert noisy_sum(each, inf)["a"].tolist() == [0.5, 0.0]
    assert noisy_sum(each, 10.0, mask=torch.zeros(3))["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [1e20, 1e35, 3e38])
def test_a_gradient_whose_squares_are_infinite_is_no_longer_than_the_clip_norm(size: float) -> None:
    """And no shorter, unless float32 cannot hold what it is multiplied by."""
    each = {"a": torch.full((1, 10_000), size)}
    length = float(2 * noisy_sum(each, 0.5)["a"].double().norm())
    assert length <= 0.5
    assert length == pytest.approx(0.0 if size == 3e38 else 0.5, rel=2e-6)


def test_one_of_5000_examples_moves_the_sum_by_no_more_than_the_clip_norm() -> None:
    """In float32 it moved it by up to 1.0001 of that."""
    draws = torch.Generator().manual_seed(2)
    each = {"a": 5 + torch.rand(5_000, 4, generator=draws)}
    chunks = torch.split(torch.arange(5_000), 32)

    def total(mask: Tensor) -> Tensor:
        parts = [_clipped_sum({"a": each["a"][k]}, mask[k], 1.0)["a"] for k in chunks]
        return torch.stack(parts).sum(0)

    whole = total(torch.ones(5_000))
    for left_out in (0, 2_500, 4_999):
        moved = whole - total((torch.arange(5_000) != left_out).float())
        assert 1 - 1e-5 <= float(moved.norm()) <= 1 + 1e-9


def test_noise_is_added_before_anything_is_rounded() -> None:
    """1 + 2^-30 is 1 in float32; what the noise leaves of it is not."""
    each = {"a": torch.tensor([1.0, 2.0**-30])}
    got = noisy_sum(each, 10.0, **{"noise/a": torch.tensor(-1.0)})
    assert got["a"].item() == 2.0**-31


def context(site: Site, client: str, secret: Secret = SECRET) -> Context:
    return Context("run", 0, 1, client, site.data.size(client), 1, 5, secret)


def test_the_noise_in_the_gradient_is_z_c_over_b(points: Site) -> None:
    local = DpSgd(noise_multiplier=3.0, clip_norm=0.5, batch_size=10, steps=1)
    received = {"w": torch.zeros(200, 500), "s": torch.zeros(())}
    [batch] = local.batches(points.data, received, context(points, points.data.clients[0]))
    params = {"w": torch.zeros(200, 500), "s": torch.zeros(())}
    zero = {n: torch.zeros(len(batch["mask"]), *x.shape) for n, x in params.items()}
    rows = {**batch, "row": torch.arange(len(batch["mask"]))}
    gradient, _, _ = Private(Given(zero), 0.5, 10, 32).gradient(params, rows)
    assert float(gradient["w"].std()) == pytest.approx(3.0 * 0.5 / 10, rel=0.02)


def test_every_example_is_drawn_as_often_as_the_rate_says(points: Site) -> None:
    client = points.data.clients[0]
    size, steps, rate = points.data.size(client), 4000, 0.3
    local = DpSgd(noise_multiplier=0.0, steps=steps, rate=rate)
    drawn = [batch for batch in local.batches(points.data, {}, context(points, client))]
    assert len(drawn) == local.steps_for(size) == steps
    counts = torch.tensor([float(batch["mask"].sum()) for batch in drawn])
    assert float(counts.mean()) == pytest.approx(rate * size, rel=0.03)
    # A binomial's, not a fixed size's.
    assert float(counts.var()) == pytest.approx(rate * (1 - rate) * size, rel=0.1)
    firsts = torch.stack([batch["point"][0] for batch in drawn if batch["mask"][0]])
    mine = points.data.train["point"][points.data.parts[client]]  # type: ignore[attr-defined]
    assert all(bool((firsts == row).all(1).any()) for row in mine[:2])


def test_an_empty_draw_is_a_step_of_noise_alone(points: Site) -> None:
    local = DpSgd(noise_multiplier=1.0, steps=3, rate=1e-9)
    for batch in local.batches(
        points.data, {"w": torch.zeros(4)}, context(points, points.data.clients[0])
    ):
        assert batch["mask"].tolist() == [0.0] and batch["noise/w"].any()


def test_without_noise_clipping_and_chance_it_is_plain_descent(points: Site) -> None:
    """The whole client in each step, divided by its size: gradient descent on the mean loss.

    Not to the bit: a sum of the examples' gradients and the gradient of their mean loss, which also
    takes them in another order, are rounded otherwise.
    """
    client = points.data.clients[0]
    size = points.data.size(client)
    plan = private_plan(rate=1.0, steps=5, batch_size=size)
    plain = points_plan(local={"epochs": 5, "batch_size": size, "lr": 0.1})
    deltas = []
    for one in (plan, plain):
        worker = Worker(replace(points, plan=one), Nowhere())
        context_ = Context("run", 0, 1, client, size, 5, 5, SECRET)
        deltas.append(worker.train(points.params(), {}, context_)[0])
    for name, x in deltas[0].items():
        torch.testing.assert_close(x, deltas[1][name], rtol=1e-5, atol=1e-6)


def test_a_noisy_run_learns_nothing_of_a_client_but_through_the_noise(points: Site) -> None:
    """Reply headers hold a weight of 1 and no metrics; the totals are empty."""
    plan = private_plan(noise_multiplier=1.0, clip_norm=1.0)
    engine = on(points, plan)
    before = start(plan, points.params())
    payload = plan.downlink.encode(before.params)
    for client in engine.clients[:3]:
        reply = engine.worker(Job("run", 0, client, "fit", 1, None, payload))
        assert isinstance(reply, Reply)
        sent = unpack(client, reply.payload, plan.uplink, layout(before.params))
        assert sent.weight == 1.0 and sent.metrics == {}
    (_, ledger), *_ = federate(plan, engine, before)
    assert ledger.metrics == {} and set(ledger.weights.values()) == {1.0}


def test_a_reply_is_made_with_another_noise_for_another_question_and_the_same_for_the_same(
    points: Site,
) -> None:
    plan = private_plan(noise_multiplier=1.0, clip_norm=1.0)
    params = points.params()
    client = points.data.clients[0]
    job = Job("run", 0, client, "fit", 1, None, plan.downlink.encode(params))
    other = replace(job, payload=plan.downlink.encode({n: x + 1e-6 for n, x in params.items()}))
    site = replace(points, plan=plan)
    store = Nowhere(SECRET)

    def delta(job: Job, store: Nowhere) -> Tensor:
        reply = Worker(site, store)(job)
        assert isinstance(reply, Reply)
        return unpack(client, reply.payload, plan.uplink, layout(params)).delta["head.weight"]

    first = delta(job, store)
    assert torch.equal(first, delta(job, store))
    for changed in (other, replace(job, round=1), replace(job, seed=2), replace(job, run="other")):
        assert float((delta(changed, store) - first).abs().max()) > 1e-3
    # whoever has the plan and the job, but not the client's key, gets something else
    assert float((delta(job, Nowhere()) - first).abs().max()) > 1e-3


@dataclass(frozen=True)
class Talking(Points):
    """A task whose error tells of an example."""

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        raise ValueError(f"bad example {batch['point'][0].tolist()}")


def test_the_words_of_an_error_stay_with_the_client(points: Site) -> None:
    plan = replace(private_plan(), task=Talking())
    worker = Worker(replace(points, plan=plan), Nowhere())
    answer = worker(
        Job("run", 0, points.data.clients[0], "fit", 1, None, plan.downlink.encode(points.params()))
    )
    assert (
        isinstance(answer, Failure)
        and "ValueError" in answer.reason
        and "example [" not in answer.reason
    )


@dataclass(frozen=True)
class Alone(Points):
    """A task that, with one example alone, does not reach its tensors: what a broken hook does to
    example gradients."""

    also: bool = field(default=False)

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        losses = Points.losses(self, outputs, batch)
        return losses.detach() + 0 * losses if len(losses) == 1 else losses


@dataclass(frozen=True)
class Coupled(Points):
    """A task in which an example's loss depends on the others'."""

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        losses = Points.losses(self, outputs, batch)
        return losses * losses.mean()


@pytest.mark.parametrize(
    ("task", "reason"), [(Alone(), "no example has a gradient"), (Coupled(), "do not make up")]
)
def test_a_model_that_could_not_learn_is_told_at_the_start(
    points: Site, task: Points, reason: str
) -> None:
    plan = private_plan()
    check_gradients(replace(points, plan=plan))
    with pytest.raises(PlanError, match=reason):
        check_gradients(replace(points, plan=replace(plan, task=task)))
    with pytest.raises(PlanError, match=reason):
        open_run_site(replace(plan, task=task))


def test_batchnorm_is_refused() -> None:
    plan = replace(
        private_plan(), task=Points("convolution"), method=read_plan({"method": "full"}).method
    )
    with pytest.raises(PlanError, match="BatchNorm: it computes with all examples"):
        open_site(plan)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"steps": 0}, "must be at least 1"),
        ({"rate": 0.0}, "rate is a probability"),
        ({"rate": 1.5}, "rate is a probability"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"lr": 0.0}, "lr must be"),
    ],
)
def test_values_out_of_range(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DpSgd(**settings)


@pytest.mark.slow
def test_it_learns_at_epsilon_8(points: Site) -> None:
    local = {"name": "dp_sgd", "lr": 0.5, "batch_size": 8, "rate": 0.5, "steps": 4}
    plan = points_plan(**DP, target_epsilon=8.0, local=local, rounds=8, cohort=12)
    site = open_site(plan)
    (before, _), *_, (after, ledger) = run(site, site.plan)
    assert ledger.privacy is not None and 7.9 < ledger.privacy["epsilon"] <= 8.0
    measured = [measure(site, state.params)["accuracy"] for state in (before, after)]
    assert measured[1] > 0.9, measured
