"""Sparse LoRA in both directions (FLASC, arXiv:2406.05233): fewer entries down and up, fewer from
round to round, and tiers of clients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import Recording, on
from torch import Tensor

from fedpeft import Folder, InProcess, PlanError, federate, open_site, read_plan, start
from fedpeft.core.tensors import equal
from fedpeft.core.types import Job, Reply
from fedpeft.core.views import View
from fedpeft.plan.coding import downlink_coding, uplink_coding
from fedpeft.plan.reading import plan_at
from fedpeft.registry import build
from fedpeft.wire.payloads import decode_sent

PLAN: dict[str, Any] = {
    "task": {"name": "parts:Points", "network": "hidden", "features": 24},
    "data": {"name": "parts:Blobs", "features": 24, "examples": 400},
    "method": {"name": "lora", "rank": 8, "target": ["first"], "head": "head"},
    "partition": {"name": "iid", "clients": 6},
    "local": {"lr": 0.2, "batch_size": 8},
    "rounds": 3,
    "cohort": 6,
}
QUARTER = {"name": "topk", "density": 0.25}


def recorded(changes: dict[str, Any], folder: Path | None = None) -> tuple[Any, Recording, Any]:
    plan = read_plan({**PLAN, **changes})
    site = open_site(plan)
    inner = InProcess(site, Folder(folder)) if folder else on(site, plan)
    engine = Recording(inner)
    rounds = list(federate(plan, engine, start(plan, site.params())))
    assert not any(ledger.failed for _, ledger in rounds)
    return plan, engine, [start(plan, site.params()), *(state for state, _ in rounds)]


def flat(tensors: Any) -> Tensor:
    return torch.cat([x.reshape(-1) for _, x in sorted(tensors.items())])


def received(plan: Any, job: Job, view: View) -> Tensor:
    how = downlink_coding(plan, job.round, view)
    return flat(decode_sent(job.payload, plan.downlink, {"params"}, how).tensors["params"])


def test_density_1_both_ways_is_federated_averaging() -> None:
    whole = {"name": "topk", "density": 1.0}
    plain = recorded({})[2][-1]
    assert equal(recorded({"uplink": whole, "downlink": whole})[2][-1].params, plain.params)


def test_clients_receive_the_largest_entries_and_send_their_largest_changes() -> None:
    plan, engine, states = recorded({"uplink": QUARTER, "downlink": QUARTER})
    for job, reply in zip(engine.jobs, engine.replies, strict=True):
        dense, got = flat(states[job.round].params), received(plan, job, View())
        k = -(-len(dense) // 4)
        assert int((got != 0).sum()) <= k and torch.equal(got[got != 0], dense[got != 0])
        assert float(got.abs()[got != 0].min()) >= float(dense[got == 0].abs().max())
        assert isinstance(reply, Reply)
    assert bool(states[-1].params["head.weight"].ne(states[0].params["head.weight"]).any())


def test_one_step_by_hand() -> None:
    """θ = (3, −1, 2, 0) and the loss ½‖θ‖²: half of θ goes down as (3, 0, 2, 0), one step of SGD at
    rate 1 gives a change of (−3, 0, −2, 0), and the server's θ becomes (0, −1, 0, 0)."""
    codec = build("codec", {"name": "topk", "density": 0.5})
    theta = torch.tensor([3.0, -1.0, 2.0, 0.0])
    down = codec.decode(codec.encode({"a": theta}))["a"]
    assert down.tolist() == [3, 0, 2, 0]
    up = codec.decode(codec.encode({"a": -down}))["a"]
    assert (theta + up).tolist() == [0, -1, 0, 0]


def test_a_density_may_decay_over_the_rounds() -> None:
    density = {"from": 1.0, "to": 0.0625, "shape": "exponential"}
    changes = {"uplink": {"name": "topk", "density": density}, "stages": ["error_feedback"]}
    plan = read_plan({**PLAN, **changes})
    at = [plan_at(plan, round) for round in range(3)]
    assert [one.uplink.density for one in at] == pytest.approx([1.0, 0.25, 0.0625])  # type: ignore[attr-defined]
    assert all(one.stages[0].codec == one.uplink for one in at)  # type: ignore[attr-defined]


def test_fewer_bytes_from_round_to_round(tmp_path: Path) -> None:
    density = {"from": 1.0, "to": 0.0625, "shape": "exponential"}
    changes = {"uplink": {"name": "topk", "density": density}, "stages": ["error_feedback"]}
    _, engine, _ = recorded(changes, tmp_path)
    sizes = [len(r.payload) for r in engine.replies if isinstance(r, Reply)]
    first, second, third = sizes[0], sizes[6], sizes[12]
    assert first > 2 * second > 2 * third


def test_tiers_have_shares_of_the_density_both_ways() -> None:
    tiers = {"name": "tiers", "budgets": [1.0, 0.25]}
    plan, engine, states = recorded({"uplink": QUARTER, "downlink": QUARTER, "routing": [tiers]})
    n = len(flat(states[0].params))
    for job, reply in zip(engine.jobs, engine.replies, strict=True):
        view = plan.view(job.client, job.round, engine.clients)
        assert view.budget == (0.25 if engine.clients.index(job.client) % 2 else 1.0)
        dense = flat(states[job.round].params)
        most = min(-(-int(n * view.budget) // 4) + 1, int((dense != 0).sum()))
        assert int((received(plan, job, view) != 0).sum()) <= most
        assert isinstance(reply, Reply)
    small, large = (
        [len(r.payload) for r in engine.replies if isinstance(r, Reply) and r.client == client]
        for client in (engine.clients[1], engine.clients[0])
    )
    assert all(a < b for a, b in zip(small, large, strict=True))


@pytest.mark.parametrize("codec", ["randk", "ferret"])
def test_tiers_with_codecs_that_draw_and_error_feedback(codec: str, tmp_path: Path) -> None:
    tiers = {"name": "tiers", "budgets": [1.0, 0.5]}
    changes = {"uplink": codec, "stages": ["error_feedback"], "routing": [tiers]}
    plan, _, states = recorded(changes, tmp_path)
    assert uplink_coding(plan, 1, "c", View(budget=0.5)).budget == 0.5
    assert not equal(states[-1].params, states[0].params)


@pytest.mark.parametrize("budgets", [[], [0.0], [1.5], [float("nan")]])
def test_budgets_out_of_range(budgets: list[float]) -> None:
    with pytest.raises(ValueError, match="budgets must be shares"):
        build("routing", {"name": "tiers", "budgets": [0.5]}).__class__(tuple(budgets))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"routing": [{"name": "tiers", "budgets": [1.0]}]}, "the plan's codecs keep all"),
        ({"downlink": "ferret"}, "receive most of them as zero"),
        ({"downlink": "topk", "method": "bias"}, "receive most of them as zero"),
        ({"downlink": "topk", "aggregator": "flexlora"}, 'set aggregator = "mean"'),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        read_plan({**PLAN, **changes})
