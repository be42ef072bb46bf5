"""The noise of the published code, and how it differs from what holds."""

from dataclasses import dataclass, replace
from math import sqrt

import pytest
import torch
from rounds import points_plan, run
from torch import Tensor

from fedpeft.core.interfaces import Added
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import add_prefix, norm
from fedpeft.core.types import Batch, Context, Tensors
from fedpeft.local.dp_as_published import DpAsPublished, Noisy
from fedpeft.local.dp_sgd import Private
from fedpeft.rounds.client import Worker
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Nowhere


@dataclass(frozen=True)
class Given:
    """A loss whose gradients are given."""

    each: Tensors

    def __call__(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensor:
        raise AssertionError("nobody asks for the losses")

    def gradients(self, params: Tensors, batch: Batch, added: Added | None = None) -> Tensors:
        return self.each

    def gradient(
        self, params: Tensors, batch: Batch, added: Added | None = None
    ) -> tuple[Tensors, Tensor, Tensors]:
        return {n: g.mean(0) for n, g in self.each.items()}, torch.zeros_like(batch["mask"]), {}


def still(each: Tensors) -> Tensors:
    return add_prefix("noise", {n: torch.zeros(g.shape[1:]) for n, g in each.items()})


@pytest.mark.parametrize(("epsilon", "sigma"), [(5.0, 3.378), (10.0, 2.389)])
def test_sigma_is_the_published_one(epsilon: float, sigma: float) -> None:
    assert DpAsPublished(epsilon=epsilon).sigma == pytest.approx(sigma, abs=1e-3)


def test_one_example_moves_it_by_more_than_its_share() -> None:
    """Ten examples of gradient (1, 0, ..) and one of (-1000, 0, ..) that takes the mean along: the
    published clipping bounds the mean of each tensor, so this one example turns both tensors round.
    Clipped by itself it moves 1 / B."""
    usual = torch.tensor([1.0, 0.0]).expand(10, 2)
    loud = torch.tensor([[-1000.0, 0.0]])
    with_it, without = (
        {"a": torch.cat([usual, extra]), "b": torch.cat([usual, extra])}
        for extra in (loud, torch.zeros(0, 2))
    )

    def moved(published: bool) -> float:
        found = []
        for each in (with_it, without):
            batch = {"mask": torch.ones(len(each["a"])), **still(each)}
            loss = Noisy(Given(each), 1.0) if published else Private(Given(each), 1.0, 10, 100)
            found.append(loss.gradient({}, batch)[0])
        return float(norm({n: x - found[1][n] for n, x in found[0].items()}))

    assert moved(published=True) == pytest.approx(2 * sqrt(2), rel=1e-4)
    assert moved(published=False) == pytest.approx(1 / 10, rel=1e-4)


def test_its_noise_is_sigma_whatever_the_batch(points: Site) -> None:
    local = DpAsPublished(batch_size=7)
    context = Context("run", 0, 1, points.data.clients[0], 8, 2, 5, Secret(bytes(32)))
    batch, *_ = local.batches(points.data, {"w": torch.zeros(200, 500)}, context)
    assert float(batch["noise/w"].std()) == pytest.approx(3.378, rel=0.02)


def test_it_tells_the_loss_and_the_sizes_and_no_epsilon(points: Site) -> None:
    plan = points_plan(local={"name": "dp_as_published", "batch_size": 8})
    for _, ledger in run(points, plan):
        assert "loss" in ledger.metrics and len(set(ledger.weights.values())) > 1
        assert ledger.privacy == {
            "epsilon": None,
            "delta": None,
            "unit": "example",
            "accountant": None,
        }


def test_with_almost_no_noise_and_a_wide_clip_it_is_plain_descent(points: Site) -> None:
    client = points.data.clients[0]
    context = Context("run", 0, 1, client, points.data.size(client), 1, 5, Secret(bytes(32)))
    deltas = []
    for local in (
        {"name": "dp_as_published", "lr": 0.1, "batch_size": 8, "epsilon": 1e30, "clip_norm": 1e3},
        {"lr": 0.1, "batch_size": 8},
    ):
        worker = Worker(replace(points, plan=points_plan(local=local)), Nowhere())
        deltas.append(worker.train(points.params(), {}, context)[0])
    for name, x in deltas[0].items():
        torch.testing.assert_close(x, deltas[1][name], rtol=1e-5, atol=1e-6)
