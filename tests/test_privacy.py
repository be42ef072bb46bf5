"""What privacy costs, how much noise a target needs, which plans are refused, and that a run goes on counting."""

import json
from dataclasses import replace
from math import erf, exp, inf, sqrt
from pathlib import Path
from shutil import copytree
from typing import Any

import dp_accounting
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from rounds import POINTS, Tampering, last, on, points_plan, run
from running import fedpeft
from running import run as run_folder

from fedpeft.client import Site, open_site
from fedpeft.core.accounting import calibrate, epsilon
from fedpeft.core.secrets import Secret
from fedpeft.core.stores import Folder, Nowhere
from fedpeft.core.tensors import equal
from fedpeft.core.types import Event, Failure
from fedpeft.engines.processes import Processes
from fedpeft.errors import PlanError, RunError
from fedpeft.loop import federate, start
from fedpeft.plan import read_plan
from fedpeft.privacy import chosen
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.execute import open_engine, open_run_site
from fedpeft.runs.folder import RunFolder, create, read_json, read_rounds
from fedpeft.runs.measure import measure
from fedpeft.runs.summary import summarize

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
    "local": {"name": "dp_sgd", "lr": 0.1, "noise_multiplier": 1.0, "batch_size": 8, "rate": 0.3, "steps": 3},
}
KINDS = pytest.mark.parametrize("private", [EXAMPLE, CLIENT, LOCAL], ids=["example", "client", "local"])


def test_golden_values_of_the_library() -> None:
    """σ = 1, q = 0.01, 1,000 steps, δ = 1e-5, as dp-accounting 0.6.0 gives them; opacus 1.6.0 has 2.1014 too."""
    event = Event("example", 1.0, 0.01, 100)
    assert epsilon(event, 10, 1e-5, "rdp") == pytest.approx(2.1014, abs=5e-5)
    assert epsilon(event, 10, 1e-5, "pld") == pytest.approx(1.8282, abs=5e-5)


@pytest.mark.parametrize(("name", "accountant"), [("pld", PLDAccountant), ("rdp", RdpAccountant)])
@pytest.mark.parametrize(
    ("noise", "rate", "times", "participations"), [(1.3, 0.3, 4, 6), (2.0, 1.0, 1, 13), (0.9, 0.05, 10, 3)]
)
def test_the_events_are_what_is_accounted(
    name: str, accountant: Any, noise: float, rate: float, times: int, participations: int
) -> None:
    once = dp_accounting.GaussianDpEvent(noise)
    once = dp_accounting.PoissonSampledDpEvent(rate, once) if rate < 1 else once
    wanted = accountant().compose(dp_accounting.SelfComposedDpEvent(once, times * participations)).get_epsilon(1e-3)
    assert epsilon(Event("client", noise, rate, times), participations, 1e-3, name) == pytest.approx(wanted, abs=1e-6)


def test_gaussians_agree_with_their_closed_form() -> None:
    """δ(ε) = Φ(μ/2 − ε/μ) − e^ε·Φ(−μ/2 − ε/μ) with μ = √n / z (Balle and Wang, 2018, arXiv:1805.06530)."""

    def normal(x: float) -> float:
        return (1 + erf(x / sqrt(2))) / 2

    noise, times = 2.0, 13
    e, mu = epsilon(Event("client", noise), times, 1e-3), sqrt(times) / noise
    assert normal(mu / 2 - e / mu) - exp(e) * normal(-mu / 2 - e / mu) == pytest.approx(1e-3, rel=1e-3)


def test_no_participation_costs_nothing_and_no_noise_everything() -> None:
    assert epsilon(Event("client", 1.0), 0, 1e-3) == 0
    assert epsilon(Event("client", 0.0), 1, 1e-3) == inf


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
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
    ({**CLIENT, "server": "scaffold", "local": {"correction": "scaffold"}}, "how many answered"),
    ({**CLIENT, "stages": ["error_feedback", *CLIENT["stages"]]}, "ErrorFeedback sends later"),
    ({**CLIENT, "stages": [*CLIENT["stages"], "error_feedback"]}, "put that stage last"),
    ({**EXAMPLE, "server": "scaffold"}, "for SCAFFOLD set both"),
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
def test_epsilon_is_that_of_whoever_took_part_most_often(points: Site, private: dict[str, Any]) -> None:
    plan = points_plan(**private, rounds=6)
    told = [ledger.privacy for _, ledger in run(points, plan)]
    event, times = plan.private_part.event, dict.fromkeys(points.data.clients, 0)
    for round_, privacy in enumerate(told):
        for client in chosen(plan, points.data.clients, round_):
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
    bare = {key: value for key, value in private.get("local", {}).items() if key != "noise_multiplier"}
    stages = [stage["name"] for stage in private["stages"]]
    plan = points_plan(**{**private, "local": bare or POINTS["local"], "stages": stages}, target_epsilon=3.0)
    site = open_site(plan)
    assert site.plan.private_part.noise_multiplier > 0
    assert read_plan(site.plan.toml()) == site.plan  # with its noise written down, it is a plan like any other
    (*_, (_, ledger)) = run(site, site.plan)
    assert ledger.privacy is not None and 2.95 < ledger.privacy["epsilon"] <= 3.0


