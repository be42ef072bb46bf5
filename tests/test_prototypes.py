"""Means of features by class, which clients tell and compare theirs with (FedPCL)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import Recording, on, points_plan, round_of, run
from torch import Tensor
from torch.nn.functional import normalize

from fedpeft import PlanError
from fedpeft.algorithms.prototypes import PHASE, Prototypes, _check
from fedpeft.codecs.dense import Dense
from fedpeft.core.conversation import Answer, Flow, Message
from fedpeft.core.rounds import Round
from fedpeft.core.types import Reply, State
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import open_site
from fedpeft.storage.client_memory import Folder
from fedpeft.terms.prototypes import PrototypeContrast
from fedpeft.wire.payloads import decode_sent

PLAN: dict[str, Any] = {
    "task": {"name": "parts:ClassedPoints", "network": "hidden"},
    "method": "full",
    "algorithms": ["prototypes"],
    "local": {"lr": 0.05, "batch_size": 16, "terms": ["prototypes"]},
    "rounds": 2,
}
OWN = {"routing": [{"name": "personal", "patterns": ["first.*"]}]}


def held(
    mean: list[list[float]], known: list[float], *peers: list[list[float]]
) -> dict[str, Tensor]:
    two = torch.tensor(mean)
    sets = torch.tensor(peers) if peers else torch.zeros(0, *two.shape)
    named = {"mean": two, "known": torch.tensor(known), "peers": sets}
    return {f"prototypes/{name}": x for name, x in named.items()}


UNIT, TURNED = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("z", "label", "peers", "loss"),
    [
        ([1.0, 0.0], 0, [], 0.313262),  # ln(1 + 1/e)
        ([3.0, 4.0], 1, [], 0.598139),  # as (0.6, 0.8): ln(1 + exp(−0.2))
        ([1.0, 0.0], 0, [UNIT], 2 * 0.313262),
        ([1.0, 0.0], 0, [UNIT, TURNED], 0.313262 + (0.313262 + 1.313262) / 2),
    ],
)
def test_the_contrast_by_hand(z: list[float], label: int, peers: Any, loss: float) -> None:
    outputs, batch = {"features": torch.tensor([z])}, {"label": torch.tensor([label])}
    found = PrototypeContrast(temperature=1.0).loss(outputs, batch, held(UNIT, [1, 1], *peers))
    assert found.item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("known", [[1.0, 0.0], [0.0, 0.0]], ids=str)
def test_a_class_without_a_prototype_is_in_no_softmax(known: list[float]) -> None:
    """Of one class there is nothing to tell it from, and of none nothing at all."""
    z = torch.tensor([[1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    batch = {"label": torch.tensor([0, 1])}
    loss = PrototypeContrast().loss({"features": z}, batch, held(UNIT, known, UNIT))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert loss.tolist() == [0, 0] and torch.equal(gradient, torch.zeros(2, 2))


def test_an_example_has_one_row_of_features_and_one_class() -> None:
    for outputs, batch in (
        ({"features": torch.zeros(1, 2, 2)}, {"label": torch.tensor([0])}),
        ({"features": torch.zeros(1, 2)}, {}),
    ):
        with pytest.raises(PlanError, match="one class and one row of features"):
            PrototypeContrast().loss(outputs, batch, held(UNIT, [1, 1]))


def told(sums: list[list[float]], counts: list[float]) -> Message:
    return Message({PHASE: {"sums": torch.tensor(sums), "counts": torch.tensor(counts)}})


def shared_after(part: Prototypes, state: State, answers: dict[str, Message]) -> dict[str, Tensor]:
    """What the cohort a, b, c receives to train with, after these answered."""
    seen: list[State] = []

    def inner(given: State, round: Round) -> Flow:
        seen.append(given)
        yield from ()
        return given

    plan = points_plan(rounds=1)
    flow = part.round(state, round_of(plan, state, ["a", "b", "c"], Ledger(0)), inner)
    next(flow)
    with pytest.raises(StopIteration):
        flow.send(iter([Answer(client, message) for client, message in answers.items()]))
    return dict(seen[0].shared["prototypes"])


def begun(part: Prototypes) -> State:
    params = {"head.weight": torch.zeros(3, 2)}
    names = part.shares(params)["prototypes"]
    return State(0, params, {"prototypes": {n: torch.zeros(shape) for n, shape, _ in names}}, {})


ANSWERS = {
    "a": told([[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]], [2, 0, 0]),
    "b": told([[0.0, 1.0], [0.0, 3.0], [0.0, 0.0]], [1, 3, 0]),
}


def test_the_servers_means_by_hand() -> None:
    """a has two examples of class 0; b one of it and three of class 1; nobody has class 2, and c
    does not answer, so that the mean of all stands in its place."""
    part = Prototypes(peers=3)
    got = shared_after(part, begun(part), ANSWERS)
    mean = torch.tensor([[2 / 3, 1 / 3], [0, 1], [0, 0]])
    torch.testing.assert_close(got["mean"], mean)
    assert got["known"].tolist() == [1, 1, 0]
    torch.testing.assert_close(got["peers"][0], torch.tensor([[1.0, 0], [0, 1], [0, 0]]))
    torch.testing.assert_close(got["peers"][1], torch.tensor([[0.0, 1], [0, 1], [0, 0]]))
    torch.testing.assert_close(got["peers"][2], mean)


def test_a_class_that_nobody_has_now_keeps_its_prototype() -> None:
    part = Prototypes(peers=1)
    state = begun(part)
    first = shared_after(part, state, ANSWERS)
    later = replace(state, shared={"prototypes": first})
    alone = {"a": told([[0.0, 2.0], [0.0, 0.0], [0.0, 0.0]], [2, 0, 0])}
    got = shared_after(part, later, alone)
    torch.testing.assert_close(got["mean"], torch.tensor([[0.0, 1], [0, 1], [0, 0]]))
    assert got["known"].tolist() == [1, 1, 0]
    nobody = shared_after(part, later, {})
    assert torch.equal(nobody["mean"], first["mean"]) and torch.equal(
        nobody["peers"][0], first["mean"]
    )


def test_a_client_tells_features_of_its_own_model(tmp_path: Path) -> None:
    """In the second round they are those of the layer that it keeps."""
    partition = {"name": "dirichlet", "clients": 3, "alpha": 10.0}
    plan = points_plan(**PLAN, **OWN, partition=partition, cohort=3)
    site, store = open_site(plan), Folder(tmp_path)
    engine = Recording(on(site, plan, store))
    (one, first), _ = federate(plan, engine, start(plan, site.params()))
    assert not first.failed and set(one.params) == {"head.weight", "head.bias"}
    jobs = [job for job in engine.jobs if (job.phase, job.round) == (PHASE, 1)]
    place = engine.jobs.index(jobs[0])
    reply = engine.replies[place]
    assert isinstance(reply, Reply)
    got = decode_sent(reply.payload, Dense(), None).tensors[PHASE]
    client = jobs[0].client
    own = Folder(tmp_path / "again")
    run(site, replace(plan, rounds=1), own)
    kept = own.load(client, 0)
    sums = torch.zeros(3, 8)
    for batch in site.data.training(client):
        weight, bias = (kept[f"personal/first.{name}"] for name in ("weight", "bias"))
        z = normalize((batch["point"] @ weight.T + bias).tanh()) * batch["mask"][:, None]
        sums.index_add_(0, batch["label"], z)
    torch.testing.assert_close(got["sums"], sums, atol=1e-5, rtol=1e-4)


def test_prototypes_go_down_to_train_and_not_to_ask() -> None:
    plan, plain = points_plan(**PLAN, cohort=4), points_plan(**{**PLAN, "local": {"lr": 0.05}})
    many = replace(plan, algorithms=(Prototypes(peers=100),))
    site = open_site(plan)
    ledgers = [run(site, each)[0][1] for each in (many, plan, plain)]
    more = ledgers[0].bytes_down - ledgers[1].bytes_down
    assert more == pytest.approx(4 * 96 * 3 * 8 * 4, rel=0.01), "four clients, 96 sets more"
    assert ledgers[1].bytes_down == ledgers[2].bytes_down


@pytest.mark.parametrize("peers", [0, 9])
def test_any_number_of_sets_is_trained_with_and_measured(peers: int, tmp_path: Path) -> None:
    algorithms = {"algorithms": [{"name": "prototypes", "peers": peers}]}
    partition = {"name": "dirichlet", "clients": 6, "alpha": 1.0, "held_out": 0.2}
    plan = points_plan(**{**PLAN, **OWN, **algorithms, "partition": partition, "cohort": 6})
    site, store = open_site(plan), Folder(tmp_path)
    state, ledger = run(site, plan, store)[-1]
    assert not ledger.failed and ledger.reports["prototypes"] == {"classes": 3, "peers": peers}
    found = own_held_out(site, state, store)
    assert found is not None and set(found["metrics"]) >= {"accuracy"}


@pytest.mark.parametrize(
    ("sums", "counts", "words"),
    [
        ([[3.1, 0.0]], [3.0], "longer than so many features of length 1"),
        ([[0.1, 0.0]], [0.0], "no example"),
        ([[0.1, 0.0]], [0.5], "no numbers of examples"),
        ([[0.1, 0.0]], [-1.0], "no numbers of examples"),
    ],
)
def test_what_no_client_can_have_is_refused(sums: Any, counts: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _check("a", told(sums, counts))
    _check("a", told([[3.0, 0.0]], [3.0]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithms": []}, r'set algorithms = \["prototypes"\]'),
        ({"algorithms": ["prototypes", "ifca"]}, "features of one"),
        ({"algorithms": ["prototypes", {"name": "fedbuff", "buffer": 3}]}, "leave"),
        ({"algorithms": [{"name": "prototypes", "peers": -1}]}, "at least 0"),
        (
            {"local": {"name": "dp_sgd", "noise_multiplier": 1.0, "terms": ["prototypes"]}}
            | {"weighting": "uniform", "privacy": {"delta": 1e-3, "accountant": "rdp"}},
            "without noise: leave it out of a private plan",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**{**PLAN, **changes})


def test_a_head_that_stays_with_clients_is_refused_before_anybody_trains() -> None:
    plan = points_plan(**PLAN, routing=[{"name": "personal", "patterns": ["*"]}])
    with pytest.raises(PlanError, match="needs a linear head that is trained and shared"):
        start(plan, open_site(plan).params())
