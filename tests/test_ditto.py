"""A model of each client's own beside the common one (Ditto)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import distance, last, on, points_plan, run

from fedpeft import PlanError
from fedpeft.core.tensors import equal, take_prefix
from fedpeft.core.types import Division, Examples, State, Table, Tensors
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.evaluation.client_model import client_params
from fedpeft.evaluation.measure import held_out
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.local.ditto import Ditto
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site, site_of
from fedpeft.storage.client_memory import Folder

PLAIN = {"name": "sgd", "momentum": 0.0, "nesterov": False}
DESCENT = {"lr": 0.05, "batch_size": 8}


def ditto(mu: float, **inner: Any) -> dict[str, Any]:
    return {"local": {"name": "ditto", "mu": mu, "inner": {"name": "descent", **DESCENT, **inner}}}


def bowls(mu: float, rounds: int, lr: float = 0.1) -> Site:
    """Clients a and b with one example each: the loss is ½·(w − x)² with x = 0 and 4, from
    w = 1."""
    inner = {"name": "descent", "lr": lr, "optimizer": PLAIN}
    plan = read_plan(
        {
            "task": "parts:Bowls",
            "method": "full",
            "local": {"name": "ditto", "mu": mu, "inner": inner},
            "cohort": 2,
            "rounds": rounds,
        }
    )
    table = Table({"point": torch.tensor([[0.0], [4.0]]), "curvature": torch.ones(2)})
    division = Division({"a": torch.tensor([0]), "b": torch.tensor([1])})
    return site_of(plan, Examples(table, table, ()), division)


def own(site: Site, state: State, store: Folder) -> list[float]:
    return [float(client_params(site, state, store, name)["w"]) for name in site.data.clients]


def test_two_rounds_by_hand(tmp_path: Path) -> None:
    """η = 0.1 and λ = 0.5. Round 0: v = 1 − 0.1·1 = 0.9 and 1 + 0.1·3 = 1.3, and w = 1.1.
    Round 1: v_a = 0.9 − 0.1·(0.9 + 0.5·(0.9 − 1.1)) = 0.82 and
    v_b = 1.3 − 0.1·(1.3 − 4 + 0.5·(1.3 − 1.1)) = 1.56; w = 1.1 − 0.1·(1.1 − 2) = 1.19."""
    site, store = bowls(0.5, rounds=2), Folder(tmp_path)
    rounds = federate(site.plan, on(site, site.plan, store))
    first, _ = next(rounds)
    assert own(site, first, store) == pytest.approx([0.9, 1.3], rel=1e-6)
    second, _ = next(rounds)
    assert own(site, second, store) == pytest.approx([0.82, 1.56], rel=1e-6)
    assert float(second.params["w"]) == pytest.approx(1.19, rel=1e-6)


def test_the_common_model_pulls(tmp_path: Path) -> None:
    """At rest of a loss and the pull v − x + λ·(v − w) = 0 with w = 2: v = (x + 2λ) / (1 + λ)."""
    for mu in (0.0, 0.5, 3.0):
        site, store = bowls(mu, rounds=45, lr=0.3), Folder(tmp_path / str(mu))
        state = list(federate(site.plan, on(site, site.plan, store)))[-1][0]
        want = [2 * mu / (1 + mu), (4 + 2 * mu) / (1 + mu)]
        assert own(site, state, store) == pytest.approx(want, abs=1e-4)


def test_an_own_model_that_diverges_is_a_named_failure(tmp_path: Path) -> None:
    site = bowls(1e38, rounds=4)
    ledgers = [ledger for _, ledger in run(site, site.plan, Folder(tmp_path))]
    assert any("diverged" in why for ledger in ledgers for why in ledger.failed.values())


@pytest.mark.parametrize("inner", [{}, {"correction": {"name": "prox", "mu": 1.0}}], ids=str)
def test_the_common_model_goes_its_way_to_the_bit(
    points: Site, tmp_path: Path, inner: dict[str, Any]
) -> None:
    plain = run(points, points_plan(local={**DESCENT, **inner}))
    beside = run(points, points_plan(**ditto(0.3, **inner)), Folder(tmp_path))
    for (one, mine), (other, theirs) in zip(beside, plain, strict=True):
        assert equal(one.params, other.params)
        assert mine.up == theirs.up and mine.down == theirs.down


def test_without_a_pull_each_client_trains_alone(points: Site, tmp_path: Path) -> None:
    """λ = 0 is training without federation: what personal = ["*"] does, but for the rounding of a
    change that it adds."""
    plan, alone = (
        points_plan(cohort=24, **ditto(0.0)),
        points_plan(cohort=24, local=DESCENT, personal=["*"]),
    )
    ends: list[dict[str, Tensors]] = []
    for one in (plan, alone):
        store, here = Folder(tmp_path / one.fingerprint), replace(points, plan=one)
        state = list(federate(one, on(here, one, store), start(one, points.params())))[-1][0]
        clients = points.data.clients
        ends.append({name: client_params(here, state, store, name) for name in clients})
    assert all(distance(ends[0][name], ends[1][name]) < 1e-6 for name in points.data.clients)


def test_a_client_that_was_never_drawn_has_the_common_model(points: Site, tmp_path: Path) -> None:
    plan, store = points_plan(cohort=2, rounds=1, **ditto(0.1)), Folder(tmp_path)
    here = replace(points, plan=plan)
    [(state, ledger)] = federate(plan, on(points, plan, store), start(plan, points.params()))
    for name in points.data.clients:
        mine = client_params(here, state, store, name)
        assert equal(mine, state.flat) == (name not in ledger.weights)
    assert held_out(here, state, store) == held_out(points, state, store)


def test_own_examples_judge_own_models(tmp_path: Path) -> None:
    partition = {"name": "dirichlet", "clients": 12, "alpha": 0.1, "held_out": 0.2}
    many = {"partition": partition, "cohort": 12, "rounds": 8}
    found = []
    for local in (ditto(0.0, lr=0.5), {"local": {**DESCENT, "lr": 0.5}}):
        plan = points_plan(**many, **local)
        site, store = open_site(plan), Folder(tmp_path / plan.fingerprint)
        state = list(federate(plan, on(site, plan, store), start(plan, site.params())))[-1][0]
        one = own_held_out(site, state, store)
        assert one is not None
        found.append(one["metrics"]["accuracy"]["each"])
    assert found[0].keys() == found[1].keys() and found[0] != found[1]


@pytest.mark.parametrize("split", [1, 2])
def test_a_resume_is_not_noticed(points: Site, tmp_path: Path, split: int) -> None:
    plan = points_plan(cohort=24, rounds=3, **ditto(0.3))
    ends = []
    for stops in ([3], [split, 3 - split]):
        store, state = Folder(tmp_path / str(stops)), start(plan, points.params())
        for count in stops:
            rounds = federate(plan, on(points, plan, store), state)
            state = [next(rounds)[0] for _ in range(count)][-1]
        ends.append(store.load(points.data.clients[0], state.accepted[points.data.clients[0]]))
    assert ends[0] and equal(*ends)


def test_one_by_one_and_together(points: Site, tmp_path: Path) -> None:
    plan = points_plan(cohort=6, rounds=3, **ditto(0.3))
    stores = [Folder(tmp_path / way) for way in ("alone", "together")]
    engine = Cohort(replace(points, plan=plan), stores[1])
    one = run(points, plan, stores[0])
    other = list(federate(plan, engine, start(plan, points.params())))
    assert not engine.alone
    assert distance(last(other), last(one)) <= 1e-4
    for client, at in one[-1][0].accepted.items():
        theirs, mine = (take_prefix("local/own", store.load(client, at)) for store in stores)
        assert mine and distance(mine, theirs) <= 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (ditto(-1.0), "mu must be at least 0"),
        (ditto(0.1, restart_schedule=False), 'set local.inner = "descent"'),
        (ditto(0.1, terms=["moon"]), "terms that compare with the previous model"),
        ({"local": {"name": "ditto", "inner": "dp_sgd"}}, 'set local.inner = "descent"'),
        ({**ditto(0.1), "personal": ["*.bias"]}, "choose one"),
        (
            {
                **ditto(0.1),
                "stages": [{"name": "client_dp", "noise_multiplier": 1.0}],
                "weighting": "uniform",
                "delta": 1e-3,
            },
            "leave Ditto out of a plan with client-level privacy",
        ),
        ({**ditto(0.1), "routing": ["alternate"]}, "choose one"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**changes)


def test_augments_and_terms_of_what_it_wraps_are_seen() -> None:
    """With augments, features of the frozen beginning are not kept, and a term that couples
    examples goes with no micro-batches."""
    plan = points_plan(**ditto(0.1, augments=["mixup"], terms=["distillation"]))
    assert plan.local.augments and plan.local.terms  # type: ignore[attr-defined]
    assert plan.local.augments == plan.local.inner.augments  # type: ignore[attr-defined]


def test_a_plan_reads_back() -> None:
    plan = points_plan(**ditto(0.25))
    assert read_plan(plan.toml()) == plan and isinstance(plan.local, Ditto)
