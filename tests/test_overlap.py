"""Clients that train from the model of the last round, and the mean that makes up for it
(Overlap-FedAvg, arXiv:2012.06706)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import Recording, distance, last, on, points_plan, run

from fedpeft import PlanError, open_site
from fedpeft.aggregators.compensated import Compensated
from fedpeft.core.tensors import equal
from fedpeft.core.types import State, Tensors, Update
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site

OVERLAPPED: dict[str, Any] = {"algorithms": ["overlap"], "aggregator": "compensated"}


def merged(strength: float, now: list[float], then: list[float]) -> tuple[list[float], Update]:
    """Where the server comes to from `now`, of two clients that trained from `then`."""
    state = State(1, {"w": torch.tensor(now)})
    ends = torch.tensor([[-1.0, 1.0], [-3.0, 0.0]])
    begun: Tensors = {"w": torch.tensor(then)}
    updates = [Update(f"c{k}", {"w": end - begun["w"]}, 2.0) for k, end in enumerate(ends)]
    update = Compensated(strength)(iter(updates), state, lambda client: begun)
    return (state.params["w"] + update.delta["w"]).tolist(), update


def test_a_step_by_hand() -> None:
    """θ_{t−1} = (0, 0), θ_t = (1, 2), and clients end at (−1, 1) and (−3, 0): the mean change is
    (−2, 0.5) and c = (5, 0.5), so that λ·(1, 2)⊙(25, 0.25) = (1, 0.02) at λ = 0.04."""
    end, update = merged(0.04, [1.0, 2.0], [0.0, 0.0])
    assert end == pytest.approx([-2.0, 2.48]) and update.weight == 4
    assert merged(0.0, [1.0, 2.0], [0.0, 0.0])[0] == pytest.approx([-1.0, 2.5])


def test_without_drift_it_is_the_mean_for_any_strength() -> None:
    one, other = (merged(strength, [1.0, 2.0], [1.0, 2.0])[1] for strength in (0.0, 1e6))
    assert equal(one.delta, other.delta)


def test_squares_are_weighted_as_the_mean_is() -> None:
    """p = ¼ and ¾ of Δ = 1 and 3: c = ¼ + ¾·9 = 7, and 2·49 is taken off at λ = 1 and a drift of
    2."""
    state, begun = State(1, {"w": torch.tensor([2.0])}), {"w": torch.zeros(1)}
    updates = [Update(c, {"w": torch.tensor([x])}, x) for c, x in (("a", 1.0), ("b", 3.0))]
    update = Compensated(1.0)(updates, state, lambda client: begun)
    assert float(update.delta["w"]) == pytest.approx(2.5 - 98)


def test_clients_receive_the_model_of_the_last_round(points: Site) -> None:
    plan = points_plan(**OVERLAPPED)
    engine = Recording(on(points, plan))
    begun = start(plan, points.params())
    states = [begun, *(state for state, _ in federate(plan, engine, begun))]
    for number, job in enumerate(engine.jobs):
        sent = plan.downlink.decode(job.payload)
        assert equal(sent, states[max(0, number // plan.cohort - 1)].params)
    assert states[2].memory["overlap"] == states[1].params
    assert not equal(states[1].params, states[2].params)


def test_of_one_round_it_is_federated_averaging_to_the_bit(points: Site) -> None:
    one, other = points_plan(rounds=1), points_plan(rounds=1, **OVERLAPPED)
    assert equal(last(run(points, one)), last(run(points, other)))


@pytest.mark.parametrize("strength", [0.0, 0.04])
def test_it_learns_a_round_later(points: Site, strength: float) -> None:
    aggregator = {"name": "compensated", "strength": strength}
    plan = points_plan(rounds=8, algorithms=["overlap"], aggregator=aggregator)
    losses = [ledger.metrics["loss"].value for _, ledger in run(points, plan)]
    assert losses[-1] < 0.7 * losses[0]
    first, second = (ledger.metrics["loss"].value for _, ledger in run(points, points_plan())[:2])
    assert second < first and losses[0] == first


def test_one_by_one_and_together_and_resumed(points: Site, tmp_path: Path) -> None:
    plan = points_plan(**OVERLAPPED)
    site = open_site(plan)
    whole = run(site, plan)
    together = list(federate(plan, Cohort(site), start(plan, site.params())))
    assert distance(last(together), last(whole)) <= 1e-4
    half = run(site, plan, state=whole[1][0])
    assert equal(last(half), last(whole))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithms": ["overlap", "class_means"]}, "leave out the others"),
        ({"downlink": {"name": "difference", "codec": "int8"}}, "a round later"),
        ({"aggregator": "fedit"}, 'set aggregator = "mean" or "compensated"'),
        ({"local": {"correction": "scaffold"}, "aggregator": "mean"}, "leave out one of them"),
        ({"exchange": {"name": "secure", "threshold": 2}}, "their sum alone"),
        ({"aggregator": {"name": "compensated", "strength": -1.0}}, "strength must be 0"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**{**OVERLAPPED, "weighting": "uniform", **changes})
