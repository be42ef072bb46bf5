"""Merges by the Gram matrices of layers' inputs."""

from pathlib import Path

import pytest
import torch
from rounds import Recording, Tampering, distance, on, points_plan, run

from fedpeft import PlanError
from fedpeft.algorithms.reg_mean import PHASE, _check, merge_by_inputs
from fedpeft.codecs.dense import Dense
from fedpeft.core.conversation import Message
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Reply
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.payloads import decode_sent, encode_answer


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
    ("lie", "words"),
    [
        # A merge with 2.2222 off the diagonal is 50 000 times as long as what anybody trained.
        (torch.eye(8) + 2.2222 * (torch.eye(8).roll(4, 0)), "is no sum of"),
        (-torch.eye(8), "is no sum of"),
        (torch.eye(8).roll(1, 0), "is no sum of"),
        (torch.eye(8) * 1e30, "norm_factor"),
    ],
)
def test_a_false_gram_matrix_costs_its_client_alone(
    points: Site, lie: torch.Tensor, words: str
) -> None:
    plan = points_plan(algorithms=["reg_mean"], rounds=1)
    site, seen = open_site(plan), []
    false = encode_answer(Message({PHASE: {"head.weight": lie}}), Dense())

    def second(reply: Reply | Failure) -> Reply | Failure:
        seen.append(reply.client)
        liar = min(seen)
        return Reply(liar, false) if seen.count(liar) > 1 and reply.client == liar else reply

    engine = Tampering(on(site, plan), dict.fromkeys(site.data.clients, second))
    [(state, ledger)] = federate(plan, engine, start(plan, site.params()))
    assert len(ledger.weights) == 4 and ledger.note.count("did not answer all") == 1
    assert min(seen) in ledger.note and words in ledger.note
    assert distance(state.params, start(plan, site.params()).params) < 100


def test_rounded_gram_matrices_of_few_inputs_are_taken() -> None:
    draws = torch.Generator().manual_seed(4)
    for rows, scale in ((1, 1e-24), (1, 1.0), (3, 1e3), (300, 1.0)):
        x = torch.randn(rows, 200, generator=draws, dtype=torch.float64).exp() * scale
        gram = (x.T @ x / rows).float()
        _check("someone", Message({PHASE: {"a.weight": (gram + gram.T) / 2}}))


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
