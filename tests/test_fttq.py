"""Local training that is aware of ternary rounding (FTTQ, arXiv:2003.03564)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounds import Recording, distance, last, on, points_plan, run
from torch import Tensor

from fedpeft import PlanError, open_site
from fedpeft.compute.scores import evaluate
from fedpeft.core.tensors import equal
from fedpeft.core.ternary_weights import ternarise
from fedpeft.core.types import Batch, Context, Tensors
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.local.fttq import FTTQ, Rounded
from fedpeft.plan.reading import read_plan
from fedpeft.registry import build
from fedpeft.rounds.loop import federate, start

PLAIN = {"name": "sgd", "momentum": 0.0, "nesterov": False}
WEIGHTS = [4.0, -1.0, 0.5, -3.0, 0.1]
HIDDEN = {"task": {"name": "parts:Points", "network": "hidden"}, "method": "full"}


def fttq(inner: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    descent = {"name": "descent", "lr": 0.05, "batch_size": 8, **(inner or {})}
    return {"local": {"name": "fttq", **settings, "inner": descent}}


class Bowl:
    """ℓ = ½‖θ‖², so that the gradient at Q(θ) is Q(θ)."""

    def __call__(self, params: Tensors, batch: Batch, added: object = None) -> Tensor:
        size = sum(x.square().sum() for x in params.values())
        return size / 2 * torch.ones_like(batch["mask"])

    def gradient(
        self, params: Tensors, batch: Batch, added: object = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        return dict(params), self(params, batch), {}

    def gradients(self, params: Tensors, batch: Batch, added: object = None) -> Tensors:
        return {name: torch.stack([x, 2 * x]) for name, x in params.items()}


def test_a_tensor_by_hand() -> None:
    """D = 0.7 · 8.6 / 5 = 1.204, and w = (4 + 3) / 2."""
    q, scale, inside = ternarise(torch.tensor([WEIGHTS]), 0.7)
    assert q.tolist() == [[3.5, 0, 0, -3.5, 0]] and float(scale) == 3.5
    assert inside.tolist() == [[True, False, False, True, False]]
    q, scale, _ = ternarise(torch.tensor([WEIGHTS]), 0.05)  # D = 0.086, and all are in S
    torch.testing.assert_close(q, 1.72 * torch.tensor([WEIGHTS]).sign())
    zero, scale, inside = ternarise(torch.zeros(2, 3), 0.7)
    assert not zero.any() and float(scale) == 0 and not inside.any()
    assert ternarise(torch.zeros(0, 3), 0.7)[0].shape == (0, 3)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.05, 0.7]), st.booleans())
def test_it_is_what_the_codec_sends_and_a_second_pass_changes_nothing(
    seed: int, threshold: float, narrow: bool
) -> None:
    x = torch.randn(7, 13, generator=torch.Generator().manual_seed(seed))
    x = x.bfloat16() if narrow else x
    codec = build("codec", {"name": "ternary", "threshold": threshold})
    q = ternarise(x, threshold)[0]
    assert equal(codec.decode(codec.encode({"x": x})), {"x": q})
    assert torch.equal(ternarise(q, threshold)[0], q)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        # η·Q(θ) = 0.1 · 3.5
        ({}, [-0.35, 0, 0, 0.35, 0]),
        # w·g in S: 0.1 · 3.5 · 3.5
        ({"gradient": "scaled"}, [-1.225, 0, 0, 1.225, 0]),
        # θ is (3.65, −1, 0.5, −2.65, 0.1) with D = 1.106 and w = 3.15
        ({"ends": "ternary"}, [3.15 - 4, 1, -0.5, -3.15 + 3, -0.1]),
    ],
    ids=str,
)
def test_a_step_by_hand(settings: dict[str, Any], wanted: list[float]) -> None:
    """The bias has one dimension and is not rounded: it goes to 0.9 of itself."""
    inner = build("local", {"name": "descent", "lr": 0.1, "optimizer": PLAIN})
    local = FTTQ(inner=inner, **settings)
    theta = {"w": torch.tensor([WEIGHTS]), "bias": torch.tensor(WEIGHTS)}
    batch = {"mask": torch.ones(2)}
    carry = local.begin(theta, {}, Context("run", 0, 1, "a", 2, 1, 7))
    delta, _, totals = local.finish(local.step(carry, batch, Bowl()), theta, {})
    torch.testing.assert_close(delta["w"], torch.tensor([wanted]))
    torch.testing.assert_close(delta["bias"], -0.1 * torch.tensor(WEIGHTS))
    # What a client tells is the loss at Q(θ).
    told = (2 * 3.5**2 + sum(x * x for x in WEIGHTS)) / 2
    assert float(totals["loss"]) == pytest.approx(2 * told, rel=1e-6)


def test_gradients_of_examples_are_scaled_one_by_one() -> None:
    local = FTTQ(gradient="scaled")
    theta = {"w": torch.tensor([WEIGHTS])}
    seen: Any = None

    class Step:
        def gradients(self, params: Tensors, batch: Batch, added: object = None) -> Tensors:
            nonlocal seen
            seen = params
            return Bowl().gradients(params, batch)

    each = Rounded(Step(), local).gradients(theta, {})  # type: ignore[arg-type]
    assert seen["w"].tolist() == [[3.5, 0, 0, -3.5, 0]]
    wanted = torch.tensor([[[12.25, 0, 0, -12.25, 0]]])
    torch.testing.assert_close(each["w"], torch.cat([wanted, 2 * wanted]))


def ternary_loss(plan: Any) -> float:
    """The held-out loss of the last model with its weights rounded."""
    site = open_site(plan)
    params = last(run(site, plan))
    q = FTTQ().rounded(params)[0]

    class Losses:
        forward = staticmethod(plan.task.forward)

        def metrics(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
            return {"loss": plan.task.losses(outputs, batch)}

    task: Any = Losses()
    return evaluate(task, site.model, q, site.data.held_out())["loss"].value


def test_ternary_weights_do_better_with_it_than_without() -> None:
    """Networks of points, with the same seeds: the model that is rounded after training, and the
    one whose training sees the rounding."""
    settings = {**HIDDEN, "rounds": 12, "cohort": 8}
    plain = {"name": "descent", "lr": 0.2, "batch_size": 8}
    without = ternary_loss(points_plan(**settings, local=plain))
    aware = ternary_loss(points_plan(**settings, **fttq({"lr": 0.2})))
    assert aware < 0.8 * without


def test_where_all_tensors_are_kept_it_says_so_before_anybody_trains() -> None:
    plan = points_plan(**HIDDEN, rounds=2, **fttq(keeps=["first.*"]))
    assert start(plan)
    local = replace(plan.local, keeps=("head.weight", "first.weight"))  # type: ignore[type-var]
    params = {"head.weight": torch.randn(3, 4), "head.bias": torch.randn(3)}
    assert equal(local.rounded(params)[0], params)  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match=r"take some of the patterns out of local\.keeps"):
        start(replace(plan, local=local))


def test_clients_send_ternary_weights_where_they_end_there() -> None:
    """θ_received + Δ of one client alone, whose mean is itself."""
    plan = points_plan(**HIDDEN, cohort=1, rounds=1, **fttq(ends="ternary"))
    end = last(run(open_site(plan), plan))
    for name, x in end.items():
        if x.ndim == 2:
            assert len(set(x.abs().round(decimals=5).flatten().tolist())) <= 2, name


@pytest.mark.parametrize("settings", [{}, {"gradient": "scaled"}, {"ends": "ternary"}], ids=str)
def test_one_by_one_and_together(settings: dict[str, Any], tmp_path: Path) -> None:
    plan = points_plan(cohort=6, rounds=2, **fttq(**settings))
    site = open_site(plan)
    engine = Cohort(site)
    other = list(federate(plan, engine, start(plan, site.params())))
    assert not engine.alone
    assert distance(last(other), last(run(site, plan))) <= 1e-4


def test_convolutions_are_rounded_and_running_statistics_are_not() -> None:
    task = {"name": "parts:Points", "network": "convolution"}
    plan = points_plan(task=task, method="full", rounds=2, **fttq(ends="ternary"))
    site = open_site(plan)
    [*_, (state, ledger)] = run(site, plan)
    assert not ledger.failed
    params = state.params
    rounded = {n for n, x in params.items() if plan.local.is_rounded(n, x)}  # type: ignore[attr-defined]
    assert rounded == {"convolution.weight", "head.weight"}
    assert not torch.equal(params["norm.running_mean"], site.params()["norm.running_mean"])


def test_with_a_ternary_downlink_clients_start_from_what_they_train_with() -> None:
    """The server's own weights are latent: they are not what they round to."""
    plan = points_plan(**HIDDEN, rounds=2, downlink="ternary", **fttq())
    site = open_site(plan)
    engine = Recording(on(site, plan))
    end = last(list(federate(plan, engine, start(plan, site.params()))))
    for job in engine.jobs:
        received = plan.downlink.decode(job.payload)
        assert equal(plan.local.rounded(received)[0], received)  # type: ignore[attr-defined]
    assert not equal(FTTQ().rounded(end)[0], end)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (fttq(threshold=1.0), "threshold must be in"),
        (fttq(gradient="none"), "gradient"),
        (fttq(ends="nowhere"), "ends"),
        ({"local": {"name": "fttq", "inner": "dp_sgd"}}, 'set local.inner = "descent"'),
        (fttq({"as_published": True}), "without as_published"),
        (fttq({"correction": "scaffold"}, ends="ternary"), 'set ends = "latent"'),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**changes)


def test_what_the_inner_training_has_counts(tmp_path: Path) -> None:
    """Its batches, its memory and its control variates are those of the plan."""
    kept = points_plan(**fttq({"restart_schedule": False}))
    assert kept.local.remembers  # type: ignore[attr-defined]
    scaffold = points_plan(**fttq({"correction": "scaffold"}))
    assert scaffold.local_shares
    assert read_plan(scaffold.toml()) == scaffold