def test_clients_that_drop_out_cost_and_save_nothing(points: Site) -> None:
    plan = points_plan(**CLIENT)
    silent = {client: lambda reply: Failure(reply.client, "gone") for client in points.data.clients[::2]}
    engine = Tampering(on(points, plan), silent)
    rounds = list(federate(plan, engine, start(plan, points.params()), SECRET))
    assert any(ledger.failed for _, ledger in rounds)
    assert [ledger.privacy for _, ledger in rounds] == [ledger.privacy for _, ledger in run(points, plan)]


def test_a_round_without_any_reply_moves_by_noise_too(points: Site) -> None:
    """Were nothing to change then, it would show that the one client that was asked did not answer."""
    plan = points_plan(**CLIENT, rounds=1, cohort=1)
    everyone = {client: lambda reply: Failure(reply.client, "gone") for client in points.data.clients}
    before = start(plan, points.params())
    [(state, ledger)] = federate(plan, Tampering(on(points, plan), everyone), before, SECRET)
    assert ledger.note == "" and len(ledger.failed) == 1
    assert all(not torch.equal(x, before.params[name]) for name, x in state.params.items())


def test_without_noise_and_clipping_a_run_is_the_same_to_the_bit(points: Site) -> None:
    """The stages in their place, with an infinite clip norm; no guarantee, and none is told."""
    plain = run(points, points_plan(weighting="uniform"))
    for name in ("client_dp", "local_dp"):
        stages = [{"name": name, "clip_norm": inf, "noise_multiplier": 0.0}]
        rounds = run(points, points_plan(**{**CLIENT, "stages": stages}))
        assert equal(last(rounds), last(plain))
        assert all(ledger.privacy is not None and ledger.privacy["epsilon"] is None for _, ledger in rounds)


@KINDS
def test_engines_agree_to_the_bit_for_one_secret_and_not_for_two(points: Site, private: dict[str, Any]) -> None:
    plan = points_plan(**private, rounds=2)
    site = replace(points, plan=plan)

    def ended(clients: Secret, own: Secret, engine: Any) -> Any:
        try:
            rounds = list(federate(plan, engine(site, Nowhere(clients)), start(plan, points.params()), own))
        finally:
            pass
        return last(rounds)

    def workers(site: Site, store: Nowhere) -> Processes:
        return Processes(site, store, 2)

    here = ended(SECRET, SECRET, lambda site, store: on(site, plan, store))
    assert equal(ended(SECRET, SECRET, workers), here)
    others = [ended(SECRET.at("a"), SECRET, lambda s, store: on(s, plan, store)) for _ in range(1)]
    others += [ended(SECRET, SECRET.at("b"), lambda s, store: on(s, plan, store))]
    # the same plan, the same jobs and the same seeds: only its owner's secret makes another noise
    assert [equal(other, here) for other in others] == ([True, False] if private is CLIENT else [False, True])


def begun(where: Path, private: dict[str, Any]) -> tuple[RunFolder, Site]:
    """A run's folder with known secrets."""
    site = open_run_site(points_plan(**private))
    folder = create(site.plan, where)
    for path in folder.secrets:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(SECRET.root)
    return folder, site


@KINDS
def test_a_run_that_goes_on_counts_on_and_ends_in_the_same_bits(tmp_path: Path, private: dict[str, Any]) -> None:
    whole, site = begun(tmp_path / "whole", private)
    run_folder(whole, site)
    halves, _ = begun(tmp_path / "halves", private)
    run_folder(halves, site, rounds=2)
    half = load_checkpoint(halves.checkpoint, site.plan)
    assert half is not None and half.privacy == read_rounds(halves)[-1]["privacy"]
    run_folder(halves, site)
    a, b = (load_checkpoint(folder.checkpoint, site.plan) for folder in (whole, halves))
    assert a is not None and b is not None and equal(a.state.params, b.state.params)
    lines = [[line["privacy"] for line in read_rounds(folder)] for folder in (whole, halves)]
    assert lines[0] == lines[1] and a.privacy == b.privacy == lines[0][-1]
    assert summarize(whole, site)["privacy"] == lines[0][-1]


