"""The head that class means make before the first round."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import POINTS, Recording, Tampering, changed, distance, on, points_plan
from torch import Tensor
from torch.nn.functional import normalize

from fedpeft import PlanError
from fedpeft.algorithms.feature_sums import PHASE, fitting_length
from fedpeft.algorithms.virtual_features import PHASE as VIRTUAL
from fedpeft.codecs.dense import Dense
from fedpeft.core.conversation import Message
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Reply
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.evaluation.measure import measure
from fedpeft.oneshot.invitation import invite
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.runs.execute import execute, open_engine
from fedpeft.runs.folder import create, read_rounds
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import load_tensors
from fedpeft.wire.payloads import decode_sent, encode_answer

START: dict[str, Any] = {"head_start": PHASE, "rounds": 1}
SUMMING = {
    "class_covariances": PHASE,
    "class_means": PHASE,
    "ridge_head": "feature_products",
    "virtual_features": VIRTUAL,
}
"""The algorithms that begin with sums from each client, and their phases."""


def head_sent(site: Site, **changes: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias with which the first round begins."""
    plan = points_plan(**START, **changes)
    engine = Recording(on(site, plan))
    list(federate(plan, engine, start(plan, site.params())))
    received = plan.downlink.decode(engine.jobs[-1].payload)
    return received["head.weight"], received["head.bias"]


def test_rows_are_class_means_however_labels_are_divided(points: Site) -> None:
    train: Any = points.data
    point, label = train.train["point"], train.train["label"]
    wanted = normalize(torch.stack([point[label == k].mean(0) for k in range(3)]))
    skewed = open_site(points_plan(partition={"name": "dirichlet", "clients": 6, "alpha": 0.05}))
    for site in (points, skewed):
        weight, bias = head_sent(site)
        torch.testing.assert_close(weight, wanted)
        assert not bias.any()


def test_it_costs_a_message_from_each_client(points: Site) -> None:
    plan, without = points_plan(**START), points_plan(rounds=1)
    engine = Recording(on(points, plan))
    [(_, ledger)] = federate(plan, engine, start(plan, points.params()))
    [(_, usual)] = federate(without, on(points, without), start(without, points.params()))
    assert (
        [job.client for job in engine.jobs if job.phase == PHASE]
        == list(points.data.clients)
        == list(ledger.down)
    )
    assert sorted(ledger.weights) == sorted(usual.weights)
    told = sum(len(reply.payload) for reply in engine.replies[:24] if isinstance(reply, Reply))
    # Losses have more digits or fewer.
    assert ledger.bytes_up - told == pytest.approx(usual.bytes_up, abs=8)
    assert 24 * 4 * (3 * 8 + 3) < told < 24 * (4 * (3 * 8 + 3) + 150)


def test_a_class_that_nobody_has_keeps_its_row(points: Site) -> None:
    other = open_site(points_plan(data={"name": "parts:Blobs", "examples": 600}))
    rows: Any = other.data
    kept = {
        name: [k for k in at.tolist() if int(rows.train["label"][k]) != 2]
        for name, at in rows.parts.items()
    }
    data = replace(rows, parts={name: torch.tensor(at) for name, at in kept.items()})
    weight, bias = head_sent(replace(other, data=data))
    assert (
        torch.equal(weight[2], points.params()["head.weight"][2])
        and bias[2] == points.params()["head.bias"][2]
    )
    assert weight[:2].norm(dim=1).tolist() == pytest.approx([1, 1])


def test_it_is_a_start(points: Site) -> None:
    """Under label skew, and before anything is learnt."""
    plan = points_plan(**START, local={"lr": 1e-9, "batch_size": 16})
    [(state, _)] = federate(plan, on(points, plan), start(plan, points.params()))
    assert (
        measure(points, state.params)["accuracy"]
        > 0.8
        > measure(points, points.params())["accuracy"]
    )


def test_one_by_one_and_together(points: Site) -> None:
    plan, begun = points_plan(**START), points.params()
    engine = Cohort(replace(points, plan=plan))
    one, two = (
        changed(next(federate(plan, each, start(plan, begun)))[0].params, begun)
        for each in (on(points, plan), engine)
    )
    assert not engine.alone
    assert distance(two, one) <= 1e-4


