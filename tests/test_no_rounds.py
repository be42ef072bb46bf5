"""Federations in which nobody trains: clients send sums, and a head is made of them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import Recording, Tampering, changed, distance, on, points_plan
from running import fedpeft
from test_agreement import node_of, said, site_of
from test_law_algorithms import Scattered
from town import TOKEN, engine, town

from fedpeft import PlanError
from fedpeft.codecs.dense import Dense
from fedpeft.core.conversation import Message
from fedpeft.core.seeds import fold
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Job, Reply, State
from fedpeft.deploy.consent import consent_to
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.evaluation.measure import measure
from fedpeft.forecasts.forecast import forecast
from fedpeft.plan.calibration import round_seed
from fedpeft.plan.plan import Plan
from fedpeft.registry import find, names
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.post import encode_start
from fedpeft.rounds.site import Site, open_site
from fedpeft.runs.execute import execute, resume_state
from fedpeft.runs.folder import RunFolder, create, read_rounds
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import load_tensors
from fedpeft.wire.payloads import encode_answer

NUMBERS = {"class_means": 27, "class_covariances": 27, "ridge_head": 91, "virtual_features": 51}
"""What a client tells of 3 classes of 8 features: 24 sums and 3 counts, 64 products, 24 squares."""
every = pytest.mark.parametrize("name", NUMBERS)


def test_every_algorithm_that_begins_before_rounds_is_tested_here() -> None:
    begins = {
        name for name in names("algorithm") if hasattr(find("algorithm", name), "before_rounds")
    }
    # It needs a target client and random features: tests/test_transfer_components.py has it.
    assert begins - {"transfer_components"} == NUMBERS.keys()


def without_rounds(name: str, **changes: Any) -> Plan:
    return points_plan(algorithms=[name], rounds=0, **changes)


def made(site: Site, plan: Plan) -> tuple[State, Ledger]:
    [(state, ledger)] = federate(plan, on(site, plan), start(plan, site.params()))
    return state, ledger


@every
def test_the_head_is_the_one_with_which_training_would_begin(name: str, points: Site) -> None:
    state, ledger = made(points, without_rounds(name))
    plan = points_plan(algorithms=[name], rounds=1)
    asked = Recording(on(points, plan))
    list(federate(plan, asked, start(plan, points.params())))
    begun = plan.downlink.decode(asked.jobs[-1].payload)
    assert equal(state.params, {name: begun[name] for name in state.params})
    assert state.round == 0 and not ledger.failed and not ledger.note and not ledger.weights
    assert list(ledger.up) == list(points.data.clients)
    assert measure(points, state.params)["accuracy"] > 0.9


@every
def test_engines_make_the_same_head(name: str, points: Site, tmp_path: Path) -> None:
    plan = without_rounds(name, partition={"name": "dirichlet", "clients": 5, "alpha": 1.0})
    site = open_site(plan)
    one, ledger = made(site, plan)
    [(two, other)] = federate(plan, Scattered(site, Folder(tmp_path)), start(plan, site.params()))
    assert equal(one.params, two.params) and ledger.up == other.up and ledger.down == other.down
    [(three, _)] = federate(plan, Cohort(site), start(plan, site.params()))
    begun = site.params()
    assert distance(changed(three.params, begun), changed(one.params, begun)) <= 1e-4


@every
def test_flower_makes_it_at_nodes_that_hold_to_their_owners_agreements(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("flwr")
    plan = without_rounds(name, partition={"name": "dirichlet", "clients": 3, "alpha": 10.0})
    site = open_site(plan)
    nodes = engine(site, town(site, tmp_path), [], 30)
    nodes.gather()
    [(state, ledger)] = federate(plan, nodes, start(plan, site.params()))
    alone, here = made(site, plan)
    assert not ledger.failed and equal(state.params, alone.params)
    assert ledger.up == here.up


def test_a_schedule_of_training_is_no_obstacle(points: Site) -> None:
    lr = {"from": 0.1, "to": 0.01, "shape": "cosine"}
    plan = without_rounds("class_means", local={"lr": lr, "batch_size": 16})
    assert equal(
        made(points, plan)[0].params, made(points, without_rounds("class_means"))[0].params
    )


@every
def test_as_many_numbers_leave_as_the_owner_reads(name: str, points: Site) -> None:
    plan = without_rounds(name)
    site = replace(points, plan=plan)
    lines = dict(consent_to(site, "c000", site.data.clients).lines)
    assert lines["leaves here"] == f"{NUMBERS[name]} numbers once, and no example"
    assert lines["rounds"].startswith("none: nobody trains; each message")
    assert lines["messages"].endswith("; no other is answered")
    assert "the mean loss" not in lines["not hidden"] and "class the sum" in lines["not hidden"]
    _, ledger = made(points, plan)
    # Beside four bytes for each number there are the frame and the header.
    assert all(0 < up - 4 * NUMBERS[name] < 250 for up in ledger.up.values())


def test_it_costs_what_the_forecast_says() -> None:
    plan = without_rounds("ridge_head")
    found = forecast(plan).traffic
    _, ledger = made(open_site(plan), plan)
    assert found.whole and found.total(1) == ledger.bytes_up and found.total(0) == ledger.bytes_down


def test_the_command_that_looks_ahead_knows_plans_of_no_rounds(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        'task = "parts:Points"\ndata = "parts:Blobs"\nmethod = "full"\nrounds = 0\n'
        'algorithms = ["class_means"]\npartition = {name = "iid", clients = 3}\n'
    )
    told = fedpeft("plan", tmp_path / "plan.toml")
    assert told.exit_code == 0, told.output


def test_algorithms_ask_in_their_order_and_owners_measure_what_comes_of_it() -> None:
    plan = points_plan(
        algorithms=["class_means", "virtual_features"],
        rounds=0,
        evaluate_at=["owners"],
        classes=["class 0", "class 1", "class 2"],
        task={"name": "parts:ClassedPoints"},
        partition={"name": "dirichlet", "clients": 4, "alpha": 10.0, "held_out": 0.2},
    )
    site = open_site(plan)
    recording = Recording(on(site, plan))
    [(state, ledger)] = federate(plan, recording, start(plan, site.params()))
    asked = [job.phase for job in recording.jobs]
    assert asked == ["class_means"] * 4 + ["class_moments"] * 4 + ["evaluate"] * 4
    assert ledger.reports["owners"]["metrics"]["accuracy"]["pooled"] > 0.9
    alone, _ = made(site, replace(plan, algorithms=plan.algorithms[1:]))
    assert equal(state.params, alone.params)  # each class has examples, so that no row is kept


def test_after_training_it_makes_the_head_anew(tmp_path: Path) -> None:
    """As CCVR does; the other tensors stay as they were trained."""
    text = """
    task = {name = "parts:Points", network = "hidden"}
    data = "parts:Blobs"
    method = "full"
    rounds = 1
    cohort = 3
    local = {batch_size = 8, lr = 0.1}
    partition = {name = "dirichlet", clients = 3, alpha = 10.0}
    """
    (tmp_path / "plan.toml").write_text(text)
    first, second = tmp_path / "first", tmp_path / "second"
    command = ("run", tmp_path / "plan.toml", "--quiet", "--out")
    assert fedpeft(*command, first).exit_code == 0
    head = ("--set", "rounds=0", "--set", "algorithms=['class_means']", "--start", first)
    told = fedpeft("run", tmp_path / "plan.toml", *head, "--out", second)
    assert told.exit_code == 0, told.output
    assert "sums from 3 clients, and nobody trains" in told.output
    before, after = (
        load_tensors(run / "checkpoint/state.safetensors")[0] for run in (first, second)
    )
    moved = {name for name, x in before.items() if not torch.equal(x, after[name])}
    assert moved == {"params/head.weight", "params/head.bias"}
    assert json.loads((second / "summary.json").read_text())["start"]["round"] == 0
    again = fedpeft("run", "--resume", second)
    assert again.exit_code == 0 and "is finished" in again.output


def test_after_a_kill_all_is_asked_again_in_the_same_words(points: Site, tmp_path: Path) -> None:
    """A node answers each message once, or again in the same words."""
    plan = without_rounds("class_means")
    site, folder = replace(points, plan=plan), create(plan, tmp_path / "run")
    engines = [Recording(on(site, plan)) for _ in range(2)]
    ends = []
    for one in engines:
        assert len(list(execute(folder, site, one))) == 1
        ends.append(load_tensors(folder.checkpoint)[0])
    assert engines[0].jobs == engines[1].jobs and equal(*ends)
    assert len(read_rounds(folder)) == 1
    assert not equal(
        ends[0], {f"params/{n}": x for n, x in resume_state(folder, site).flat.items()}
    )


def test_a_node_answers_for_sums_once_and_does_not_train(tmp_path: Path) -> None:
    site = site_of(rounds=0, algorithms=["class_means"])
    plan, node = site.plan, node_of(site, tmp_path)
    payload = encode_start(plan, start(plan, site.params()))
    seed = fold(round_seed(plan, 0), "client", "c000")
    job = Job(plan.run, 0, "c000", "class_means", seed, None, payload)
    assert said(node, job, TOKEN).head["kind"] == "reply"
    moved = State(0, {name: x + 1 for name, x in site.params().items()})
    other = replace(job, payload=encode_start(plan, moved))
    assert "answered already" in said(node, other, TOKEN).head["reason"]
    for phase, round, words in (
        ("fit", 0, "the plan has 0 rounds"),
        ("class_means", 1, "0 rounds"),
    ):
        asked = replace(
            job, phase=phase, round=round, seed=fold(round_seed(plan, round), "client", "c000")
        )
        assert words in said(node, asked, TOKEN).head["reason"]


def test_where_nobody_answers_nothing_changes_and_that_is_said(points: Site) -> None:
    plan = without_rounds("class_means")
    harm = dict.fromkeys(points.data.clients, lambda reply: Failure(reply.client, "away"))
    begun = start(plan, points.params())
    [(state, ledger)] = federate(plan, Tampering(on(points, plan), harm), begun)
    assert equal(state.params, begun.params) and "nothing changes" in ledger.note


def test_a_run_of_which_nothing_comes_ends_with_an_error(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        """
        task = "parts:Points"
        data = {name = "parts:Blobs", classes = 1}
        partition = {name = "iid", clients = 2}
        method = "full"
        algorithms = ["virtual_features"]
        rounds = 0
        """
    )
    told = fedpeft("run", tmp_path / "plan.toml", "--out", tmp_path / "run", "--quiet")
    assert told.exit_code == 1 and "nothing came of the clients' answers" in told.output
    assert "needs two classes" in read_rounds(RunFolder(tmp_path / "run"))[0]["note"]


@dataclass(frozen=True)
class Remote:
    """An engine that lies elsewhere, so that numbers of examples are what clients claim."""

    inner: Any

    @property
    def clients(self) -> Any:
        return self.inner.clients

    def run(self, jobs: Any) -> Any:
        return self.inner.run(jobs)


def test_a_client_that_claims_far_more_examples_than_others_is_refused(points: Site) -> None:
    plan, client = without_rounds("class_means"), points.data.clients[3]
    told = {"sums": torch.ones(3, 8) * 1e7, "counts": torch.full((3,), 1e7)}
    lie = Reply(client, encode_answer(Message({"class_means": told}), Dense()))
    begun = start(plan, points.params())
    tampered = Tampering(on(points, plan), {client: lambda reply: lie})
    [(state, ledger)] = federate(plan, Remote(tampered), begun)
    assert list(ledger.failed) == [client] and "weight_factor" in ledger.failed[client]
    away = Tampering(on(points, plan), {client: lambda reply: Failure(client, "away")})
    [(without, _)] = federate(plan, Remote(away), begun)
    assert equal(state.params, without.params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithms": []}, "rounds must be at least 1, got 0"),
        ({"algorithms": ["fisher"]}, "rounds must be at least 1, got 0"),
        ({"algorithms": ["class_means", "vote"]}, "Vote is about training"),
        ({"personal": ["head.*"]}, "needs a linear head"),
        ({"exchange": {"name": "secure", "threshold": 3}}, "class_means|sum"),
        ({"local": {"name": "dp_sgd", "noise_multiplier": 1.0}, "delta": 1e-3}, "without noise"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str, points: Site) -> None:
    with pytest.raises(PlanError, match=words):
        plan = points_plan(
            **{"algorithms": ["class_means"], "rounds": 0, "weighting": "uniform", **changes}
        )
        made(points, plan)
