"""Metrics of counts: by hand, and against scikit-learn on the same examples."""

from math import exp, log, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor

from fedpeft.compute.tally import (
    BINS,
    CONFIDENT,
    SCORES,
    Counts,
    Curve,
    counts_of,
    log_odds,
    tally_batch,
)
from fedpeft.core.types import Weighted
from fedpeft.errors import PlanError
from fedpeft.metrics.intervals import bootstrap, wilson
from fedpeft.metrics.ranking import auroc_of, delong_deviation
from fedpeft.metrics.thresholds import Sensitivity
from fedpeft.plan.reading import read_plan
from fedpeft.registry import build, names

READS = (SCORES, CONFIDENT)


def drawn(classes: int, n: int = 400, sharp: float = 1.5) -> tuple[Tensor, Tensor]:
    """Logits of a model that knows something, and labels."""
    draws = torch.Generator().manual_seed(classes)
    label = torch.randint(classes, (n,), generator=draws)
    logits = torch.randn(n, classes, generator=draws)
    logits[torch.arange(n), label] += sharp
    return logits, label


def counted(logits: Tensor, label: Tensor, exact: bool) -> Counts:
    classes = tuple(f"class {k}" for k in range(logits.shape[1]))
    tally = tally_batch(logits, label, torch.ones(len(label)), READS)
    scores = [(log_odds(logits), label)] if exact else []
    return counts_of(tally, {}, classes, scores)


def value(name: str, counts: Counts, **settings: Any) -> float:
    found = build("metric", {"name": name, **settings}).measure(counts)
    return float(next(iter(found.values())))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_ranks_are_scikit_learns_and_bins_come_near(classes: int) -> None:
    logits, label = drawn(classes)
    p = logits.double().softmax(-1).numpy()
    truth = np.eye(classes)[label.numpy()]
    some = slice(1, None) if classes == 2 else slice(None)
    wanted = {
        "auroc": reference.roc_auc_score(truth[:, some], p[:, some], average="macro"),
        "average_precision": reference.average_precision_score(truth[:, some], p[:, some]),
    }
    exact, binned = (counted(logits, label, exact) for exact in (True, False))
    for name, want in wanted.items():
        assert value(name, exact) == pytest.approx(want, abs=1e-12)
        assert value(name, binned) == pytest.approx(want, abs=0.01)


@pytest.mark.parametrize("sharp", [0.0, 5.0, 12.0])
def test_bins_tell_scores_of_a_confident_model_apart(sharp: float) -> None:
    """Probabilities near 0 and 1 would all lie in two bins of equal width."""
    logits, label = drawn(3, n=2000, sharp=sharp)
    exact, binned = (value("auroc", counted(logits, label, exact)) for exact in (True, False))
    assert binned == pytest.approx(exact, abs=0.003)


def test_equal_scores_share_their_rank() -> None:
    """Positives 0, 1, 1 and negatives 0, 1: of six pairs two are won, three tied, one lost."""
    curve = Curve(torch.tensor([0.0, 1.0]), torch.tensor([1, 2]), torch.tensor([1, 1]))
    assert auroc_of(curve) == pytest.approx((2 + 3 / 2) / 6)


def test_delongs_deviation_is_that_of_its_paper() -> None:
    """By the structural components of each example, equations 3 to 5, one by one."""
    draws = np.random.default_rng(0)
    positive, negative = draws.normal(1, 1, 23).round(1), draws.normal(0, 1, 31).round(1)
    wins = (positive[:, None] > negative).astype(float) + (positive[:, None] == negative) / 2
    want = sqrt(wins.mean(1).var(ddof=1) / 23 + wins.mean(0).var(ddof=1) / 31)
    scores = np.unique(np.concatenate([positive, negative]))
    wins_of, losses_of = (
        torch.tensor([(side == s).sum() for s in scores]) for side in (positive, negative)
    )
    curve = Curve(torch.from_numpy(scores), wins_of, losses_of)
    assert delong_deviation(curve) == pytest.approx(want, rel=1e-12)
    assert auroc_of(curve) == pytest.approx(wins.mean())


