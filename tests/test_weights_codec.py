"""An uplink of compressed weights in place of their changes (T-FedAvg, arXiv:2003.03564)."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from rounds import Recording, on, points_plan

from fedpeft import PlanError
from fedpeft.core.interfaces import Coding
from fedpeft.core.rounds import update_layout
from fedpeft.core.tensors import equal, layout
from fedpeft.core.ternary_weights import ternarise
from fedpeft.core.types import Reply, State, Tensors
from fedpeft.core.views import EVERYTHING
from fedpeft.errors import WireError
from fedpeft.plan.coding import uplink_coding
from fedpeft.plan.plan import Plan
from fedpeft.registry import build
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site
from fedpeft.wire.payloads import decode_sent, unpack

UP: dict[str, Any] = {"name": "weights", "codec": {"name": "ternary", "spares_vectors": True}}


def test_by_hand() -> None:
    """Of θ + d = (4, −1, 0.5, −3, 0.1) stay 3.5 and −3.5; θ is all ones."""
    codec = build("codec", "weights")
    sent = {"a": torch.ones(5), "n": torch.tensor(7)}
    change = {"a": torch.tensor([3.0, -2.0, -0.5, -4.0, -0.9]), "n": torch.tensor(2)}
    how = Coding(held=sent)
    got = codec.decode(codec.encode(change, how), how)
    assert got["a"].tolist() == [2.5, -1, -1, -4.5, -1] and int(got["n"]) == 2
    assert layout(got) == layout(change)
    # A forecast knows nothing that was sent: the bytes are those of the codec.
    plain = build("codec", "ternary")
    assert codec.encode(change) == plain.encode(change)
    assert equal(codec.decode(codec.encode(change)), plain.decode(plain.encode(change)))


def test_another_shape_than_was_sent_is_refused() -> None:
    codec = build("codec", "weights")
    blob = codec.encode({"a": torch.ones(3)})
    with pytest.raises(WireError, match="came with the shape"):
        codec.decode(blob, Coding(held={"a": torch.ones(1)}))


def test_vectors_may_be_spared() -> None:
    codec = build("codec", {"name": "ternary", "spares_vectors": True})
    x = {
        "bias": torch.tensor([0.3, -0.1]),
        "w": torch.tensor([[4.0, -1.0, 0.5, -3.0, 0.1]]),
        "norm": torch.tensor([1.5], dtype=torch.float16),
        "n": torch.tensor(3),
    }
    got = codec.decode(codec.encode(x))
    assert got["w"].tolist() == [[3.5, 0, 0, -3.5, 0]]
    assert all(torch.equal(got[name], x[name]) for name in ("bias", "norm", "n"))
    assert equal(codec.decode(codec.encode(got)), got)
    assert list(codec.decode(codec.encode({"bias": x["bias"]}))) == ["bias"]
    kept = build("codec", {"name": "ternary", "keeps": ["w"]})
    got = kept.decode(kept.encode(x))
    assert torch.equal(got["w"], x["w"]) and got["bias"].tolist() == pytest.approx([0.3, 0])


def updates(site: Site, plan: Plan) -> tuple[Tensors, dict[str, Tensors], State]:
    """What the clients of a first round were sent, the changes that a server reads, and the state
    that follows."""
    engine = Recording(on(site, plan))
    state, ledger = next(federate(plan, engine, start(plan, site.params())))
    assert not ledger.failed
    sent = decode_sent(engine.jobs[0].payload, plan.downlink, None)
    expected, found = update_layout(sent, EVERYTHING), {}
    for reply in engine.replies:
        assert isinstance(reply, Reply)
        how = uplink_coding(plan, 0, reply.client, sent=sent)
        found[reply.client] = unpack(reply.client, reply.payload, plan.uplink, expected, how).delta
    return sent.tensors["params"], found, state


@pytest.mark.parametrize("downlink", ["dense", "ternary"])
def test_the_server_reads_the_ternary_weights_of_each_client(points: Site, downlink: str) -> None:
    plan = points_plan(cohort=3, method="full", weighting="uniform", downlink=downlink)
    sent, exact, _ = updates(points, plan)
    _, rounded, state = updates(points, replace(plan, uplink=build("codec", UP)))
    begun = start(plan, points.params()).params
    for name, x in sent.items():
        each = [x + exact[client][name] for client in sorted(exact)]
        wanted = [ternarise(w, 0.7)[0] if w.ndim >= 2 else w for w in each]
        for client, weights in zip(sorted(exact), wanted, strict=True):
            torch.testing.assert_close(rounded[client][name], weights - x)
        # The mean of the changes moves what the server has, which a lossy downlink had rounded.
        mean = torch.stack(wanted).mean(0)
        torch.testing.assert_close(state.params[name], begun[name] + mean - x)


def test_weights_that_were_trained_to_be_ternary_arrive_as_they_are(points: Site) -> None:
    inner = {"name": "descent", "lr": 0.05, "batch_size": 8}
    local = {"name": "fttq", "ends": "ternary", "inner": inner}
    plan = points_plan(cohort=3, method="full", local=local)
    _, exact, _ = updates(points, plan)
    _, rounded, _ = updates(points, replace(plan, uplink=build("codec", UP)))
    for client, delta in exact.items():
        for name, x in delta.items():
            torch.testing.assert_close(rounded[client][name], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"uplink": UP, "stages": ["error_feedback"]}, "weights sends weights"),
        ({"uplink": UP, "local": {"correction": "scaffold"}}, "round them as if they were"),
        ({"downlink": UP}, "what goes down are weights already"),
        ({"uplink": {"name": "weights", "codec": "topk"}}, "keeps every entry"),
        ({"uplink": {"name": "weights", "codec": "ferret"}}, "keeps every entry"),
        ({"uplink": {"name": "weights", "codec": "weights"}}, "reads nothing else"),
        ({"downlink": {"name": "difference", "codec": "weights"}}, "needs no memory"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**changes)
