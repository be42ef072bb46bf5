"""Which plans may ask owners how a model does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import points_plan
from test_own_held_out import opened
from test_owner_evaluation import POINTS, told

from fedpeft.core.types import Examples, State, Table
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import PlanError
from fedpeft.partitions.column import Column
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import ask_owners, federate, start
from fedpeft.rounds.site import open_site
from fedpeft.storage.client_memory import Folder

NOISE = {"noise_multiplier": 1.0}
HIDDEN: dict[str, dict[str, Any]] = {
    "client_dp": {"stages": [{"name": "client_dp", **NOISE}], "privacy": {"delta": 1e-3}},
    "local_dp": {"stages": [{"name": "local_dp", **NOISE}], "privacy": {"delta": 1e-3}},
    "dp_sgd": {"local": {"name": "dp_sgd", **NOISE}, "privacy": {"delta": 1e-3}},
    "secure": {"exchange": {"name": "secure", "threshold": 2}},
}


@pytest.mark.parametrize("kind", sorted(HIDDEN))
def test_where_nothing_may_be_told_owners_are_not_asked(kind: str) -> None:
    hidden = {**HIDDEN[kind], "weighting": "uniform"}
    assert points_plan(**{**POINTS, "evaluate_at": ["server"]}, **hidden)
    with pytest.raises(PlanError, match=r'evaluate_at: .* leave "owners" out'):
        points_plan(**POINTS, **hidden)


def test_plans_that_ask_nobody_have_the_fingerprint_that_they_had() -> None:
    plain = read_plan({})
    assert "evaluate_at" not in plain.toml() and "metrics" not in plain.toml()
    assert plain.fingerprint == "c900208b08a8ac86"
    assert read_plan({"evaluate_at": ["server"]}) == plain
    asking = read_plan({"evaluate_at": ["owners", "server"], "metrics": ["auroc"]})
    assert read_plan(asking.toml()) == asking and asking.fingerprint != plain.fingerprint


def test_a_plan_of_no_rounds_must_ask_somebody() -> None:
    with pytest.raises(PlanError, match="rounds must be at least 1, got 0"):
        read_plan({"rounds": 0})
    assert read_plan({"rounds": 0, "evaluate_at": ["owners"]}).rounds == 0
    with pytest.raises(PlanError, match="rounds must be at least 0, got -1"):
        read_plan({"rounds": -1, "evaluate_at": ["owners"]})


def test_several_models_and_steps_without_rounds_are_refused_with_words() -> None:
    with pytest.raises(PlanError, match="owners are sent one model"):
        points_plan(**POINTS, algorithms=["ifca"])
    with pytest.raises(PlanError, match="asynchronous steps have none"):
        points_plan(**POINTS, algorithms=[{"name": "fedbuff", "buffer": 2}])


LOW_RANK = {
    "task": {"name": "parts:ClassedPoints", "network": "hidden"},
    "method": {"name": "lora", "rank": 4, "target": ["first"], "head": "head"},
    "aggregator": "fedit",
    "routing": [{"name": "ranks", "ranks": [2, 4]}],
}
BESIDE: dict[str, dict[str, Any]] = {
    "ranks": LOW_RANK,
    "scaffold": {"local": {"lr": 0.05, "correction": "scaffold"}},
    "ditto": {"local": {"name": "ditto", "mu": 0.1}},
    "vote": {"algorithms": ["vote"]},
    "class means": {"algorithms": ["class_means"]},
    "lossy downlink": {"downlink": "int8", "uplink": "int8"},
    "batch norm": {
        "task": {"name": "parts:ClassedPoints", "network": "convolution"},
        "method": "full",
    },
    "phases": {"phase": [{"until": 1, "set": ["local.lr=0.2"]}]},
    "schedule": {"local": {"lr": {"from": 0.1, "to": 0.01}}},
}


@pytest.mark.parametrize("kind", sorted(BESIDE))
def test_owners_are_asked_beside_other_parts(kind: str, tmp_path: Path) -> None:
    plan = points_plan(**{**POINTS, **BESIDE[kind]})
    site = open_site(plan)
    engine = InProcess(site, Folder(tmp_path))
    rounds = list(federate(plan, engine, start(plan, site.params())))
    for _, ledger in rounds:
        assert told(ledger)["failed"] == {} and told(ledger)["not_asked"] == {}
        assert len(told(ledger)["examples"]) == 4 and not ledger.failed
    after = told(ask_owners(plan, engine, rounds[-1][0]))
    assert after["failed"] == {}, "after the last round too"


def test_what_owners_tell_is_the_same_in_all_rounds() -> None:
    with pytest.raises(PlanError, match="metrics"):
        points_plan(**POINTS, phase=[{"until": 1, "set": ["metrics=['auroc']"]}])


def test_a_task_without_classes_is_measured_by_its_sums() -> None:
    """The loss of the point x with curvature 2 under the parameter 0 is x²: (1 + 9) / 2 and 4."""
    column = {"who": list("aba"), "curvature": torch.full((3,), 2.0)}
    train = Table({"point": torch.zeros(3, 1), **column})
    test = Table({"point": torch.tensor([[1.0], [2.0], [3.0]]), **column})
    plan = points_plan(
        task={"name": "parts:Bowls"},
        method="full",
        evaluate_at=["owners"],
        metrics=["perplexity"],
    )
    site = opened(plan, Column("who"), Examples(train, test, ()))
    report = told(ask_owners(plan, InProcess(site), State(1, {"w": torch.zeros(1)})))
    assert report["metrics"]["loss"]["each"] == {"a": 5.0, "b": 4.0}
    assert report["metrics"]["loss"]["worst_tenth"] == 5.0
    assert report["metrics"]["loss"]["pooled"] == pytest.approx(14 / 3)
    assert report["metrics"]["perplexity"]["pooled"] == pytest.approx(106.3, abs=0.1)
    assert "confusion" not in report