def test_an_aurocs_interval_covers_it_as_often_as_it_says() -> None:
    """Of normal scores one apart the AUROC is Φ(1 / √2) = 0.760."""
    draws, covered = torch.Generator().manual_seed(1), 0
    label = torch.arange(200) % 2
    for _ in range(300):
        z = torch.randn(200, generator=draws, dtype=torch.float64) + label
        logits = torch.stack([torch.zeros_like(z), z], 1)
        low, high = build("metric", "auroc").interval(counted(logits, label, True))
        covered += low <= 0.76025 <= high
    assert 0.91 < covered / 300 < 0.985


@pytest.mark.parametrize("classes", [2, 4])
def test_what_comes_of_a_confusion_matrix_is_scikit_learns(classes: int) -> None:
    logits, label = drawn(classes, n=150)
    guess, truth = logits.argmax(-1).numpy(), label.numpy()
    counts = counted(logits, label, False)
    assert counts.confusion is not None
    assert counts.confusion.tolist() == reference.confusion_matrix(truth, guess).tolist()
    balanced = reference.balanced_accuracy_score(truth, guess)
    assert value("balanced_accuracy", counts) == pytest.approx(balanced)
    assert value("macro_f1", counts) == pytest.approx(
        reference.f1_score(truth, guess, average="macro")
    )
    assert value("accuracy", counts) == pytest.approx(reference.accuracy_score(truth, guess))
    assert value("matthews", counts) == pytest.approx(reference.matthews_corrcoef(truth, guess))
    each = build("metric", "class_f1").measure(counts)
    assert list(each) == [f"f1 of class {k}" for k in range(classes)]
    assert list(each.values()) == pytest.approx(
        reference.f1_score(truth, guess, average=None).tolist()
    )


def test_a_class_that_nobody_has_is_in_no_mean() -> None:
    """Truth 0, 0, 1 taken for 0, 1, 1; the third class is not there."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 2.0, -1.0], [0.0, 2.0, -1.0]])
    counts = counted(logits, torch.tensor([0, 0, 1]), False)
    assert value("balanced_accuracy", counts) == pytest.approx((1 / 2 + 1) / 2)
    assert value("macro_f1", counts) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert value("matthews", counts) == pytest.approx(0.5)  # (1·1 − 1·0) / √(2·1·2·1)


def test_where_all_are_taken_for_one_class_nothing_correlates() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    for truth in ([0, 0, 1], [0, 0, 0]):
        assert value("matthews", counted(logits, torch.tensor(truth), False)) == 0


def test_sensitivity_and_specificity_are_shares_of_the_second_class() -> None:
    logits, label = drawn(2, n=300)
    p = logits.double().softmax(-1)[:, 1]
    for threshold in (0.5, 0.2):
        called = p >= threshold
        want = (
            float(called[label == 1].double().mean()),
            float((~called)[label == 0].double().mean()),
        )
        for exact, slack in ((True, 1e-12), (False, 0.03)):
            counts = counted(logits, label, exact)
            got = [value(x, counts, threshold=threshold) for x in ("sensitivity", "specificity")]
            assert got == pytest.approx(list(want), abs=slack)
    binned = counted(logits, label, False)
    right = float((p[label == 1] >= 0.5).double().mean())
    assert value("sensitivity", binned) == pytest.approx(right, abs=1e-12), "0.5 is an edge"
    assert list(Sensitivity(0.2).measure(binned)) == ["sensitivity at 0.2"]
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        Sensitivity(1.0)


def test_the_calibration_error_is_the_papers_sum() -> None:
    logits, label = drawn(3, n=500, sharp=0.5)
    p, guess = logits.double().softmax(-1).max(-1)
    right, want = (guess == label).double(), 0.0
    for k in range(15):
        inside = (p >= k / 15) & (p < (k + 1) / 15)
        if inside.any():
            want += float(inside.double().mean() * (right[inside].mean() - p[inside].mean()).abs())
    assert value("ece", counted(logits, label, False)) == pytest.approx(want, abs=1e-12)


def test_perplexity_is_exp_of_the_mean_loss() -> None:
    counts = Counts((), 4, {"loss": Weighted(6.0, 4.0)})
    assert value("perplexity", counts) == pytest.approx(exp(1.5))
    assert value("perplexity", Counts((), 1, {"loss": Weighted(1e6, 1.0)})) == float("inf")


def test_wilsons_interval_is_that_of_the_books() -> None:
    """8 of 10: 0.4902 to 0.9433; of no success it begins at 0 and still has a width."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = wilson(0, 10) or (1.0, 0.0)
    assert (low, high) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) is None


