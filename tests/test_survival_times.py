"""Losses and concordance of censored times: against lifelines and by hand.

Numbers of lifelines are of 0.30.3: CoxPHFitter (Efron's ties) and utils.concordance_index.
"""

from math import log

import pytest
import torch
from torch import Tensor

from fedpeft.tasks.survival_times import concordance, cox_losses, expected_times, hazard_losses

X = torch.tensor(
    [[0.5, 1.2], [-0.3, 0.4], [1.1, -0.7], [0.2, 0.9],
     [-1.0, -0.2], [0.8, 0.1], [-0.6, 1.5], [0.0, -1.1]],
    dtype=torch.float64,
)  # fmt: skip
TIME = torch.tensor([2.0, 2, 3, 5, 5, 5, 7, 8], dtype=torch.float64)
EVENT = torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 0])
ALL = torch.ones(8)
FITTED = torch.tensor([-0.2672483180968089, 0.5511253138930984], dtype=torch.float64)
"""lifelines' coefficients of X, TIME and EVENT."""


def test_the_partial_likelihood_is_lifelines() -> None:
    """Its log likelihood, and its coefficients are where the gradient is zero."""
    weight = FITTED.clone().requires_grad_()
    total = cox_losses(X @ weight, TIME, EVENT, ALL).sum()
    assert float(total.detach()) == pytest.approx(6.8871981805220415, abs=1e-9)
    [gradient] = torch.autograd.grad(total, [weight])
    assert gradient.abs().max() < 1e-4  # it stops near there


def test_two_tied_events_by_hand() -> None:
    """Three at risk with exp(η) = 2, 3, 5, of whom the first two die at once: the second of them
    sees half of both gone."""
    scores = torch.tensor([log(2), log(3), log(5)])
    losses = cox_losses(scores, torch.tensor([1.0, 1, 4]), torch.tensor([1.0, 1, 0]), torch.ones(3))
    assert losses.tolist() == pytest.approx([log(10 / 2), log(7.5 / 3), 0])


def test_rows_that_fill_a_batch_up_change_no_loss_and_no_gradient() -> None:
    filled = torch.arange(8).repeat(2)[:11]  # the first three once more, an event that is tied too
    mask = (torch.arange(11) < 8).float()

    def run(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        weight = FITTED.clone().requires_grad_()
        losses = cox_losses(X[rows] @ weight, TIME[rows], EVENT[rows], mask) * mask
        [gradient] = torch.autograd.grad(losses.sum() / mask.sum(), [weight])
        return losses.detach(), gradient

    plain, padded = run(torch.arange(8), ALL), run(filled, mask)
    torch.testing.assert_close(padded[0][:8], plain[0])
    torch.testing.assert_close(padded[1], plain[1])
    assert padded[0].isfinite().all()


def test_no_event_teaches_nothing_and_large_scores_stay_finite() -> None:
    nobody = cox_losses(torch.randn(4), torch.arange(4.0), torch.zeros(4), torch.ones(4))
    assert nobody.tolist() == [0, 0, 0, 0]
    far = cox_losses(torch.tensor([500.0, -500]), torch.tensor([2.0, 1]), torch.ones(2), ALL[:2])
    assert far.tolist() == [0, 1000]


def test_pieces_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cox_losses(X @ FITTED, TIME, EVENT, ALL)
    pairs = concordance(X[:, 0], TIME, EVENT, ALL)
    monkeypatch.setattr("fedpeft.tasks.survival_times.PAIRS", 20)
    assert torch.equal(cox_losses(X @ FITTED, TIME, EVENT, ALL), whole)
    assert torch.equal(concordance(X[:, 0], TIME, EVENT, ALL).totals, pairs.totals)


def test_concordance_is_lifelines_with_ties_and_censoring() -> None:
    risk = torch.tensor([3.0, 1, 2, 2, 0.5, 2, 1, 1])
    found = concordance(risk, TIME, EVENT, ALL)
    assert (float(found.totals.sum()), float(found.weights.sum())) == (11, 19)
    lifelines = 0.5789473684210527
    assert lifelines == pytest.approx(11 / 19, abs=1e-12)


@pytest.mark.parametrize(
    ("times", "events", "risks", "pairs"),
    [
        ([1, 2], [1, 0], [5, 3], (1, 1)),
        ([1, 2], [0, 1], [5, 3], (0, 0)),  # the earlier one was only seen until then
        ([1, 2], [1, 1], [3, 3], (0.5, 1)),
        ([2, 2], [1, 1], [5, 3], (0, 0)),  # both at once
        ([2, 2], [1, 0], [3, 5], (0, 1)),  # the censored one is taken to live longer
        ([], [], [], (0, 0)),
    ],
)
def test_which_pairs_count(
    times: list[float], events: list[float], risks: list[float], pairs: tuple[float, float]
) -> None:
    risk, time, event = (torch.tensor(x, dtype=torch.float32) for x in (risks, times, events))
    found = concordance(risk, time, event, torch.ones(len(times)))
    assert (float(found.totals.sum()), float(found.weights.sum())) == pairs


def test_padded_rows_make_no_pairs() -> None:
    mask = torch.tensor([1.0, 1, 0])
    time, event = torch.tensor([1.0, 3, 2]), torch.tensor([1.0, 1, 1])
    found = concordance(torch.tensor([3.0, 1, 9]), time, event, mask)
    assert (float(found.totals.sum()), float(found.weights.sum())) == (1, 1)


def test_hazards_by_hand() -> None:
    """Intervals 0-10, 10-20 and 20-40, each with the hazard 1/4: ln 4/3 for one survived."""
    cuts, logits = torch.tensor([10.0, 20, 40]), torch.full((7, 3), log(1 / 3))
    survived, came = log(4 / 3), log(4)
    wanted = {
        (12, 1): survived + came,
        (10, 1): survived + came,  # an interval begins with its lower end
        (40, 1): 3 * survived,  # after the last cut
        (14, 0): survived,
        (15, 0): 2 * survived,  # it has seen the middle of the second
        (4, 0): 0,
        (99, 0): 3 * survived,
    }
    time, event = (torch.tensor([float(key[k]) for key in wanted]) for k in (0, 1))
    losses = hazard_losses(logits, time, event, cuts)
    assert losses.tolist() == pytest.approx(list(wanted.values()), abs=1e-6)


def test_the_expected_time_is_the_area_below_the_curve() -> None:
    """Survival 1, 1/2 and 1/8 at 0, 10 and 30: trapezoids of 7.5 and 6.25."""
    logits = torch.tensor([[0.0, log(3)]])
    assert expected_times(logits, torch.tensor([10.0, 30])).item() == pytest.approx(13.75)
