"""Tensors that stay with their clients, and the accuracy that each client may expect."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import POINTS, Recording, Tampering, on, points_plan, run
from running import SMALL, fedpeft
from running import run as run_folder

from fedpeft import PlanError, read_plan
from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.tensors import equal, layout, take_prefix
from fedpeft.core.types import Failure, State, Tensors
from fedpeft.errors import RunError
from fedpeft.evaluation.client_accuracy import client_accuracy
from fedpeft.evaluation.client_model import client_params
from fedpeft.evaluation.measure import held_out, measure
from fedpeft.registry import OWN, build, names
from fedpeft.results.result import read_result
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.runs.folder import create
from fedpeft.runs.summary import summarize
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.payloads import unpack

LOCAL_ONLY = {"personal": ["*"]}
PERSONAL = {**SMALL, "server": "average", "local": {"batch_size": 8, "lr": 0.1}}


def kept(store: Folder, state: State, client: str) -> Tensors:
    return take_prefix("personal", store.load(client, state.accepted[client]))


def test_local_only_is_training_alone(points: Site, tmp_path: Path) -> None:
    """In its first round a client does what it does in a federation; nothing of it comes out."""
    federated = Recording(on(points, points_plan(rounds=1)))
    list(federate(points_plan(rounds=1), federated, start(points_plan(), points.params())))
    plan, store = points_plan(rounds=1, **LOCAL_ONLY), Folder(tmp_path)
    alone = Recording(on(points, plan, store))
    [(state, ledger)] = federate(plan, alone, start(plan, points.params()))
    assert state.params == {} and not ledger.failed
    assert ledger.bytes_up == ledger.up_headers < 100 * 4
    assert len(alone.jobs[0].payload) < 40
    initial = points.params()
    for reply in federated.replies:
        assert not isinstance(reply, Failure)
        theirs = unpack(reply.client, reply.payload, plan.uplink, layout(initial)).delta
        mine = kept(store, state, reply.client)
        assert equal(mine, {name: x + theirs[name] for name, x in initial.items()})


def test_clients_go_on_from_their_own_tensors(points: Site, tmp_path: Path) -> None:
    plan, store = points_plan(rounds=2, cohort=24, **LOCAL_ONLY), Folder(tmp_path)
    site, initial, client = replace(points, plan=plan), points.params(), points.data.clients[0]
    rounds = federate(plan, on(points, plan, store), start(plan, initial))
    one, two = (client_params(site, state, store, client)["head.weight"] for state, _ in rounds)
    assert not torch.equal(one, initial["head.weight"]) and not torch.equal(two, one)


def test_what_is_personal_does_not_travel_and_the_rest_does(points: Site, tmp_path: Path) -> None:
    plan, store = points_plan(rounds=2, personal=["*.bias"]), Folder(tmp_path)
    recording = Recording(on(points, plan, store))
    *_, (state, _) = federate(plan, recording, start(plan, points.params()))
    assert list(state.params) == ["head.weight"]
    assert not torch.equal(state.params["head.weight"], points.params()["head.weight"])
    for client, at in state.accepted.items():
        assert list(take_prefix("personal", store.load(client, at))) == ["head.bias"]
    whole = Recording(on(points, points_plan(rounds=1)))
    list(federate(points_plan(rounds=1), whole, start(points_plan(), points.params())))
    saved = len(whole.jobs[0].payload) - len(recording.jobs[0].payload)
    assert saved >= 4 * points.params()["head.bias"].numel()


def test_a_reply_that_was_not_counted_is_forgotten_by_its_client(
    points: Site, tmp_path: Path
) -> None:
    plan, store = points_plan(rounds=1, cohort=24, **LOCAL_ONLY), Folder(tmp_path)
    victim = points.data.clients[3]
    lossy = Tampering(on(points, plan, store), {victim: lambda reply: Failure(victim, "lost")})
    [(state, _)] = federate(plan, lossy, start(plan, points.params()))
    assert victim not in state.accepted
    assert equal(client_params(replace(points, plan=plan), state, store, victim), points.params())


def test_a_personal_tensor_that_diverges_is_a_named_failure(points: Site, tmp_path: Path) -> None:
    plan = points_plan(rounds=1, local={"lr": 1e38, "batch_size": 4}, **LOCAL_ONLY)
    [(state, ledger)] = run(points, plan, Folder(tmp_path))
    assert len(ledger.failed) == 4 and all(
        "diverged" in reason for reason in ledger.failed.values()
    )
    assert state.accepted == {}


@pytest.mark.parametrize("codec", sorted(names("codec")))
def test_nothing_travels_through_every_codec(points: Site, tmp_path: Path, codec: str) -> None:
    part = build("codec", codec)
    upward = Fact.SPARSE in offered_by(part) or getattr(part, "reads_sent", False)
    downlink = "dense" if upward else codec
    uplink = "dense" if getattr(part, "follows", False) else codec
    plan = points_plan(rounds=2, uplink=uplink, downlink=downlink, **LOCAL_ONLY)
    assert all(
        not ledger.failed and not ledger.note for _, ledger in run(points, plan, Folder(tmp_path))
    )


@pytest.mark.parametrize(
    ("aggregator", "server"),
    [
        (aggregator, server)
        for aggregator in sorted(set(names("aggregator")) - {"class_rows"})  # needs a shared head
        for server in sorted(names("server"))
        if server == "average" or not getattr(build("aggregator", aggregator), "plain", False)
    ],
)
def test_nothing_travels_through_every_server(
    points: Site, tmp_path: Path, aggregator: str, server: str
) -> None:
    plan = points_plan(rounds=2, aggregator=aggregator, server=server, **LOCAL_ONLY)
    assert all(
        not ledger.failed and not ledger.note for _, ledger in run(points, plan, Folder(tmp_path))
    )


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match=r"matches no trained tensor; there are head\.weight, head\.bias"
    ):
        open_site(points_plan(personal=["clasifier.*"]))
    with pytest.raises(PlanError, match="control variates belong to tensors that travel"):
        read_plan({**POINTS, "personal": ["*"], "local": {"correction": "scaffold"}})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Site, dict[str, Any]]:
    """A run with personal heads, on the command line's way."""
    plan = read_plan({**PERSONAL, "personal": ["*.bias"], "rounds": 2})
    site, folder = open_site(plan), create(plan, tmp_path_factory.mktemp("personal") / "run")
    run_folder(folder, site)
    return folder.path, site, summarize(folder, site)