def test_a_message_that_fails_is_named_and_left_out(points: Site) -> None:
    plan, (first, second, *_) = points_plan(**START), points.data.clients
    cut = {
        first: lambda reply: (
            replace(reply, payload=reply.payload[:-3]) if isinstance(reply, Reply) else reply
        ),
        second: lambda reply: Failure(reply.client, "away"),
    }
    [(_, ledger)] = federate(plan, Tampering(on(points, plan), cut), start(plan, points.params()))
    assert (
        set(ledger.failed) == {first, second}
        and ledger.failed[second] == "away"
        and not ledger.note
    )


def telling(sums: float, counts: float) -> Any:
    """A client whose message has these everywhere."""
    told = {"sums": torch.full((3, 8), sums), "counts": torch.full((3,), counts)}
    return lambda reply: Reply(reply.client, encode_answer(Message({PHASE: told}), Dense()))


def head_with(site: Site, harm: dict[str, Any], **changes: Any) -> tuple[Tensor, dict[str, str]]:
    """The head's weight in the first round, and who failed."""
    plan = points_plan(**START, **changes)
    engine = Recording(Tampering(on(site, plan), harm))
    [(_, ledger)] = federate(plan, engine, start(plan, site.params()))
    return plan.downlink.decode(engine.jobs[-1].payload)["head.weight"], ledger.failed


@pytest.mark.parametrize("sums", [1e30, 3e38])
def test_means_far_longer_than_the_others_are_refused_by_name(points: Site, sums: float) -> None:
    """Such a message makes every row zero in float32, and two of 3e38 make them NaN."""
    bad = [points.data.clients[0], points.data.clients[20]]  # among the first few, and later
    weight, failed = head_with(points, dict.fromkeys(bad, telling(sums, 1.0)))
    without, _ = head_with(points, dict.fromkeys(bad, lambda reply: Failure(reply.client, "away")))
    assert torch.equal(weight, without) and weight.norm(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert list(failed) == bad and all(
        "its class_means is" in why and "norm_factor" in why for why in failed.values()
    )


def test_without_a_bound_the_head_is_finite_still(points: Site) -> None:
    bad = dict.fromkeys(points.data.clients[:2], telling(3e38, 1.0))
    weight, failed = head_with(points, bad, norm_factor=float("inf"))
    assert not any("means" in why for why in failed.values())
    assert weight.norm(dim=1).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("sums", "counts", "words"),
    [
        (float("nan"), 1.0, "not finite"),
        (1.0, float("inf"), "not finite"),
        (1.0, -1.0, "no numbers of examples"),
        (1.0, 0.5, "no numbers of examples"),
        (1.0, 0.0, "of which it has no example"),
        (1.0, 1e30, "a sum in float32 counts 16,777,216 at most"),
    ],
)
def test_sums_of_no_examples_are_refused_by_name(
    points: Site, sums: float, counts: float, words: str
) -> None:
    client = points.data.clients[5]
    _, failed = head_with(points, {client: telling(sums, counts)})
    assert list(failed) == [client] and words in failed[client]


@pytest.mark.parametrize("algorithm", sorted(SUMMING))
def test_who_counts_far_more_examples_than_the_others_is_refused_by_name(
    algorithm: str, points: Site
) -> None:
    """Without a bound the row of each class would go where one client likes."""
    site = open_site(points_plan(partition={"name": "iid", "clients": 12}))
    phase, (liar, *_) = SUMMING[algorithm], site.data.clients

    def many(reply: Reply | Failure) -> Reply | Failure:
        assert isinstance(reply, Reply)
        told = decode_sent(reply.payload, Dense(), None).tensors[phase]
        grown = {name: x * 2.0**16 for name, x in told.items()}
        return Reply(reply.client, encode_answer(Message({phase: grown}), Dense()))

    plan = points_plan(algorithms=[algorithm], rounds=1, cohort=12)
    [(state, ledger)] = federate(
        plan, Tampering(on(site, plan), {liar: many}), start(plan, site.params())
    )
    assert list(ledger.failed) == [liar] and "(weight_factor)" in ledger.failed[liar]
    gone = Tampering(on(site, plan), {liar: lambda reply: Failure(reply.client, "away")})
    [(without, _)] = federate(plan, gone, start(plan, site.params()))
    assert equal(state.params, without.params)


def test_a_resumed_run_does_it_once(points: Site, tmp_path: Path) -> None:
    plan, ends = points_plan(head_start=PHASE, rounds=2), []
    here = replace(points, plan=plan)
    for stops in ([2], [1, 1]):
        folder = create(plan, tmp_path / str(len(stops)))
        for rounds in stops:
            for _ in zip(
                range(rounds), execute(folder, here, open_engine(folder, here)), strict=False
            ):
                pass
        ends.append(load_tensors(folder.checkpoint)[0])
        assert [len(line["clients"]) for line in read_rounds(folder)] == [24, 4]
    assert equal(*ends)


