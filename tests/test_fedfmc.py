"""Several models, then one of them, then near it (FedFMC)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import pytest
import torch
from rounds import Recording, on, points_plan, run
from test_ifca import begun, bowls, ends

from fedpeft import PlanError
from fedpeft.algorithms.fedfmc import FedFMC, consolidate
from fedpeft.algorithms.fisher import merge_by_information
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Job, Reply, State
from fedpeft.deploy.consent import consent_to
from fedpeft.engines.inprocess import InProcess
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site

ROOT = sqrt(3) / 2
PAIR = {"a": 0.0, "b": 4 - ROOT}
"""At 0.5 and 4 the loss (w − x)² has the squared gradients 1 and 3."""


def forked(pull: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {"algorithms": [{"name": "fedfmc", "fork": 1, "pull": pull, **changes}]}


def one(x: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([x])}


def after_fork(site: Site, *models: float) -> State:
    """A state with these models, after one round."""
    return replace(begun(site, *models), round=1)


def test_the_merge_by_hand() -> None:
    """θ = 0 and 4 with F = 1 and 3: (0 + 12) / 4."""
    merged = merge_by_information([one(0.0), one(4.0)], [one(1.0), one(3.0)], [1.0, 1.0], 1e-12)
    assert merged["w"].item() == pytest.approx(3.0)


@pytest.mark.parametrize(("pull", "end"), [(0.0, 10.0), (1.0, 5.5), (1e9, 4.0)])
def test_the_pull_is_the_minimum_of_ewcs_penalty(pull: float, end: float) -> None:
    """½·(t − 10)² + λ·½·3·(t − 4)² has its minimum at 5.5 for λ = 1."""
    got = consolidate(one(10.0), one(4.0), one(3.0), pull)["w"]
    assert got.item() == pytest.approx(end, abs=1e-6) and got.dtype is torch.float32
    if not pull:
        assert torch.equal(got, torch.tensor([10.0]))


def test_a_merge_and_a_pulled_round_by_hand() -> None:
    """Models 0.5 and 4 have F = 1 and 3, of two clients 1/2 and 3/2: the merge is at
    (0.5 + 12) / 4 = 3.125. The clients then go to 0 and 3.134, to 1.567 on the mean, and with F = 2
    and λ = 1 the model goes to (1.567 + 2·3.125) / 3."""
    site = bowls(PAIR, rounds=2, **forked())
    [(state, ledger)] = run(site, site.plan, state=after_fork(site, 0.5, 4.0))
    kept = state.memory["fedfmc"]
    assert kept["anchor/w"].item() == pytest.approx(3.125, abs=1e-5)
    assert kept["information/w"].item() == pytest.approx(2.0, abs=1e-5)
    mean = (4 - ROOT) / 2
    assert ends(site, state) == [pytest.approx((mean + 2 * 3.125) / 3, abs=1e-5)]
    assert ledger.reports["fedfmc"] == {"merged": [1, 1], "heard": 2}
    assert "ifca" not in state.memory and not ledger.failed


def test_the_rounds_before_are_those_of_ifca_to_the_bit() -> None:
    plan = {"rounds": 3, "cohort": 24}
    algorithm = {"name": "fedfmc", "fork": 2}
    forks, choices = (points_plan(**plan, algorithms=[each]) for each in (algorithm, "ifca"))
    site = open_site(forks)
    mine, theirs = run(site, forks), run(site, choices)
    for (state, ledger), (other, others) in zip(mine[:2], theirs[:2], strict=True):
        assert equal(state.flat, other.flat) and ledger.reports == others.reports
    assert len(FedFMC(fork=2).models(mine[1][0])) == 2
    assert len(FedFMC(fork=2).models(mine[2][0])) == 1


def test_without_pull_and_with_one_model_it_is_the_mean_to_the_bit(points: Site) -> None:
    plain = points_plan(rounds=3, server="adam")
    forks = points_plan(
        rounds=3,
        server="adam",
        algorithms=[{"name": "fedfmc", "fork": 2, "pull": 0.0, "clusters": 1, "least": 0.0}],
    )
    mine, theirs = run(points, forks), run(points, plain)
    for (state, _), (other, _) in zip(mine[:2], theirs[:2], strict=True):
        assert equal(state.params, other.params)
    # the server's optimizer begins again at the merged model, and everything else goes on
    assert mine[2][0].memory.keys() == {"server", "fedfmc"}


@dataclass(frozen=True)
class Silent:
    """An engine whose clients tell no information."""

    inner: InProcess

    @property
    def clients(self) -> Sequence[str]:
        return self.inner.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for job in jobs:
            lost = job.phase == "fedfmc"
            yield from [Failure(job.client, "lost")] if lost else self.inner.run([job])


def test_without_information_the_models_mean_is_merged() -> None:
    """Who fails once is out of the round, so that nobody trains in it and nothing is pulled."""
    site = bowls(PAIR, rounds=2, **forked())
    state = after_fork(site, 0.5, 4.0)
    [(state, ledger)] = federate(site.plan, Silent(on(site, site.plan)), state)
    assert state.memory["fedfmc"]["anchor/w"].item() == state.params["w"].item() == 2.25
    assert ledger.reports["fedfmc"] == {"merged": [1, 1], "heard": 0}
    assert ledger.failed.keys() == {"a", "b"}


def test_what_is_asked_and_when() -> None:
    site = bowls(PAIR, rounds=3, **forked())
    engine = Recording(on(site, site.plan))
    list(federate(site.plan, engine, start(site.plan, site.params())))
    phases = [job.phase for job in engine.jobs if job.round > 0]
    assert phases == ["ifca"] * 2 + ["fedfmc"] * 2 + ["fit"] * 4
    assert all(isinstance(reply, Reply) for reply in engine.replies)
    assert FedFMC(fork=1).asks_in == {"ifca": frozenset({0, 1}), "fedfmc": frozenset({1})}
    told = dict(consent_to(site, "a", ["a", "b"]).lines)["not hidden"]
    assert "least loss" in told and "squared gradient" in told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (forked() | {"rounds": 1}, "fork = 1 needs 2 rounds at least, and the plan has 1"),
        (forked(fork=0), "fork must be at least 1"),
        (forked(pull=-1.0), "pull must be at least 0"),
        (forked(floor=0.0), "floor must be positive"),
        (forked(clusters=0), "clusters and draws must be at least 1"),
        ({"algorithms": ["fedfmc", "q_ffl"], "rounds": 9}, "put it last in algorithms"),
        (forked() | {"personal": ["*.bias"]}, "leave"),
        (
            forked() | {"local": {"correction": "scaffold"}, "server": "scaffold"},
            "fedfmc has several",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**changes)


def test_a_value_is_looked_at_by_the_part_that_takes_it() -> None:
    with pytest.raises(ValueError, match="spread must be positive"):
        FedFMC(spread=-1.0)