def test_held_out_metrics_are_the_mean_over_the_clients_models(
    finished: tuple[Path, Site, dict[str, Any]],
) -> None:
    path, _, summary = finished
    with pytest.raises(RunError, match=r"cannot be exported: .* are each client's own"):
        read_result(path, OWN)
    result = fedpeft("evaluate", path, "--per-client")
    assert result.exit_code == 0, result.stderr
    assert f"{summary['accuracy_last']:.4f}" in result.stdout


def test_client_models_are_told_apart(points: Site, tmp_path: Path) -> None:
    plan, store = points_plan(rounds=1, cohort=24, **LOCAL_ONLY), Folder(tmp_path)
    site = replace(points, plan=plan)
    [(state, _)] = run(points, plan, store)
    each = [
        measure(site, client_params(site, state, store, client))["accuracy"]
        for client in site.data.clients
    ]
    assert held_out(site, state, store)["accuracy"] == pytest.approx(sum(each) / len(each))
    assert len(set(each)) > 1
    found = client_accuracy(site, state, store)
    assert found is not None and found["mean"] > sum(each) / len(each), (
        "a client knows its own classes best"
    )


def test_client_accuracy_weighs_classes_as_the_client_has_them(
    points: Site, tmp_path: Path
) -> None:
    """By hand: the model calls everything class 0, so a client's accuracy is its share of class
    0."""
    always = {"head.weight": torch.zeros(3, 8), "head.bias": torch.tensor([1.0, 0.0, 0.0])}
    found = client_accuracy(points, State(1, always), Folder(tmp_path))
    assert found is not None
    label, parts = points.data.train["label"], points.data.parts  # type: ignore[attr-defined]
    shares = {client: float((label[part] == 0).double().mean()) for client, part in parts.items()}
    assert found["each"] == pytest.approx(shares)
    values = sorted(shares.values())
    assert found["mean"] == pytest.approx(sum(values) / 24)
    assert found["worst_decile"] == pytest.approx(sum(values[:2]) / 2)
    assert found["best_decile"] == pytest.approx(sum(values[-2:]) / 2)
    assert found["std"] == pytest.approx(float(torch.tensor(values).double().std(correction=0)))


def test_the_summary_has_it(finished: tuple[Path, Site, dict[str, Any]]) -> None:
    _, site, summary = finished
    assert set(summary["client_accuracy"]) == {"mean", "worst_decile", "best_decile", "std", "each"}
    assert set(summary["client_accuracy"]["each"]) == set(site.data.clients)
