"""Merges by the Gram matrices of layers' inputs."""

from pathlib import Path

import pytest
import torch
from rounds import Recording, distance, on, points_plan, run

from fedpeft import PlanError
from fedpeft.algorithms.reg_mean import PHASE, merge_by_inputs
from fedpeft.codecs.dense import Dense
from fedpeft.core.tensors import equal
from fedpeft.core.types import Reply
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.payloads import decode_sent


def test_a_merge_by_hand() -> None:
    """(1·1 + 3·3) / (1 + 3) = 2.5, and what is no weight goes to its mean."""
    changes = [{"a.weight": torch.tensor([[x]]), "b": torch.tensor(x)} for x in (1.0, 3.0)]
    grams = [{"a.weight": torch.tensor([[x]])} for x in (1.0, 3.0)]
    merged = merge_by_inputs(changes, grams, [1.0, 1.0], 0.9)
    assert merged["a.weight"].item() == pytest.approx(2.5) and merged["b"].item() == 2
    weighed = merge_by_inputs(changes, grams, [3.0, 1.0], 0.9)
    assert weighed["a.weight"].item() == pytest.approx(2)


def test_it_is_the_regression_on_everybodys_inputs() -> None:
    """min over W of Σ ‖X_k·Wᵀ − X_k·W_kᵀ‖², against torch.linalg.lstsq on all rows."""
    draws = torch.Generator().manual_seed(2)
    inputs = [torch.randn(30, 4, generator=draws, dtype=torch.float64) for _ in range(3)]
    weights = [torch.randn(2, 4, generator=draws, dtype=torch.float64) for _ in range(3)]
    merged = merge_by_inputs(
        [{"a.weight": w} for w in weights], [{"a.weight": x.T @ x / 30} for x in inputs], [1] * 3, 1
    )["a.weight"]
    outputs = torch.cat([x @ w.T for x, w in zip(inputs, weights, strict=True)])
    wanted = torch.linalg.lstsq(torch.cat(inputs), outputs).solution.T
    torch.testing.assert_close(merged, wanted, atol=1e-5, rtol=1e-5)


def test_equal_inputs_or_none_give_the_mean() -> None:
    changes = [{"a.weight": torch.full((2, 3), x)} for x in (1.0, 5.0)]
    for gram in (torch.eye(3), torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 0.0, 2.0]))):
        merged = merge_by_inputs(changes, [{"a.weight": gram}] * 2, [1.0, 3.0], 0.9)
        torch.testing.assert_close(merged["a.weight"], torch.full((2, 3), 4.0))


def test_a_client_tells_of_its_own_inputs(points: Site) -> None:
    plan = points_plan(algorithms=["reg_mean"], rounds=1, method="full", cohort=1)
    site = open_site(plan)
    engine = Recording(on(site, plan))
    [(_, ledger)] = federate(plan, engine, start(plan, site.params()))
    answers = [reply for reply in engine.replies if isinstance(reply, Reply)]
    assert not ledger.failed and len(answers) == 2
    [client] = ledger.weights
    told = decode_sent(answers[1].payload, Dense(), None).tensors[PHASE]
    rows = torch.cat([b["point"][b["mask"] > 0] for b in site.data.training(client)])
    assert set(told) == {"head.weight"}
    torch.testing.assert_close(told["head.weight"], rows.T @ rows / len(rows))


def test_it_moves_elsewhere_than_the_mean(points: Site, tmp_path: Path) -> None:
    plan, plain = (points_plan(algorithms=a, rounds=1) for a in (["reg_mean"], []))
    [(one, _)] = run(points, plan, Folder(tmp_path / "one"))
    [(other, _)] = run(points, plain, Folder(tmp_path / "other"))
    assert 1e-4 < distance(one.params, other.params) < 1
    assert equal({"b": one.params["head.bias"]}, {"b": other.params["head.bias"]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregator": "median"}, "past what Median keeps out"),
        ({"algorithms": [{"name": "reg_mean", "share": 1.5}]}, "share must be in"),
    ],
)
def test_what_does_not_fit(changes: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**{"algorithms": ["reg_mean"], **changes})
