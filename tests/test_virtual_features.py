"""A head that is trained on features drawn from clients' class moments (CCVR)."""

from typing import Any

import pytest
import torch
from rounds import Recording, Tampering, on, points_plan
from torch import Tensor

from fedpeft import PlanError
from fedpeft.algorithms.virtual_features import (
    VirtualFeatures,
    _check,
    add_moments,
    draw_features,
    estimate_normals,
    train_head,
)
from fedpeft.codecs.dense import Dense
from fedpeft.core.conversation import Answer, Message
from fedpeft.core.rounds import Round
from fedpeft.core.seeds import generator
from fedpeft.core.types import Reply
from fedpeft.evaluation.measure import measure
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.wire.payloads import encode_answer

SKEWED = {"partition": {"name": "dirichlet", "clients": 6, "alpha": 0.05}}


def moments(x: Tensor, full: bool = False) -> dict[str, Tensor]:
    """Of examples (n, features) of one class, as a client of one class would tell them."""
    second = (x.T @ x) if full else x.square().sum(0)
    return {"counts": torch.tensor([float(len(x))]), "sums": x.sum(0)[None], "second": second[None]}


def head_sent(site: Site, plan: Any) -> dict[str, Tensor]:
    """The tensors with which the first round begins."""
    engine = Recording(on(site, plan))
    [(_, ledger)] = federate(plan, engine, start(plan, site.params()))
    assert not ledger.failed
    return dict(plan.downlink.decode(engine.jobs[-1].payload))


def test_moments_of_two_clients_by_hand() -> None:
    """Features 1 and 3 at one client, 5 at another: mean 3, variance (4 + 0 + 4) / 2."""
    told = add_moments(
        iter([moments(torch.tensor([[1.0], [3.0]])), moments(torch.tensor([[5.0]]))])
    )
    means, deviations = estimate_normals(told)
    assert means.item() == 3 and deviations.item() == 2


def test_products_give_the_covariance_of_everybody() -> None:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    told = add_moments(iter([moments(x[:4], True), moments(x[4:], True)]))
    means, [root] = estimate_normals(told)
    torch.testing.assert_close(means[0], x.mean(0))
    torch.testing.assert_close(root @ root.T, torch.cov(x.T))


@pytest.mark.parametrize("full", [False, True])
def test_draws_have_these_moments(full: bool) -> None:
    means = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    factor = torch.tensor([[[2.0, 0.0], [1.0, 1.0]]] if full else [[2.0, 0.5]]).double()
    x = draw_features(means, factor, 20_000, torch.Generator().manual_seed(2))
    wanted = factor[0] @ factor[0].T if full else torch.diag(factor[0].square())
    torch.testing.assert_close(x.mean(0), means[0], atol=0.06, rtol=0)
    torch.testing.assert_close(torch.cov(x.T), wanted, atol=0.12, rtol=0)


def test_a_single_example_is_its_own_class_and_rounding_makes_no_nan() -> None:
    means, deviations = estimate_normals(moments(torch.tensor([[3.0, 1.0]])))
    assert means.tolist() == [[3, 1]] and deviations.tolist() == [[0, 0]]
    short = {**moments(torch.tensor([[1.0], [1.0]])), "second": torch.tensor([[1.9999]])}
    assert estimate_normals(short)[1].item() == 0


def test_the_head_is_the_minimum() -> None:
    """Two classes at ±1 without a bias: by symmetry rows are ∓w, and the gradient of
    log(1 + exp(−2w)) + λ·w² is zero, 2 / (1 + exp(2w)) = 2·λ·w."""
    x, label = torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0, 1])
    rows, bias, loss = train_head(x, label, decay=0.1, steps=100, biased=False)
    w = rows[1].item()
    assert rows[0].item() == pytest.approx(-w) and not bias.any()
    assert 1 / (1 + torch.tensor(2 * w).exp().item()) == pytest.approx(0.1 * w, abs=1e-5)
    assert loss == pytest.approx(torch.tensor(-2 * w).exp().log1p().item())


