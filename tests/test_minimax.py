"""The worst mixture of the clients (AFL)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounds import Tampering, last, on, points_plan, run

from fedpeft import PlanError
from fedpeft.algorithms.minimax import Minimax, nearest_mixture
from fedpeft.core.tensors import equal, finite, layout
from fedpeft.core.types import Division, Examples, State, Table, Update
from fedpeft.deploy.consent import consent_to
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, site_of
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.record import record_of
from fedpeft.wire.payloads import pack, unpack

PLAIN = {"name": "sgd", "momentum": 0.0, "nesterov": False}
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


def bowls_plan(rate: float, rounds: int = 1, cohort: int = 2) -> Plan:
    return read_plan(
        {
            "task": "parts:Bowls",
            "method": "full",
            "local": {"lr": 0.1, "optimizer": PLAIN},
            "cohort": cohort,
            "weighting": "uniform",
            "rounds": rounds,
            "algorithms": [{"name": "minimax", "rate": rate}],
        }
    )


def bowls(
    rate: float, clients: Mapping[str, tuple[float, float]], rounds: int = 1, cohort: int = 2
) -> Site:
    """Clients with one example (x, a) each: the loss is a/2·(w − x)², from w = 1, in steps of
    0.1."""
    own = torch.tensor(list(clients.values()))
    table = Table({"point": own[:, :1], "curvature": own[:, 1]})
    division = Division({name: torch.tensor([k]) for k, name in enumerate(clients)})
    return site_of(bowls_plan(rate, rounds, cohort), Examples(table, table, ()), division)


def shares(state: State) -> dict[str, float]:
    return {client: float(x) for client, x in state.memory["minimax"].items()}


@pytest.mark.parametrize(
    ("point", "nearest"),
    [
        ((0.6, 0.8), (0.4, 0.6)),
        ((1.5, 3.5), (0.0, 1.0)),
        ((0.5, 0.2, 0.9), (0.3, 0.0, 0.7)),
        ((0.25, 0.75), (0.25, 0.75)),
        ((7.0,), (1.0,)),
        ((-3.0, -3.0), (0.5, 0.5)),
        ((0.0, 1e300), (0.0, 1.0)),
        ((1e300, 1e300, 0.0), (0.5, 0.5, 0.0)),
    ],
)
def test_the_nearest_mixture_by_hand(point: tuple[float, ...], nearest: tuple[float, ...]) -> None:
    """Also for (1.5, 3.5), of which the published code of q-FFL makes (0, 1.5)."""
    got = nearest_mixture(torch.tensor(point, dtype=torch.float64))
    assert got.tolist() == pytest.approx(nearest, abs=1e-12)


@given(st.lists(NUMBERS, min_size=1, max_size=12))
def test_no_mixture_is_nearer(numbers: list[float]) -> None:
    """The nearest point p of a convex set to v is the one with (v − p)·(q − p) ≤ 0 for every q of
    it, and of the simplex it is enough to look at its corners."""
    point = torch.tensor(numbers, dtype=torch.float64)
    got = nearest_mixture(point)
    size = max(1.0, float(point.abs().max()))
    assert (got >= 0).all() and float(got.sum()) == pytest.approx(1, abs=1e-9)
    away = point - got
    assert (away - away @ got <= 1e-9 * size).all()


def test_a_step_by_hand() -> None:
    """From w = 1 clients a, which looks for 0, and b, for 4, have the losses 1/2 and 9/2 and go by
    −0.1 and 0.3: w = 1.1 with equal shares. Then λ = Π(0.5 + 0.05, 0.5 + 0.45) = (0.3, 0.7).

    In the second round the gradients are 1.1 and −2.9: w = 1.1 − 0.1·(0.3·1.1 − 0.7·2.9) = 1.27,
    and with losses of 0.605 and 4.205 λ = Π(0.3605, 1.1205) = (0.12, 0.88).
    """
    site = bowls(0.1, {"a": (0.0, 1.0), "b": (4.0, 1.0)}, rounds=2)
    (one, first), (two, second) = run(site, site.plan)
    assert float(one.params["w"]) == pytest.approx(1.1, rel=1e-6)
    assert shares(one) == pytest.approx({"a": 0.3, "b": 0.7}, rel=1e-6)
    assert first.weights == {"a": 1.0, "b": 1.0}
    assert float(two.params["w"]) == pytest.approx(1.27, rel=1e-6)
    assert shares(two) == pytest.approx({"a": 0.12, "b": 0.88}, rel=1e-5)
    assert second.weights == pytest.approx({"a": 0.6, "b": 1.4}, rel=1e-6)
    told = record_of(second, None, 0.0).values()["reports"]
    assert told == {"minimax": {"largest": pytest.approx(0.88, rel=1e-5), "none": 0}}


def test_it_ends_where_the_worst_client_does_best() -> None:
    """Client a has the steeper bowl, 2·w², and b has (4 − w)²/2. The mean is best at w = 4/5; the
    larger of both is least where they are equal, 2·w = 4 − w, at w = 4/3."""
    site = bowls(0.01, {"a": (0.0, 4.0), "b": (4.0, 1.0)}, rounds=60)
    state, _ = run(site, site.plan)[-1]
    assert float(state.params["w"]) == pytest.approx(4 / 3, abs=0.01)
    plain = bowls(0.0, {"a": (0.0, 4.0), "b": (4.0, 1.0)}, rounds=30)
    assert float(run(plain, plain.plan)[-1][0].params["w"]) == pytest.approx(0.8, abs=1e-3)


def test_a_client_without_a_share_does_not_move_the_mean_and_may_come_back() -> None:
    """Rate 1 takes all from a at once: λ = Π(1, 5) = (0, 1), and then w goes to 4 with b alone,
    until a's loss is the larger one."""
    site = bowls(1.0, {"a": (0.0, 1.0), "b": (4.0, 1.0)}, rounds=30)
    rounds = run(site, site.plan)
    assert shares(rounds[0][0]) == {"a": 0.0, "b": 1.0}
    assert float(rounds[1][0].params["w"]) == pytest.approx(1.1 + 0.29, rel=1e-6)
    assert rounds[1][1].weights["a"] == 1e-12 and not rounds[1][1].failed
    assert any(shares(state)["a"] == 1 for state, _ in rounds)