def test_a_reply_that_is_stored_is_none_to_another_question(points: Site, tmp_path: Path) -> None:
    """After a kill in the middle of the first round the means are asked for again, and some replies
    are there."""
    plan, store = points_plan(**START), Folder(tmp_path)
    begun = start(plan, points.params())
    first, second = (Recording(on(points, plan, store)) for _ in range(2))
    ends = [next(federate(plan, engine, begun)) for engine in (first, second)]
    assert (
        not ends[1][1].failed
        and first.replies == second.replies
        and equal(ends[0][0].params, ends[1][0].params)
    )


def test_features_that_are_kept_are_the_same_ones() -> None:
    ends = []
    for features in (True, False):
        plan = points_plan(
            **START,
            task={"name": "parts:Points", "network": "hidden"},
            local={"epochs": 2},
            cohort=24,
            features=features,
        )
        site = open_site(plan)
        assert (site.kept.cut is not None) == features
        [(state, ledger)] = federate(plan, on(site, plan), start(plan, site.params()))
        assert not ledger.failed
        ends.append(state.params)
    for name, x in ends[0].items():
        torch.testing.assert_close(x, ends[1][name], rtol=0, atol=1e-5)


def test_ranks_and_a_frozen_a_go_with_it() -> None:
    method = {"name": "ffa", "rank": 4, "target": ["first"], "head": "head"}
    plan = points_plan(
        **START,
        task={"name": "parts:Points", "network": "hidden"},
        method=method,
        ranks=[2, 4],
        aggregator="fedit",
    )
    site = open_site(plan)
    [(_, ledger)] = federate(plan, on(site, plan), start(plan, site.params()))
    assert not ledger.failed and len(ledger.weights) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"personal": ["head.*"]}, "needs a linear head"),
        ({"head_start": "means"}, "class_means"),
        (
            {
                "stages": [{"name": "local_dp", "noise_multiplier": 1}],
                "weighting": "uniform",
                "delta": 0.1,
            },
            "without noise",
        ),
    ],
)
def test_what_does_not_fit(
    points: Site, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=words):
        plan = points_plan(**{**START, **changes})
        next(federate(plan, on(points, plan, Folder(tmp_path)), start(plan, points.params())))


def test_a_file_from_each_client_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="leave it out"):
        invite(points_plan(**START, cohort=POINTS["partition"]["clients"]), tmp_path / "study")  # type: ignore[index]


def test_the_length_by_hand() -> None:
    """Two classes with orthogonal means of length 2: p = 1 / (1 + exp(−2s)) is 0.8 at s = 0.693,
    and the least of 2^(k/4) above it is 2^(−1/2)."""
    means = 2 * torch.eye(2)
    assert fitting_length(normalize(means), means) == pytest.approx(2**-0.5)
    assert fitting_length(torch.eye(1), torch.eye(1)) == 1.0
    # Two classes that have one mean are never told apart: 1/2 is all that there is.
    assert fitting_length(torch.ones(2, 1), torch.ones(2, 1)) == pytest.approx(2.0**-10)


@pytest.mark.parametrize("name", ["class_means", "class_covariances", "ridge_head"])
def test_rows_are_as_long_as_the_class_means_want(name: str, points: Site) -> None:
    """The directions are those of rows of length 1, so that the same classes are predicted."""
    train: Any = points.data
    point, label = train.train["point"], train.train["label"]
    means = torch.stack([point[label == k].mean(0) for k in range(3)])
    rows = {}
    for length in (None, 1.0):
        algorithm = {"name": name} if length is None else {"name": name, "length": length}
        plan = points_plan(algorithms=[algorithm], rounds=1, local={"lr": 1e-9, "batch_size": 16})
        engine = Recording(on(points, plan))
        list(federate(plan, engine, start(plan, points.params())))
        rows[length] = plan.downlink.decode(engine.jobs[-1].payload)["head.weight"]
    torch.testing.assert_close(normalize(rows[None]), rows[1.0])
    sure = (means @ rows[None].T).softmax(1).diagonal().mean()
    assert 0.79 < float(sure) < 0.87


@pytest.mark.parametrize("length", [0.0, -1.0, float("inf")])
def test_a_length_is_positive(length: float) -> None:
    with pytest.raises(PlanError, match="length must be positive"):
        points_plan(algorithms=[{"name": "class_means", "length": length}])