def test_classes_that_nobody_holds_keep_their_rows_and_one_class_trains_nothing() -> None:
    params = {"head.weight": torch.full((3, 1), 9.0), "head.bias": torch.full((3,), 9.0)}
    reports: dict[str, Any] = {}
    round = Round(0, None, ["c"], ["c"], seed=1, report=reports.__setitem__)
    told = {
        "counts": torch.tensor([2.0, 0.0, 2.0]),
        "sums": torch.tensor([[-4.0], [0.0], [4.0]]),
        "second": torch.tensor([[8.0], [0.0], [8.0]]),
    }
    part = VirtualFeatures(draws=4)
    head = part._head_of(params, iter([Answer("c", Message({"class_moments": told}))]), round)
    below, kept, above = head["head.weight"].flatten().tolist()
    assert below < 0 < above and kept == 9 and head["head.bias"][1] == 9
    assert reports["virtual_features"]["drawn"] == 8
    assert reports["virtual_features"]["without"] == 1
    alone = {
        name: x * torch.tensor([1.0, 0, 0]).view(3, *[1] * (x.ndim - 1)) for name, x in told.items()
    }
    assert (
        part._head_of(params, iter([Answer("c", Message({"class_moments": alone}))]), round) == {}
    )
    assert part._head_of(params, iter([]), round) == {}
    assert "two classes" in reports["note"]


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_it_is_a_start_and_does_not_see_how_labels_are_divided(
    points: Site, covariance: str
) -> None:
    part = {"name": "virtual_features", "covariance": covariance}
    still = {"local": {"lr": 1e-9, "batch_size": 16}}
    plan = points_plan(algorithms=[part], rounds=1, **still)
    [(state, _)] = federate(plan, on(points, plan), start(plan, points.params()))
    assert measure(points, state.params)["accuracy"] > 0.8
    other = points_plan(algorithms=[part], rounds=1, **still, **SKEWED)
    mine, theirs = head_sent(points, plan), head_sent(open_site(other), other)
    torch.testing.assert_close(mine["head.weight"], theirs["head.weight"], atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"second": torch.zeros(3, 8)}, "less than its sums"),
        ({"counts": torch.zeros(3)}, "of which it has no example"),
        ({"counts": torch.tensor([0.5, 0, 0])}, "no numbers of examples"),
        ({"second": torch.full((3, 8), 1e38), "counts": torch.ones(3)}, "norm_factor"),
    ],
)
def test_moments_of_no_examples_are_refused_by_name(
    points: Site, changes: dict[str, Tensor], words: str
) -> None:
    plan = points_plan(algorithms=["virtual_features"], rounds=1)
    client = points.data.clients[5]
    one = torch.zeros(3, 8)
    one[0] = 1
    sent = {"counts": torch.tensor([1.0, 0, 0]), "second": one, "sums": one, **changes}
    payload = encode_answer(Message({"class_moments": sent}), Dense())
    engine = Tampering(on(points, plan), {client: lambda reply: Reply(client, payload)})
    [(_, ledger)] = federate(plan, engine, start(plan, points.params()))
    assert words in ledger.failed[client] and list(ledger.failed) == [client]


@pytest.mark.parametrize("full", [False, True])
def test_tiny_features_are_taken(full: bool) -> None:
    """Squares of 1e-25 are 0 in float32, and those of 3e-21 have five bits."""
    told = moments(torch.tensor([[1e-25, 0.3, 3e-21]]), full)
    _check("someone", Message({"class_moments": told}))


def test_draws_are_of_a_stream_of_their_own() -> None:
    means, spread = torch.zeros(1, 2), torch.ones(1, 2)
    one, other = (draw_features(means, spread, 3, generator(7, "virtual_features")) for _ in "ab")
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("key", "value"), [("draws", 0), ("steps", 0), ("decay", 0.0), ("covariance", "half")]
)
def test_values_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(PlanError):
        points_plan(algorithms=[{"name": "virtual_features", key: value}])


def test_a_head_must_be_there(points: Site) -> None:
    plan = points_plan(algorithms=["virtual_features"], personal=["head.*"])
    with pytest.raises(PlanError, match="virtual_features needs a linear head"):
        next(federate(plan, on(points, plan), start(plan, points.params())))
