"""Local training without gradients (FedKSeed, arXiv:2312.06353)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import run
from torch import Tensor

from fedpeft import PlanError, open_site, read_plan
from fedpeft.core.interfaces import Coding
from fedpeft.core.tensors import equal, norm, sub
from fedpeft.core.types import Batch, Context, Tensors
from fedpeft.engines.vectorized.engine import unfit
from fedpeft.local.zeroth import Zeroth
from fedpeft.registry import build
from fedpeft.rounds.loop import start

PLAN: dict[str, Any] = {
    "task": {"name": "parts:Points", "network": "hidden", "features": 24},
    "data": {"name": "parts:Blobs", "features": 24, "examples": 400},
    "method": "full",
    "partition": {"name": "iid", "clients": 4},
    "local": {"name": "zeroth", "batch_size": 8, "epochs": 2, "lr": 0.01, "density": 0.125},
    "uplink": {"name": "ferret", "density": 0.125},
    "rounds": 6,
    "cohort": 4,
}


class Bowl:
    """ℓ(w) = ½‖w‖², the same for each example."""

    def __call__(self, params: Tensors, batch: Batch, added: object = None) -> Tensor:
        return params["w"].square().sum() / 2 * torch.ones_like(batch["mask"])


def test_a_step_by_hand() -> None:
    """w = (1, 0), z = (1, 1): ρ = ⟨w, z⟩ = 1 for any ε, and w goes to (0.9, −0.1) at rate 0.1."""
    local: Any = Zeroth(lr=0.1, epsilon=0.25)
    w = {"w": torch.tensor([1.0, 0.0])}
    batch = {"mask": torch.tensor([1.0, 1.0, 0.0]), "direction/w": torch.ones(2)}
    carry = local.step(local.begin(w, {}, None), batch, Bowl())
    delta, memory, totals = local.finish(carry, w, {})
    torch.testing.assert_close(delta["w"], torch.tensor([-0.1, -0.1]))
    assert memory == {} and float(totals["examples"]) == 2
    # ½‖w ± z/4‖² is ½(1.5625 + 0.0625) and ½(0.5625 + 0.0625), of each of two examples.
    assert float(totals["loss"]) == pytest.approx(2 * (0.8125 + 0.3125) / 2)


def test_the_change_lies_in_the_directions_that_ferret_sends() -> None:
    plan = read_plan(PLAN)
    site = open_site(plan)
    received, client = site.params(), site.data.clients[0]
    context = Context("run", 0, 6, client, 10, 2, 77)
    batches = list(plan.local.batches(site.data, received, context))
    z = {n: torch.stack([b[f"direction/{n}"] for b in batches]).sum(0) for n in received}
    codec, how, other = build("codec", plan.uplink), Coding("up", 77), Coding("up", 78)
    got = codec.decode(codec.encode(z, how), how)
    assert float(norm(sub(got, z))) < 0.02 * float(norm(z))
    lost = codec.decode(codec.encode(z, other), other)
    assert float(norm(sub(lost, z))) > 0.5 * float(norm(z))


def test_it_learns_from_few_bytes_and_again_the_same(tmp_path: Path) -> None:
    plan = read_plan(PLAN)
    site = open_site(plan)
    rounds = run(site, plan)
    assert not any(ledger.failed for _, ledger in rounds)
    losses = [ledger.metrics["loss"].value for _, ledger in rounds]
    assert losses[-1] < 0.9 * losses[0]
    dense = 4 * sum(x.numel() for x in site.params().values())
    assert max(rounds[0][1].up.values()) < dense / 4
    assert equal(rounds[-1][0].params, run(site, plan)[-1][0].params)


def test_clients_are_not_stacked() -> None:
    assert "directions of its own" in unfit(open_site(read_plan(PLAN)))


def test_running_statistics_are_refused() -> None:
    plan = read_plan({**PLAN, "task": {**PLAN["task"], "network": "convolution"}})
    with pytest.raises(PlanError, match="running statistic"):
        start(plan)


@pytest.mark.parametrize(
    ("key", "value"), [("epochs", 0), ("lr", 0.0), ("epsilon", float("nan")), ("density", 0.0)]
)
def test_values_out_of_range(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        Zeroth(**{key: value})  # type: ignore[arg-type]