def test_a_bootstrap_of_accuracy_is_as_wide_as_the_binomial_distribution() -> None:
    confusion = torch.tensor([[120, 30], [20, 130]])

    def accuracy(matrix: Tensor) -> Tensor:
        return matrix.diagonal(dim1=-2, dim2=-1).sum(-1) / matrix.sum((-2, -1))

    low, high = bootstrap(confusion, accuracy) or (0.0, 0.0)
    half = 1.96 * sqrt(250 / 300 * 50 / 300 / 300)
    assert (low, high) == pytest.approx((250 / 300 - half, 250 / 300 + half), abs=0.01)
    assert bootstrap(confusion, accuracy) == (low, high), "the same counts, the same draws"
    assert bootstrap(torch.tensor([[1, 0], [0, 0]]), accuracy) is None


def test_log_odds_of_a_sure_model_are_finite_and_in_order() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 60.0], [0.0, 61.0]], dtype=torch.float64)
    odds = log_odds(logits)
    assert odds[:, 1].tolist() == pytest.approx([1.0, 60.0, 61.0])
    assert odds[:, 0].tolist() == pytest.approx([-1.0, -60.0, -61.0])
    three = torch.tensor([[1.0, 2.0, 3.0]])
    p = three.double().softmax(-1)[0].tolist()
    assert log_odds(three)[0].tolist() == pytest.approx([log(x / (1 - x)) for x in p])
    with pytest.raises(ArithmeticError, match="infinite or no numbers"):
        log_odds(torch.tensor([[float("nan"), 0.0]]))


def test_rows_that_fill_up_a_batch_are_not_counted() -> None:
    logits, label = drawn(3, n=10)
    mask = torch.tensor([1.0] * 7 + [0.0] * 3)
    padded = tally_batch(logits, label, mask, READS)
    whole = tally_batch(logits[:7], label[:7], torch.ones(7), READS)
    assert all(torch.equal(padded[name], whole[name]) for name in whole)
    assert int(whole[SCORES].sum()) == 7 * 3 and whole[SCORES].shape == (3, 2, BINS)


@pytest.mark.parametrize("name", sorted(names("metric")))
def test_every_metric_lives_with_one_example_and_one_class(name: str) -> None:
    """Where a metric has no value it is no number, and where it has no interval it says so."""
    metric = build("metric", name)
    one = counted(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), False)
    for found in metric.measure(one).values():
        assert isinstance(found, float)
    if hasattr(metric, "interval"):
        metric.interval(one)
        assert metric.interval(Counts((), 3)) is None
    assert metric.measure(Counts((), 3)) == {}
    assert set(metric.reads) <= set(READS)


def test_an_auroc_of_one_class_has_no_value() -> None:
    one = counted(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0]), True)
    assert np.isnan(value("auroc", one)) and build("metric", "auroc").interval(one) is None


def test_a_metric_of_classes_is_refused_where_there_are_none() -> None:
    plan = {"task": "causal-lm", "data": "digits", "metrics": ["auroc"]}
    with pytest.raises(PlanError, match=r"Auroc is of classes.*leave it out"):
        read_plan(plan)
    assert read_plan({**plan, "metrics": ["perplexity"]}).metrics
