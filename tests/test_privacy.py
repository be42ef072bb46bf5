"""What privacy costs, how much noise a target needs, which plans are refused, and that a run goes
on counting."""

from contextlib import closing
from dataclasses import replace
from math import erf, exp, inf, sqrt
from typing import Any

import dp_accounting
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from rounds import POINTS, Tampering, last, on, points_plan, run

from fedpeft.core.accounting import calibrate, epsilon
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import equal
from fedpeft.core.types import Event, Failure, Tensors
from fedpeft.engines.processes import Processes
from fedpeft.errors import PlanError
from fedpeft.plan.calibration import select_cohort
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Nowhere

SECRET = Secret(bytes(range(32)))
CLIENT: dict[str, Any] = {
    "stages": [{"name": "client_dp", "noise_multiplier": 1.0}],
    "weighting": "uniform",
    "delta": 1e-3,
    "accountant": "rdp",
}
LOCAL = {**CLIENT, "stages": [{"name": "local_dp", "noise_multiplier": 1.0}]}
EXAMPLE = {
    **CLIENT,
    "stages": [],
    "local": {
        "name": "dp_sgd",
        "lr": 0.1,
        "noise_multiplier": 1.0,
        "batch_size": 8,
        "rate": 0.3,
        "steps": 3,
    },
}
KINDS = pytest.mark.parametrize(
    "private", [EXAMPLE, CLIENT, LOCAL], ids=["example", "client", "local"]
)


GOLDEN = [
    # Opacus 1.6.0 has 2.1014 too.
    (Event("example", 1.0, 0.01, 100), 10, 1e-5, 1.8282436455855, 2.1013665254203),
    (Event("example", 1.3, 0.3, 4), 6, 1e-3, 4.7131753143842, 5.5070019821129),
    (Event("client", 2.0), 13, 1e-3, 6.6189197744643, 7.3649297502272),
]
"""Event, participations n, δ, and ε by "pld" and "rdp" as dp-accounting 0.6.0 gives it: once, of
its own

    SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier)), times * n)

(the bare GaussianDpEvent where the rate is 1), composed by PLDAccountant() and RdpAccountant() with
their defaults."""


@pytest.mark.parametrize(("event", "participations", "delta", "pld", "rdp"), GOLDEN)
def test_golden_values_of_the_library(
    event: Event, participations: int, delta: float, pld: float, rdp: float
) -> None:
    assert epsilon(event, participations, delta, "pld") == pytest.approx(pld, abs=1e-6)
    assert epsilon(event, participations, delta, "rdp") == pytest.approx(rdp, abs=1e-6)


@pytest.mark.parametrize(("name", "accountant"), [("pld", PLDAccountant), ("rdp", RdpAccountant)])
@pytest.mark.parametrize(
    ("noise", "rate", "times", "participations"),
    [(1.3, 0.3, 4, 6), (2.0, 1.0, 1, 13), (0.9, 0.05, 10, 3)],
)
def test_the_events_are_what_is_accounted(
    name: str, accountant: Any, noise: float, rate: float, times: int, participations: int
) -> None:
    once = dp_accounting.GaussianDpEvent(noise)
    once = dp_accounting.PoissonSampledDpEvent(rate, once) if rate < 1 else once
    wanted = (
        accountant()
        .compose(dp_accounting.SelfComposedDpEvent(once, times * participations))
        .get_epsilon(1e-3)
    )
    assert epsilon(
        Event("client", noise, rate, times), participations, 1e-3, name
    ) == pytest.approx(wanted, abs=1e-6)


def test_gaussians_agree_with_their_closed_form() -> None:
    """δ(ε) = Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ) with μ = √n / z (Balle and Wang, 2018,
    arXiv:1805.06530)."""

    def normal(x: float) -> float:
        return (1 + erf(x / sqrt(2))) / 2

    noise, times = 2.0, 13
    e, mu = epsilon(Event("client", noise), times, 1e-3), sqrt(times) / noise
    assert normal(mu / 2 - e / mu) - exp(e) * normal(-mu / 2 - e / mu) == pytest.approx(
        1e-3, rel=1e-3
    )


