"""Merges by Fisher information."""

from pathlib import Path

import pytest
import torch
from rounds import Recording, Tampering, on, points_plan, run

from fedpeft import PlanError
from fedpeft.algorithms.fisher import PHASE, merge_by_information
from fedpeft.codecs.dense import Dense
from fedpeft.core.conversation import Message
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Reply
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.payloads import decode_sent, encode_answer


def merged(
    changes: list[float], information: list[float], weights: list[float], floor: float = 1e-12
) -> float:
    each, told = ([{"a": torch.tensor([x])} for x in some] for some in (changes, information))
    return merge_by_information(each, told, weights, floor)["a"].item()


def test_merges_by_hand() -> None:
    assert merged([0.0, 4.0], [1.0, 3.0], [1.0, 1.0]) == pytest.approx(3)
    assert merged([0.0, 4.0], [1.0, 3.0], [3.0, 1.0]) == pytest.approx(2)
    assert merged([1.0, 5.0], [2.0, 2.0], [1.0, 3.0]) == pytest.approx(4), "the weighted mean"
    assert merged([1.0, 5.0], [0.0, 0.0], [1.0, 1.0], 1e-6) == 3, "nobody is sure of anything"


def test_a_client_tells_its_mean_squared_gradient(points: Site) -> None:
    """Of the points' linear classifier, against gradients by hand: (p − y)·x for each example."""
    plan = points_plan(algorithms=["fisher"], rounds=1, method="full", cohort=1)
    site = open_site(plan)
    engine = Recording(on(site, plan))
    [(state, ledger)] = federate(plan, engine, start(plan, site.params()))
    answers = [reply for reply in engine.replies if isinstance(reply, Reply)]
    assert not ledger.failed and len(answers) == 2
    [client] = ledger.weights
    told = decode_sent(answers[1].payload, Dense(), None).tensors[PHASE]
    # the merge of one is what it trained
    weight, bias = (state.params[n] for n in ("head.weight", "head.bias"))
    rows = [b for b in site.data.training(client)]
    x, label = (torch.cat([b[n][b["mask"] > 0] for b in rows]) for n in ("point", "label"))
    slope = (x @ weight.T + bias).softmax(1) - torch.nn.functional.one_hot(label, 3)
    wanted = (slope[:, :, None] * x[:, None, :]).square().mean(0)
    torch.testing.assert_close(told["head.weight"], wanted, atol=1e-6, rtol=1e-4)


def test_it_moves_elsewhere_than_the_mean_for_twice_the_bytes(tmp_path: Path) -> None:
    plan, plain = (points_plan(algorithms=a, rounds=2) for a in (["fisher"], []))
    site = open_site(plan)
    [(one, first), _] = run(site, plan, Folder(tmp_path / "one"))
    [(other, second), _] = run(site, plain, Folder(tmp_path / "other"))
    assert not equal(one.params, other.params)
    assert 1.5 < first.bytes_up / second.bytes_up < 2.5


@pytest.mark.parametrize("share", ["all", "one"])
def test_who_does_not_tell_has_no_say_and_without_anyone_it_is_the_mean(
    points: Site, share: str
) -> None:
    plan, plain = (points_plan(algorithms=a, rounds=1) for a in (["fisher"], []))
    silent = list(points.data.clients)
    negative = Message({PHASE: {n: -torch.ones_like(x) for n, x in points.params().items()}})
    bad = Reply("", encode_answer(negative, Dense()))
    seen: set[str] = set()

    def second(client: str) -> object:
        def harm(reply: Reply | Failure) -> Reply | Failure:
            if client not in seen:
                seen.add(client)
                return reply
            first = share == "one" and client != min(seen)
            return reply if first else Reply(client, bad.payload)

        return harm

    harm = {client: second(client) for client in silent}
    engine = Tampering(on(points, plan), harm)  # type: ignore[arg-type]
    [(state, ledger)] = federate(plan, engine, start(plan, points.params()))
    assert ledger.note.count("is negative somewhere") == (4 if share == "all" else 1)
    [(mean, _)] = run(points, plain)
    assert equal(state.params, mean.params) == (share == "all")


def test_who_claims_to_be_far_surer_than_the_others_is_refused_by_name(points: Site) -> None:
    """Without a bound each number of the merge would be that of one client."""
    plan, seen = points_plan(algorithms=["fisher"], rounds=1, cohort=6), []
    begun = start(plan, points.params())
    [(_, honest)] = federate(plan, on(points, plan), begun)
    liar = min(honest.weights)

    def sure(reply: Reply | Failure) -> Reply | Failure:
        seen.append(reply)
        if len(seen) == 1 or not isinstance(reply, Reply):
            return reply
        told = decode_sent(reply.payload, Dense(), None).tensors[PHASE]
        surer = {name: x * 1e6 for name, x in told.items()}
        return Reply(reply.client, encode_answer(Message({PHASE: surer}), Dense()))

    [(_, ledger)] = federate(plan, Tampering(on(points, plan), {liar: sure}), begun)
    assert "fisher's weight is" in ledger.note and "(weight_factor)" in ledger.note, ledger


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregator": "median"}, "past what Median keeps out"),
        ({"personal": ["*.bias"]}, "leave out personal"),
        ({"algorithms": [{"name": "fisher", "floor": 0.0}]}, "floor must be positive"),
    ],
)
def test_what_does_not_fit(changes: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**{"algorithms": ["fisher"], **changes})
