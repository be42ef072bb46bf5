"""The head's rows, each weighted by the examples of its class."""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from contributions import change, merge, study
from rounds import Recording, Tampering, changed, distance, last, on, points_plan, run

from fedpeft import PlanError
from fedpeft.core.tensors import equal, layout
from fedpeft.core.types import Reply, State, Update
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.oneshot.rejections import ContributionError, Rejection
from fedpeft.oneshot.rules import Rules
from fedpeft.registry import build, names
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.files import load_tensors
from fedpeft.wire.payloads import pack, unpack

ROWS: dict[str, Any] = {"head_rows": "class_counts"}
START = State(
    0, {"head.weight": torch.zeros(3, 2), "head.bias": torch.zeros(3), "body": torch.zeros(2)}
)


def of(client: str, value: float, *counts: int) -> Update:
    delta = {name: torch.full_like(x, value) for name, x in START.params.items()}
    return Update(client, delta, float(sum(counts)), told={"class_counts": list(counts)})


def merged(*updates: Update, **changes: Any) -> Update:
    aggregator = points_plan(**ROWS, **changes).aggregator
    return aggregator(iter(updates), START, lambda client: START.params)


def test_rows_by_hand() -> None:
    """Class 0: (3·1 + 1·5) / 4; class 1: client b alone; class 2: nobody."""
    got = merged(of("a", 1.0, 3, 0, 0), of("b", 5.0, 1, 8, 0))
    assert got.delta["head.weight"].tolist() == [[2.0, 2.0], [5.0, 5.0], [0.0, 0.0]]
    assert got.delta["head.bias"].tolist() == [2.0, 5.0, 0.0]
    # (3·1 + 9·5) / 12, as ever.
    assert got.delta["body"].tolist() == [4.0, 4.0] and got.weight == 12.0


@pytest.mark.parametrize(
    "name", sorted(set(names("aggregator")) & {"mean", "fedit", "flora", "fedex", "hetlora"})
)
def test_in_any_order_next_to_the_same_and_of_one_that_one(name: str) -> None:
    draws = torch.Generator().manual_seed(5)
    updates = [
        Update(
            f"c{k}",
            {n: torch.randn(x.shape, generator=draws) for n, x in START.params.items()},
            9.0,
            told={"class_counts": list(counts)},
        )
        for k, counts in enumerate([(4, 5, 0), (0, 1, 8), (9, 0, 0), (2, 2, 5)])
    ]
    first = merged(*updates, aggregator=name).delta
    for seed in range(3):
        other = merged(*Random(seed).sample(updates, 4), aggregator=name).delta
        for key, x in first.items():
            torch.testing.assert_close(other[key], x, rtol=0, atol=1e-6)
    assert equal(merged(updates[3], aggregator=name).delta, updates[3].delta)


@pytest.fixture(scope="module")
def skewed() -> Site:
    partition = {"name": "dirichlet", "clients": 6, "alpha": 0.1}
    return open_site(points_plan(**ROWS, partition=partition, cohort=6, rounds=2))


def test_one_by_one_and_together(skewed: Site) -> None:
    plan, engine, begun = skewed.plan, Cohort(skewed), skewed.params()
    here, together = run(skewed, plan), list(federate(plan, engine, start(plan, begun)))
    assert not engine.alone
    assert distance(changed(last(together), begun), changed(last(here), begun)) <= 1e-4


def test_under_skew_the_rows_are_other_ones_and_a_client_tells_what_it_has(skewed: Site) -> None:
    plan, data = skewed.plan, skewed.data
    engine, train = Recording(on(skewed, plan)), getattr(data, "train")  # noqa: B009
    [(state, _), *_] = federate(plan, engine, start(plan, skewed.params()))
    [(plain, _), *_] = run(skewed, replace(plan, aggregator=build("aggregator", "mean")))
    assert not equal(state.params, plain.params)
    for job, reply in zip(engine.jobs, engine.replies, strict=True):
        assert isinstance(reply, Reply)
        told = unpack(job.client, reply.payload, plan.uplink, layout(state.params)).told
        labels = train["label"][getattr(data, "parts")[job.client]]  # noqa: B009
        assert told == {"class_counts": [int((labels == k).sum()) for k in range(3)]}


def test_counts_that_are_not_of_its_examples_are_refused(skewed: Site) -> None:
    plan, clients = skewed.plan, skewed.data.clients

    def lying(counts: tuple[int, ...]) -> Any:
        def harm(reply: Any) -> Any:
            update = unpack(reply.client, reply.payload, plan.uplink, layout(skewed.params()))
            return replace(
                reply,
                payload=pack(replace(update, told={"class_counts": list(counts)}), plan.uplink),
            )

        return harm

    harm = {clients[0]: lying((10**6, 0, 0)), clients[1]: lying((1, 2)), clients[2]: lying(())}
    _, ledger = next(
        federate(plan, Tampering(on(skewed, plan), harm), start(plan, skewed.params()))
    )
    assert sorted(ledger.failed) == sorted(clients[:3])
    assert "class counts are of 1000000 examples" in ledger.failed[clients[0]]
    assert "tells 2 class counts, and the plan asks for 3" in ledger.failed[clients[1]]
    assert "tells 0 class counts" in ledger.failed[clients[2]]


@pytest.mark.parametrize("counts", [(-1,), (1.5,), (True,), ("9",), (2**53 + 1,)])
def test_what_is_no_number_of_examples_is_refused(counts: Any) -> None:
    plan = points_plan(**ROWS)
    lying = replace(of("c", 1.0, 1, 1, 1), told={"class_counts": list(counts)})
    [check] = plan.hooks("check_update")
    with pytest.raises(ValueError, match="class counts are no numbers"):
        check(lying, START, plan)


def test_files_of_one_round_merge_to_its_rows_in_any_order(tmp_path: Path) -> None:
    four = study(tmp_path, "head_rows=class_counts", "partition.alpha=0.1")
    merge(four.path, four.files, tmp_path / "merged", Rules())
    merge(four.path, four.files[3:], tmp_path / "late", Rules())
    change(tmp_path / "late", add=[four.files[k] for k in (1, 0, 2)])
    site = open_site(four.invitation.plan)
    [(state, _)] = run(site, site.plan)
    ends = [
        load_tensors(tmp_path / name / "checkpoint" / "state.safetensors")[0]
        for name in ("merged", "late")
    ]
    assert equal(ends[0], ends[1]) and all(
        torch.equal(ends[0][f"params/{n}"], x) for n, x in state.params.items()
    )
    liar = four.forged(
        tmp_path / "liar",
        lambda update: replace(
            update, told={"class_counts": [1, *update.told["class_counts"][1:]]}
        ),
    )
    with pytest.raises(ContributionError) as refused:
        merge(four.path, [liar], tmp_path / "other", Rules())
    assert refused.value.reason is Rejection.WEIGHT


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_rows": "classes"}, "Did you mean 'class_rows'"),
        ({"personal": ["head.*"]}, "needs a linear head that is trained and shared"),
        ({"aggregator": "median"}, "takes a mean of rows, past what Median keeps out"),
        (
            {"exchange": {"name": "secure", "threshold": 3}, "weighting": "uniform"},
            "which sums are to hide",
        ),
        (
            {
                "local": {"name": "dp_sgd", "noise_multiplier": 1},
                "weighting": "uniform",
                "delta": 0.1,
            },
            "without noise",
        ),
    ],
)
def test_what_does_not_fit(points: Site, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        start(points_plan(**{**ROWS, **changes}), points.params())