def test_no_participation_costs_nothing_and_no_noise_everything() -> None:
    assert epsilon(Event("client", 1.0), 0, 1e-3) == 0
    assert epsilon(Event("client", 0.0), 1, 1e-3) == inf


@pytest.mark.parametrize("accountant", [pytest.param("pld", marks=pytest.mark.slow), "rdp"])
@pytest.mark.parametrize("target", [0.5, 8.0])
def test_calibrated_noise_is_enough_and_little_more(accountant: str, target: float) -> None:
    def event(z: float) -> Event:
        return Event("example", z, 1.0, 3)

    noise = calibrate(event, 4, target, 1e-3, accountant)
    assert 0.98 * target < epsilon(event(noise), 4, 1e-3, accountant) <= target


def test_a_target_that_no_noise_meets() -> None:
    with pytest.raises(PlanError, match="no noise below"):
        calibrate(lambda z: Event("client", z), 10**6, 1e-9, 1e-9)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**EXAMPLE, "weighting": "examples"}, 'set weighting = "uniform"'),
    ({**CLIENT, "weighting": "examples"}, 'set weighting = "uniform"'),
    ({**CLIENT, "delta": None}, "needs delta"),
    ({**CLIENT, "delta": 1.0}, "needs delta"),
    ({**CLIENT, "stages": ["client_dp"]}, "needs target_epsilon"),
    ({**CLIENT, "target_epsilon": -1}, "target_epsilon must be"),
    ({**CLIENT, "accountant": "moments"}, "no accountant called 'moments'"),
    ({**CLIENT, "aggregator": "median"}, 'Set aggregator = "mean"'),
    ({**CLIENT, "aggregator": "trimmed_mean"}, 'Set aggregator = "mean"'),
    ({**CLIENT, "min_replies": 2}, "given up for want of one reply"),
    ({**CLIENT, "local": {"correction": "scaffold"}}, "how many answered"),
    ({**CLIENT, "stages": ["error_feedback", *CLIENT["stages"]]}, "ErrorFeedback sends later"),
    ({**CLIENT, "stages": [*CLIENT["stages"], "error_feedback"]}, "put ClientDp last"),
    ({**CLIENT, "personal": ["head.*"]}, "leave Personal out of a plan with client-level privacy"),
    ({**EXAMPLE, "server": "scaffold"}, "goes with the clients' half"),
    ({**EXAMPLE, "stages": CLIENT["stages"]}, "choose one of them"),
    ({"target_epsilon": 8}, "nothing in this plan gives a guarantee"),
    ({"delta": 1e-3}, "nothing in this plan gives a guarantee"),
    ({"local": "dp_as_published", "delta": 1e-3}, "nothing in this plan gives a guarantee"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_the_noise_is_not_made_for_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        read_plan({key: value for key, value in changes.items() if value is not None})


def test_noise_that_is_too_little_for_the_target_is_refused(points: Site) -> None:
    plan = points_plan(**CLIENT, target_epsilon=1.0)
    with pytest.raises(PlanError, match="leave noise_multiplier out"):
        run(points, plan)


def test_a_plan_whose_noise_is_not_known_yet_is_refused(points: Site) -> None:
    plan = points_plan(**{**CLIENT, "stages": ["client_dp"]}, target_epsilon=1.0)
    with pytest.raises(PlanError, match=r"open_site\(plan\).plan"):
        run(points, plan)


@KINDS
def test_epsilon_is_that_of_whoever_took_part_most_often(
    points: Site, private: dict[str, Any]
) -> None:
    plan = points_plan(**private, rounds=6)
    told = [ledger.privacy for _, ledger in run(points, plan)]
    event, times = plan.private_part.event, dict.fromkeys(points.data.clients, 0)
    for round_, privacy in enumerate(told):
        for client in select_cohort(plan, points.data.clients, round_):
            times[client] += 1
        assert privacy == {
            "epsilon": pytest.approx(epsilon(event, max(times.values()), 1e-3, "rdp"), abs=1e-9),
            "delta": 1e-3,
            "unit": event.unit,
            "accountant": "rdp",
        }
    assert told[0]["epsilon"] < told[-1]["epsilon"]  # type: ignore[index]


@KINDS
def test_the_target_is_met_at_the_end(points: Site, private: dict[str, Any]) -> None:
    bare = {
        key: value for key, value in private.get("local", {}).items() if key != "noise_multiplier"
    }
    stages = [stage["name"] for stage in private["stages"]]
    plan = points_plan(
        **{**private, "local": bare or POINTS["local"], "stages": stages}, target_epsilon=3.0
    )
    site = open_site(plan)
    assert site.plan.private_part.noise_multiplier > 0
    # With its noise written down, it is a plan like any other.
    assert read_plan(site.plan.toml()) == site.plan
    (*_, (_, ledger)) = run(site, site.plan)
    assert ledger.privacy is not None and 2.95 < ledger.privacy["epsilon"] <= 3.0


def test_clients_that_drop_out_cost_and_save_nothing(points: Site) -> None:
    plan = points_plan(**CLIENT)
    silent = {
        client: lambda reply: Failure(reply.client, "gone") for client in points.data.clients[::2]
    }
    engine = Tampering(on(points, plan), silent)
    rounds = list(federate(plan, engine, start(plan, points.params()), SECRET))
    assert any(ledger.failed for _, ledger in rounds)
    assert [ledger.privacy for _, ledger in rounds] == [
        ledger.privacy for _, ledger in run(points, plan)
    ]


def test_a_round_without_any_reply_moves_by_noise_too(points: Site) -> None:
    """Were nothing to change then, it would show that the one client that was asked did not
    answer."""
    plan = points_plan(**CLIENT, rounds=1, cohort=1)
    everyone = {
        client: lambda reply: Failure(reply.client, "gone") for client in points.data.clients
    }
    before = start(plan, points.params())
    [(state, ledger)] = federate(plan, Tampering(on(points, plan), everyone), before, SECRET)
    assert ledger.note == "" and len(ledger.failed) == 1
    assert all(not torch.equal(x, before.params[name]) for name, x in state.params.items())


def test_without_noise_and_clipping_a_run_is_the_same(points: Site) -> None:
    """The stages in their place, with an infinite clip norm; no guarantee, and none is told. To the
    bit but for the wider sum of `client_dp`."""
    plain = run(points, points_plan(weighting="uniform"))
    for name in ("client_dp", "local_dp"):
        stages = [{"name": name, "clip_norm": inf, "noise_multiplier": 0.0}]
        rounds = run(points, points_plan(**{**CLIENT, "stages": stages}))
        if name == "local_dp":
            assert equal(last(rounds), last(plain))
        torch.testing.assert_close(last(rounds), last(plain), rtol=1e-5, atol=1e-6)
        assert all(
            ledger.privacy is not None and ledger.privacy["epsilon"] is None for _, ledger in rounds
        )


@pytest.mark.slow
@KINDS
def test_engines_agree_to_the_bit_for_one_secret_and_not_for_two(
    points: Site, private: dict[str, Any]
) -> None:
    plan = points_plan(**private, rounds=2)
    site = replace(points, plan=plan)

    def ended(own: Secret, engine: Any) -> Tensors:
        with closing(engine):
            return last(list(federate(plan, engine, start(plan, points.params()), own)))

    here = ended(SECRET, on(site, plan, Nowhere(SECRET)))
    assert equal(ended(SECRET, Processes(site, Nowhere(SECRET), 2)), here)
    # the same plan, the same jobs and the same seeds: only its owner's secret makes another noise
    another_client = ended(SECRET, on(site, plan, Nowhere(SECRET.at("a"))))
    another_server = ended(SECRET.at("b"), on(site, plan, Nowhere(SECRET)))
    assert equal(another_client, here) == (private is CLIENT) != equal(another_server, here)
