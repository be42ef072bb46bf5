"""Heads that clients' sums of features make before the first round: by covariances, by ridge."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from rounds import Recording, Tampering, on, points_plan
from torch import Tensor
from torch.nn.functional import normalize

from fedpeft import PlanError
from fedpeft.algorithms.class_covariances import ClassCovariances, estimate_gram, sum_by_class
from fedpeft.codecs.dense import Dense
from fedpeft.core.conversation import Answer, Message
from fedpeft.core.types import Reply
from fedpeft.evaluation.measure import measure
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.wire.payloads import encode_answer

RIDGE = {"name": "ridge_head", "length": 1.0}
SKEWED = {"partition": {"name": "dirichlet", "clients": 6, "alpha": 0.05}}


def head_sent(site: Site, algorithm: object, **changes: Any) -> Tensor:
    """The head's weight with which the first round begins."""
    plan = points_plan(algorithms=[algorithm], rounds=1, **changes)
    engine = Recording(on(site, plan))
    [(_, ledger)] = federate(plan, engine, start(plan, site.params()))
    assert not ledger.failed
    return plan.downlink.decode(engine.jobs[-1].payload)["head.weight"]


def told(sums: list[list[float]], counts: list[float]) -> Answer:
    tensors = {"sums": torch.tensor(sums), "counts": torch.tensor(counts)}
    return Answer("c", Message({"class_means": tensors}))


def test_a_gram_from_means_by_hand() -> None:
    """Class 0 has the means 1 and 3 of two examples each, class 1 the mean −1 of one: with γ = 1,
    G = 3·(4 + 1) + 0 + 5·1.4²."""
    which, counts = torch.tensor([0, 0, 1]), torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64)
    sums = torch.tensor([[2.0], [6.0], [-1.0]], dtype=torch.float64)
    totals, numbers = sum_by_class(which, sums, counts, 2)
    assert totals.flatten().tolist() == [8, -1] and numbers.tolist() == [4, 1]
    gram = estimate_gram(which, sums, counts, totals, numbers, 1.0)
    assert gram.item() == pytest.approx(24.8)


def test_rows_are_of_length_one_and_a_class_without_examples_keeps_its_row() -> None:
    params = {"head.weight": torch.full((3, 1), 9.0), "head.bias": torch.full((3,), 9.0)}
    answers = [told([[2.0], [0.0], [0.0]], [2, 0, 0]), told([[6.0], [-1.0], [0.0]], [2, 1, 0])]
    head = ClassCovariances(length=1.0)._head_of(params, iter(answers))
    assert head["head.weight"].flatten().tolist() == [1, -1, 9]
    assert head["head.bias"].tolist() == [0, 0, 9]


def test_classes_that_one_client_has_each_leave_the_ridge_and_the_mean() -> None:
    draws = torch.Generator().manual_seed(1)
    sums = torch.randn(3, 4, generator=draws).double() * 5
    which, counts = torch.arange(3), torch.tensor([5.0, 5.0, 5.0], dtype=torch.float64)
    gram = estimate_gram(which, sums, counts, sums, counts, 0.5)
    mean = sums.sum(0) / 15
    torch.testing.assert_close(gram, 0.5 * 12 * torch.eye(4).double() + 15 * mean.outer(mean))


def test_covariances_are_estimated_without_bias() -> None:
    """Many clients whose means are of four draws each: the spread of means tells that of draws."""
    draws = torch.Generator().manual_seed(2)
    spread = torch.tensor([[2.0, 0.5], [0.0, 1.0]], dtype=torch.float64)
    points = torch.randn(4000, 4, 2, generator=draws, dtype=torch.float64) @ spread
    sums, counts = points.sum(1), torch.full((4000,), 4.0, dtype=torch.float64)
    which = torch.zeros(4000, dtype=torch.int64)
    totals, numbers = sum_by_class(which, sums, counts, 1)
    gram = estimate_gram(which, sums, counts, totals, numbers, 1e-9) / numbers
    torch.testing.assert_close(gram, spread.T @ spread, atol=0.2, rtol=0)


def test_ridge_is_the_regression_on_everybodys_examples(points: Site) -> None:
    train: Any = points.data
    x, label = train.train["point"].double(), train.train["label"]
    target = torch.nn.functional.one_hot(label, 3).double()
    gram = x.T @ x + 0.01 * torch.eye(8).double()
    wanted = normalize(torch.linalg.solve(gram, x.T @ target).T).float()
    skewed = open_site(points_plan(**SKEWED))
    for site in (points, skewed):
        torch.testing.assert_close(head_sent(site, RIDGE), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("algorithm", ["class_covariances", "ridge_head"])
def test_it_is_a_start(points: Site, algorithm: str) -> None:
    plan = points_plan(algorithms=[algorithm], rounds=1, local={"lr": 1e-9, "batch_size": 16})
    [(state, _)] = federate(plan, on(points, plan), start(plan, points.params()))
    assert measure(points, state.params)["accuracy"] > 0.8


def test_covariances_cost_the_bytes_of_means(points: Site) -> None:
    plans = [
        points_plan(algorithms=[name], rounds=1) for name in ("class_means", "class_covariances")
    ]
    ledgers = [next(federate(p, on(points, p), start(p, points.params())))[1] for p in plans]
    assert ledgers[0].bytes_up == pytest.approx(ledgers[1].bytes_up, abs=64)  # digits of losses


def test_one_answer_serves_one_head() -> None:
    with pytest.raises(PlanError, match="two parts of this plan answer the message 'class_means'"):
        points_plan(algorithms=["class_means", "class_covariances"])


@pytest.mark.parametrize(
    ("entry", "words"), [(-1.0, "no sum of x·xᵀ"), (1e30, "norm_factor"), (float("nan"), "finite")]
)
def test_products_of_no_examples_are_refused_by_name(
    points: Site, entry: float, words: str
) -> None:
    plan = points_plan(algorithms=["ridge_head"], rounds=1)
    client = points.data.clients[5]
    sent = {
        "sums": torch.zeros(3, 8),
        "counts": torch.tensor([1.0, 0.0, 0.0]),
        "feature_products": torch.eye(8) * entry,
    }
    payload = encode_answer(Message({"feature_products": sent}), Dense())
    engine = Tampering(on(points, plan), {client: lambda reply: Reply(client, payload)})
    [(_, ledger)] = federate(plan, engine, start(plan, points.params()))
    assert client in ledger.failed and words in ledger.failed[client]


@pytest.mark.parametrize("algorithm", ["class_covariances", "ridge_head"])
def test_a_head_must_be_there(points: Site, algorithm: str) -> None:
    plan = points_plan(algorithms=[algorithm], personal=["head.*"])
    with pytest.raises(PlanError, match=f"{algorithm} needs a linear head"):
        next(federate(plan, on(replace(points, plan=plan), plan), start(plan, points.params())))


@pytest.mark.parametrize(
    "part", [{"name": "class_covariances", "gamma": 0.0}, {"name": "ridge_head", "ridge": -1.0}]
)
def test_what_is_added_to_a_variance_is_positive(part: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="must be positive and finite"):
        points_plan(algorithms=[part])