def test_a_rate_of_0_is_the_mean(points: Site) -> None:
    plain = points_plan(weighting="uniform")
    same = replace(plain, algorithms=(Minimax(0.0),))
    one, other = last(run(points, same)), last(run(points, plain))
    assert all(torch.allclose(one[n], x, rtol=1e-5, atol=1e-7) for n, x in other.items())


def test_one_client_is_the_mean_to_the_bit() -> None:
    site = bowls(0.5, {"a": (3.0, 1.0)}, rounds=3, cohort=1)
    plain = replace(site.plan, algorithms=())
    for (one, _), (other, _) in zip(run(site, site.plan), run(site, plain), strict=True):
        assert equal(one.params, other.params)
        assert shares(one) == {"a": 1.0}


def test_those_who_are_drawn_stand_for_the_others() -> None:
    """Of two clients one is drawn: its loss counts twice."""
    site = bowls(0.1, {"a": (3.0, 1.0), "b": (3.0, 1.0)}, cohort=1)
    [(state, ledger)] = run(site, site.plan)
    [drawn] = ledger.weights
    assert shares(state)[drawn] == pytest.approx(0.5 + 0.1 * 2 * 2 / 2)


def test_a_round_that_is_given_up_leaves_the_shares(points: Site) -> None:
    plan = points_plan(
        algorithms=["minimax"], weighting="uniform", rounds=1, admission={"min_replies": 4}
    )
    engine = Tampering(on(points, plan), dict.fromkeys(points.data.clients, _cut))
    [(state, ledger)] = federate(plan, engine, start(plan, points.params()))
    assert "nothing changes" in ledger.note and "minimax" not in state.memory


def _cut(reply: Any) -> Any:
    return replace(reply, payload=reply.payload[:-1])


def test_a_checkpoint_resumes_to_the_same_bits(points: Site, tmp_path: Path) -> None:
    plan = points_plan(algorithms=[{"name": "minimax", "rate": 0.3}], weighting="uniform", cohort=6)
    whole = [state for state, _ in run(points, plan)]
    save_checkpoint(tmp_path / "checkpoint" / "state", plan, whole[1], {})
    begun = load_checkpoint(tmp_path / "checkpoint" / "state", plan)
    assert begun is not None
    end = [state for state, _ in run(points, plan, state=begun.state)][-1]
    assert equal(end.params, whole[-1].params)
    assert equal(end.memory["minimax"], whole[-1].memory["minimax"])


@pytest.mark.parametrize(
    "told",
    [{}, *({"received_loss": x} for x in (float("nan"), float("inf"), -1.0, True, 1, "1", [1.0]))],
)
def test_what_is_no_loss_is_refused(told: Mapping[str, Any]) -> None:
    plan = bowls_plan(1.0)
    [check] = plan.hooks("check_update")
    with pytest.raises(ValueError, match="tells no loss of what it received"):
        check(Update("a", {"w": torch.ones(1)}, told=told), State(0, {"w": torch.ones(1)}), plan)


@pytest.mark.parametrize("loss", [1e279, 1e300])
def test_the_largest_loss_takes_all_and_makes_no_number_infinite(points: Site, loss: float) -> None:
    plan = points_plan(
        algorithms=[{"name": "minimax", "rate": 1.0}], weighting="uniform", cohort=24, rounds=2
    )
    liar = points.data.clients[0]

    def lie(reply: Any) -> Any:
        update = unpack(liar, reply.payload, plan.uplink, layout(points.params()))
        told = {"received_loss": loss}
        return replace(reply, payload=pack(replace(update, told=told), plan.uplink))

    rounds = federate(plan, Tampering(on(points, plan), {liar: lie}), start(plan, points.params()))
    state, ledger = next(rounds)
    assert (liar in ledger.failed) == (loss > 1e280)
    assert finite(state.params) and sum(shares(state).values()) == pytest.approx(1)
    assert loss > 1e280 or shares(state)[liar] == 1


def test_an_owner_reads_what_is_told() -> None:
    site = bowls(1.0, {"a": (0.0, 1.0)})
    told = dict(consent_to(site, "a", ["a"]).lines)["not hidden"]
    assert told.endswith("the loss of each model that is sent here, on the examples here")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weighting": "examples"}, 'set weighting = "uniform"'),
        ({"exchange": {"name": "secure", "threshold": 3}}, 'set exchange = "plain"'),
        ({"aggregator": "median"}, 'set aggregator = "mean"'),
        (
            {"local": {"correction": "scaffold"}, "server": "scaffold"},
            "shares control variates, whose mean counts all alike: leave it out",
        ),
        (
            {"algorithms": ["minimax", {"name": "fedbuff", "buffer": 3}]},
            "asynchronous steps have several",
        ),
        (
            {"stages": [{"name": "local_dp", "noise_multiplier": 1.0}], "delta": 1e-3},
            "without noise: leave it out of a private plan",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**{"algorithms": ["minimax"], "weighting": "uniform", **changes})


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_a_rate_out_of_range(rate: float) -> None:
    with pytest.raises((PlanError, ValueError), match="rate must be at least 0 and finite"):
        Minimax(rate)
