"""The head first, then all: Pretrain-DPFL as a plan of two phases."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import POINTS, Recording, on

from fedpeft import PlanError, open_site, read_plan
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import equal
from fedpeft.core.types import State
from fedpeft.plan.plan import Plan
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.loop import federate, start
from fedpeft.storage.client_memory import Folder

OWN: dict[str, Any] = {
    **POINTS,
    "task": {"name": "parts:Points", "network": "hidden"},
    "compute": {"features": False},
    "rounds": 4,
}
FIRST = "routing=[{name='subset', trains=['head.*'], receives=['head.*']}]"
HEAD_FIRST = {"method": "full", "phase": [{"until": 2, "set": [FIRST]}]}
CLIENT_DP = {
    "stages": [{"name": "client_dp", "clip_norm": 0.5, "noise_multiplier": 1.0}],
    "weighting": "uniform",
    "delta": 1e-3,
}
DP_SGD = {
    "local": {"name": "dp_sgd", "noise_multiplier": 1.0, "lr": 0.1, "batch_size": 8},
    "weighting": "uniform",
    "delta": 1e-3,
}


def rounds_of(plan: Plan, where: Path) -> tuple[Recording, list[State], list[Ledger]]:
    """The states before and after each round, with secrets that are the same for all plans."""
    site = open_site(plan)
    begun = start(plan, site.params())
    engine = Recording(on(site, plan, Folder(where)))
    rounds = list(federate(plan, engine, begun, Secret(bytes(32))))
    assert not any(ledger.failed or ledger.note for _, ledger in rounds)
    return engine, [begun, *(state for state, _ in rounds)], [ledger for _, ledger in rounds]


@pytest.mark.parametrize("private", [{}, CLIENT_DP], ids=["open", "client_dp"])
def test_the_head_phase_is_the_method_head_to_the_bit(
    private: dict[str, Any], tmp_path: Path
) -> None:
    both = read_plan({**OWN, **HEAD_FIRST, **private})
    alone = read_plan({**OWN, "method": "head", **private})
    _, ours, mine = rounds_of(both, tmp_path / "both")
    _, theirs, others = rounds_of(alone, tmp_path / "alone")
    for k in (1, 2):
        head = {name: ours[k].params[name] for name in theirs[k].params}
        assert equal(head, theirs[k].params)
        rest = {name: x for name, x in ours[k].params.items() if name not in head}
        assert rest and equal(rest, {name: ours[0].params[name] for name in rest})
        assert mine[k - 1].up == others[k - 1].up
        assert mine[k - 1].down == others[k - 1].down
        assert mine[k - 1].privacy == others[k - 1].privacy


def test_then_everything_travels_and_moves(tmp_path: Path) -> None:
    plan = read_plan({**OWN, **HEAD_FIRST})
    engine, states, ledgers = rounds_of(plan, tmp_path)
    moved = {n for n, x in states[4].params.items() if not torch.equal(x, states[2].params[n])}
    assert moved == states[0].params.keys()
    assert plan.downlink.decode(engine.jobs[-1].payload).keys() == states[0].params.keys()
    assert max(ledgers[1].up.values()) < min(ledgers[2].up.values())
    assert max(ledgers[1].down.values()) < min(ledgers[2].down.values())


def test_noise_is_drawn_for_what_is_trained_alone(tmp_path: Path) -> None:
    """DP-SGD in both phases: tensors that stand still get no noise, and each round is accounted for
    alike."""
    _, states, ledgers = rounds_of(read_plan({**OWN, **HEAD_FIRST, **DP_SGD}), tmp_path)
    for name, x in states[0].params.items():
        still = [torch.equal(states[k].params[name], x) for k in (2, 4)]
        assert still == ([False, False] if name.startswith("head.") else [True, False])
    alone = read_plan({**OWN, "method": "full", **DP_SGD})
    _, _, others = rounds_of(alone, tmp_path / "alone")
    spent = [ledger.privacy for ledger in ledgers]
    assert spent == [ledger.privacy for ledger in others] and all(spent)


@pytest.mark.parametrize("key", ["stages=[]", "cohort=8", "weighting=examples"])
def test_a_phase_cannot_change_what_is_accounted_for(key: str) -> None:
    phases = [{"until": 2, "set": [FIRST, key]}]
    with pytest.raises(PlanError):
        read_plan({**OWN, **CLIENT_DP, "method": "full", "phase": phases})


def test_a_subset_that_receives_all_keeps_its_name() -> None:
    plain = {"name": "subset", "trains": ["head.*"]}
    one, other = (
        read_plan({**OWN, "method": "full", "routing": [routing]})
        for routing in (plain, {**plain, "receives": []})
    )
    assert one.fingerprint == other.fingerprint and "receives" not in one.toml()
