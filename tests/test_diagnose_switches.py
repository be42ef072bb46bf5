"""Diagnoses of plans that merge low-rank factors or do more than average, and what cannot be
diagnosed."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import last, points_plan, run
from running import run as executed
from test_ranks import PLAN, Losses

from fedpeft.compute.objective import Objective
from fedpeft.compute.scores import score_batches
from fedpeft.core.tensors import equal
from fedpeft.errors import PlanError
from fedpeft.oneshot.diagnose import Budget, _smoothness, diagnose
from fedpeft.oneshot.trajectories import Way, _alone, both_ways, check_comparable
from fedpeft.oneshot.weight_change import multiply_factors
from fedpeft.plan.reading import read_plan
from fedpeft.registry import Code
from fedpeft.rounds.site import Site, open_site
from fedpeft.runs.folder import create


def low_rank(**changes: object) -> Site:
    plan = {key: value for key, value in PLAN.items() if key != "ranks"}
    return open_site(read_plan({**plan, **changes}))


def test_smoothness_is_that_of_the_model_which_holds_what_was_merged() -> None:
    """After one round FLoRA and FedEx are the same weights, in other factors; both secants are
    those of the weights."""
    found = []
    for name in ("flora", "fedex"):
        site = low_rank(aggregator=name)
        clients = site.data.clients[:3]
        way = both_ways(site, clients, 2)["rounds"]
        first = Way(way.states[:2])
        found.append(_smoothness(site, clients, first, first))
        task: Any = Losses(site.task)
        site.model.eval()
        (batch,) = islice(site.data.batches(clients[0], 8, 1, torch.Generator().manual_seed(0)), 1)
        whole = multiply_factors(site.model, way.states[-1])
        held = {n: torch.zeros_like(x) for n, x in way.states[0].items() if ".lora_B." in n}
        loss = Objective(site.model, site.task, held=held)(whole, batch)
        evaluated = next(iter(score_batches(task, site.model, way.states[-1], [batch])))[1]["loss"]
        torch.testing.assert_close(loss, evaluated)
    assert found[0]["of"] == found[1]["of"] == "merged weights"
    assert found[0]["median"] == pytest.approx(found[1]["median"], rel=1e-3)
    plain = low_rank(aggregator="fedit")
    clients = plain.data.clients[:3]
    ways = both_ways(plain, clients, 2)
    assert _smoothness(plain, clients, ways["rounds"], ways["one"])["of"] == "what is trained"


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregator": "hetlora", "ranks": [2, 4, 8]},
        {"aggregator": "flora", "ranks": [2, 4, 8]},
        {"aggregator": "rolora"},
        {"stages": [{"name": "client_dp", "noise_multiplier": 0.1}], "weighting": "uniform"}
        | {"delta": 1e-3, "accountant": "rdp"},
        {"aggregator": "fedit", "head_start": "class_means", "head_rows": "class_counts"},
        {
            "aggregator": "mean",
            "head_start": "class_means",
            "head_rows": "class_counts",
            "vote": [1.0, 0.5],
        },
    ],
    ids=str,
)
def test_what_helps_one_round_can_be_diagnosed(changes: dict[str, object]) -> None:
    site = low_rank(**changes)
    found = diagnose(site, Budget(rounds=2))
    assert found["smoothness"]["median"] > 0 and 0 <= found["conflict"]["first_round"] < 0.5
    assert found["answer"] in ("yes", "no", "unclear", "nothing learned")
    assert ("clients vote on the merge" in found["distance"]["beyond"]) == ("vote" in changes)


@pytest.mark.parametrize(
    "changes", [{"ranks": [2, 4, 8]}, {"head_start": "class_means"}, {"vote": [1.0, 0.5]}], ids=str
)
def test_all_clients_of_a_plan_go_the_way_of_its_run(changes: dict[str, object]) -> None:
    site = low_rank(aggregator="fedit", cohort=12, **changes)
    way = both_ways(site, site.data.clients, 2)["rounds"]
    assert equal(way.states[-1], last(run(site, site.plan)))


def test_a_run_is_measured_with_what_it_merged(tmp_path: Path) -> None:
    """All its clients go the way that is diagnosed, so that both end in the same weights."""
    site = low_rank(aggregator="flora", cohort=12)
    folder = create(site.plan, tmp_path / "run")
    executed(folder, site)
    found = diagnose(site, Budget(clients=12, rounds=2), run=folder.path, code=Code.of(["parts"]))
    assert found["run"]["update"] == found["update"]["rounds"]


def test_clients_keep_the_ranks_that_they_have_among_all() -> None:
    """The second and the third of ranks 2, 4 and 8."""
    site = low_rank(aggregator="fedit", ranks=[2, 4, 8])
    every = site.data.clients
    alone = _alone(site.plan, every, every[1:3], 2)
    assert [alone.view(client, 0, every[1:3]).rank for client in every[1:3]] == [4, 8]
    assert _alone(low_rank(aggregator="fedit").plan, every, every[1:3], 2).ranks == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"buffer": 2}, "asynchronous"),
        ({"sampler": "sequential_chain", "cohort": 1}, "chain"),
        ({"local": {"restart_schedule": False}}, "restart_schedule"),
        ({"personal": ["*.bias"]}, "personal"),
        ({"local": {"as_published": True}}, "as_published"),
    ],
    ids=str,
)
def test_what_one_round_is_not_the_same_work_of(changes: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        check_comparable(points_plan(**changes))


def test_epochs_are_not_told_of_steps() -> None:
    site = open_site(points_plan(local={"steps": 3}))
    with pytest.raises(PlanError, match=r"local\.steps are other epochs for each client"):
        diagnose(site, Budget(rounds=2))
