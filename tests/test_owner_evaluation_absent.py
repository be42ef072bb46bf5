"""Owners that do not answer when they are asked to train or to measure."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from rounds import points_plan

from fedpeft.core.types import Failure, Reply
from fedpeft.engines.inprocess import InProcess
from fedpeft.evaluators.owners import PHASE
from fedpeft.plan.plan import Plan
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site

POINTS: dict[str, Any] = {
    "task": {"name": "parts:ClassedPoints"},
    "partition": {"name": "dirichlet", "clients": 4, "alpha": 10.0, "held_out": 0.3},
    "evaluate_at": ["owners", "server"],
    "metrics": ["auroc", "ece"],
}


@pytest.fixture(scope="module")
def points() -> Site:
    return open_site(points_plan(**POINTS))


def run(plan: Plan, engine: Any, site: Site) -> Ledger:
    """The ledger of a plan of one round."""
    [(_, ledger)] = federate(plan, engine, start(plan, site.params()), classes=site.classes)
    return ledger


def test_who_does_not_answer_counts_in_training_all_the_same(points: Site) -> None:
    """The round is no round without a change, and the reason stands with the evaluation."""
    clients = points.data.clients

    class Silent:
        def __init__(self) -> None:
            self.inner = InProcess(points)

        clients = points.data.clients

        def run(self, jobs: Any) -> Iterator[Reply | Failure]:
            for job in jobs:
                lost = job.phase == PHASE and job.client == clients[0]
                yield Failure(job.client, "gone") if lost else self.inner.worker(job)

    plan = replace(points.plan, rounds=1, cohort=4)
    ledger = run(plan, Silent(), points)
    assert ledger.reports["owners"]["failed"] == {clients[0]: "gone"}
    assert len(ledger.weights) == 4 and not ledger.failed and not ledger.note


@pytest.mark.parametrize("answered", [True, False], ids=["says so", "silent"])
def test_who_says_that_it_failed_to_train_is_measured(points: Site, answered: bool) -> None:
    """One that is silent is not asked again, as each question would wait for it."""
    client = points.data.clients[0]
    asked: list[str] = []

    class Failing:
        clients = points.data.clients
        inner = InProcess(points)

        def run(self, jobs: Any) -> Iterator[Reply | Failure]:
            for job in jobs:
                asked.extend([job.phase] * (job.client == client))
                lost = job.phase == "fit" and job.client == client
                yield Failure(client, "diverged", answered) if lost else self.inner.worker(job)

    plan = replace(points.plan, rounds=1, cohort=4)
    ledger = run(plan, Failing(), points)
    assert ledger.failed == {client: "diverged"} and len(ledger.weights) == 3
    assert ledger.reports["owners"]["failed"] == {}
    assert ledger.reports["owners"]["not_asked"] == ({} if answered else {client: "diverged"})
    assert asked == (["fit", PHASE] if answered else ["fit"])