@pytest.mark.parametrize("which", [0, 1], ids=["server", "clients"])
@pytest.mark.parametrize("lost", [True, False], ids=["lost", "another"])
def test_a_run_does_not_go_on_with_another_secret(tmp_path: Path, which: int, lost: bool) -> None:
    folder, site = begun(tmp_path / "run", CLIENT)
    run_folder(folder, site, rounds=2)
    folder.secrets[which].unlink()
    if not lost:
        folder.secrets[which].write_bytes(Secret.fresh().root)
    with pytest.raises(RunError, match="not what this run's noise was drawn from"):
        run_folder(folder, site)


@KINDS
def test_no_file_that_is_passed_on_holds_a_secret(tmp_path: Path, private: dict[str, Any]) -> None:
    folder, site = begun(tmp_path / "run", private)
    run_folder(folder, site)
    summarize(folder, site)
    keys = [SECRET.root, SECRET.root.hex().encode()]
    for client in site.data.clients:
        keys += [Folder(folder.clients).secret(client).root, Folder(folder.clients).secret(client).root.hex().encode()]
    for path in folder.path.rglob("*"):
        if path.is_file() and path not in folder.secrets:
            assert not any(key in path.read_bytes() for key in keys), path


def test_two_runs_of_one_plan_differ_in_their_noise_alone(tmp_path: Path) -> None:
    site = open_run_site(points_plan(**CLIENT))
    states = []
    for name in ("a", "b"):
        folder = create(site.plan, tmp_path / name)
        run_folder(folder, site)
        saved = load_checkpoint(folder.checkpoint, site.plan)
        assert saved is not None
        states.append(saved.state)
    assert not equal(states[0].params, states[1].params) and states[0].accepted == states[1].accepted


PLAN = """
name = "blobs"
task = "parts:Points"
data = "parts:Blobs"
method = "full"
rounds = 3
cohort = 2
weighting = "uniform"
partition = {name = "iid", clients = 4}
"""


def test_the_command_line_tells_what_it_cost_and_resumes(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"{PLAN}target_epsilon = 5\ndelta = 1e-3\nlocal = {{lr = 0.1}}\n"
        'stages = [{name = "client_dp", clip_norm = 0.5}]\n'
    )
    ended = fedpeft("run", plan, "--out", tmp_path / "run")
    assert ended.exit_code == 0, ended.output
    assert "ε for one client at δ = 0.001" in ended.output and "  ε " in ended.output
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary is not None and 4.9 < summary["privacy"]["epsilon"] <= 5
    assert "noise_multiplier = " in (tmp_path / "run" / "plan.toml").read_text()
    begun_ = tmp_path / "again"
    copytree(tmp_path / "run", begun_)
    (begun_ / "summary.json").unlink()
    assert fedpeft("run", "--resume", begun_).exit_code == 0
    lines = [json.loads(line) for line in (begun_ / "rounds.jsonl").read_text().splitlines()]
    assert lines[-1]["privacy"] == summary["privacy"]
    assert fedpeft("evaluate", tmp_path / "run").exit_code == 0


def test_noise_as_published_is_told_to_guarantee_nothing(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(f'{PLAN}local = {{name = "dp_as_published", lr = 0.01, batch_size = 8}}\n')
    ended = fedpeft("run", plan, "--out", tmp_path / "run")
    assert ended.exit_code == 0, ended.output
    assert "ε not bounded" in ended.output and "gives no example a guarantee" in ended.output
    summary = read_json(tmp_path / "run" / "summary.json")
    assert summary is not None and summary["privacy"] == {
        "epsilon": None,
        "delta": None,
        "unit": "example",
        "accountant": None,
    }


def test_engine_folder_makes_its_secrets_by_itself(tmp_path: Path) -> None:
    site = open_run_site(points_plan(**LOCAL))
    folder = create(site.plan, tmp_path / "run")
    engine = open_engine(folder, site)
    rounds = list(federate(site.plan, engine, start(site.plan, site.params())))
    assert len(rounds) == site.plan.rounds and (folder.clients / "secret").stat().st_mode & 0o777 == 0o600


LEARNT = {"head": 0.8, "bias": 0.8, "lora": 0.8, "adapter": 0.8, "prompt": 0.7}
PLANS = Path(__file__).parents[1] / "plans"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", sorted(LEARNT))
@pytest.mark.parametrize("plan", ["digits-dp", "digits-client-dp"])
def test_every_method_still_learns_at_epsilon_8(plan: str, method: str) -> None:
    """Chance is a tenth. What is measured is in docs/results/privacy.md."""
    site = open_run_site(read_plan(PLANS / f"{plan}.toml", [f"method={method}", "accountant=rdp", "engine=inprocess"]))
    *_, (state, ledger) = federate(site.plan, on(site, site.plan), start(site.plan, site.params()))
    assert ledger.privacy is not None and ledger.privacy["epsilon"] <= 8 and not ledger.failed
    assert measure(site, state.params)["accuracy"] > LEARNT[method]
