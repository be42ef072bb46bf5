"""FedASK in whole rounds: B alone goes up, a secure sum is enough for it, and A learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import points_plan, run

from fedpeft import PlanError
from fedpeft.rounds.site import open_site
from fedpeft.storage.client_memory import Folder

ASK: dict[str, Any] = {
    "task": {"name": "parts:Points", "network": "hidden"},
    "method": {"name": "lora", "rank": 4, "target": ["first"], "head": "head"},
    "aggregator": "fedask",
    "weighting": "uniform",
    "cohort": 6,
    "rounds": 2,
}
SECURE = {"exchange": {"name": "secure", "threshold": 4}}


def test_only_b_goes_up_and_a_learns() -> None:
    plan = points_plan(**ASK)
    site = open_site(plan)
    begun = site.params()
    [(first, ledger), (second, _)] = run(site, plan)
    half = points_plan(**{**ASK, "aggregator": "rolora"})  # sends B alone in round 0
    [(_, other), *_] = run(site, half)
    assert abs(ledger.bytes_up - other.bytes_up) < 50
    a, b = (n for n in begun if "lora_" in n)
    assert ledger.aggregation_error == pytest.approx(0, abs=1e-5)
    assert not torch.equal(second.params[a], first.params[a]) and first.params[b].any()
    torch.testing.assert_close(  # an even split has orthogonal factors of equal lengths
        first.params[a] @ first.params[a].T, first.params[b].T @ first.params[b], atol=1e-5, rtol=0
    )


def test_a_secure_sum_is_enough(tmp_path: Path) -> None:
    site = open_site(points_plan(**ASK))
    [*_, (plain, _)] = run(site, points_plan(**ASK))
    [*_, (summed, ledger)] = run(site, points_plan(**ASK, **SECURE), Folder(tmp_path))
    assert not ledger.failed
    for name, x in plain.params.items():
        torch.testing.assert_close(summed.params[name], x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("aggregator", ["fedit", "lora_fair", "ties", "agreeing"])
def test_a_secure_sum_is_not_enough_for_the_others(aggregator: str) -> None:
    with pytest.raises(PlanError, match="secure aggregation shows their"):
        points_plan(**{**ASK, "aggregator": aggregator}, **SECURE)


@pytest.mark.parametrize("aggregator", ["fedask", "lora_fair", "ties", "agreeing"])
def test_the_servers_noise_is_made_for_a_mean(aggregator: str) -> None:
    noise = {"stages": [{"name": "client_dp", "noise_multiplier": 1.0}], "delta": 1e-3}
    with pytest.raises(PlanError, match='Set aggregator = "mean"'):
        points_plan(**{**ASK, "aggregator": aggregator}, **noise)


def test_what_a_client_remembers_of_columns_that_turn() -> None:
    later = {"stages": ["error_feedback"], "uplink": {"name": "topk", "density": 0.5}}
    with pytest.raises(PlanError, match="turns the columns of B"):
        points_plan(**ASK, **later)


@pytest.mark.parametrize("aggregator", ["ties", "agreeing"])
def test_tensors_of_many_ranks_have_no_signs_in_common(aggregator: str) -> None:
    with pytest.raises(PlanError, match="takes tensors of one shape"):
        points_plan(**{**ASK, "aggregator": aggregator}, ranks=[2, 4])
