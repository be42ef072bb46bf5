"""Models are measured where the owners' held-out examples lie: counts and sums leave alone."""

import re
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import Tampering, points_plan
from torch import Tensor

from fedpeft.compute.tally import (
    CONFIDENCE,
    CONFIDENT,
    CONFUSION,
    EXAMPLES,
    SCORES,
    tally_layout,
)
from fedpeft.core.conversation import Message
from fedpeft.core.interfaces import Engine
from fedpeft.core.types import Failure, Reply, State, Tensors, Weighted
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.processes import Processes
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.errors import PlanError
from fedpeft.evaluation.measure import measure
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.evaluators.owners import PHASE
from fedpeft.plan.coding import answer_codec
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.loop import ask_owners, federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.frames import encode_tensors, frame
from fedpeft.wire.payloads import decode_answer, encode_answer

DIGITS: dict[str, Any] = {
    "method": "head",
    "partition": {"name": "dirichlet", "clients": 6, "alpha": 1.0, "held_out": 0.3},
    "local": {"lr": 0.05},
    "rounds": 1,
    "cohort": 3,
    "evaluate_at": ["owners"],
    "metrics": ["auroc", "ece", "macro_f1"],
}
POINTS: dict[str, Any] = {
    "task": {"name": "parts:ClassedPoints"},
    "partition": {"name": "dirichlet", "clients": 4, "alpha": 10.0, "held_out": 0.3},
    "rounds": 2,
    "cohort": 2,
    "evaluate_at": ["owners", "server"],
    "metrics": ["auroc", "ece"],
}
Report = dict[str, Any]


def told(ledger: Ledger) -> Report:
    found: Report = ledger.reports["owners"]
    return found


def run(plan: Plan, engine: Engine, site: Site) -> list[tuple[State, Ledger]]:
    return list(federate(plan, engine, start(plan, site.params()), classes=site.classes))


@pytest.fixture(scope="module")
def digits() -> Site:
    return open_site(read_plan(DIGITS))


@pytest.fixture(scope="module")
def points() -> Site:
    return open_site(points_plan(**POINTS))


def test_the_owners_counts_are_those_of_all_their_examples_in_one_place(digits: Site) -> None:
    """To the integer; the model is one that was trained a little."""
    [(state, ledger)] = run(digits.plan, InProcess(digits), digits)
    found, data = told(ledger), digits.data
    rows: Any = torch.cat([data.apart[client] for client in data.clients])  # type: ignore[attr-defined]
    central = replace(digits, data=replace(data, test={n: x[rows] for n, x in data.train.items()}))  # type: ignore
    exact = measure(central, state.flat)
    labels = central.data.test["label"]  # type: ignore[attr-defined]
    confusion = torch.tensor(found["confusion"])
    assert confusion.sum(1).tolist() == torch.bincount(labels, minlength=10).tolist()
    metrics = {name: one["pooled"] for name, one in found["metrics"].items()}
    assert int(confusion.diagonal().sum()) == round(exact["accuracy"] * len(rows))
    assert metrics["accuracy"] == pytest.approx(exact["accuracy"], abs=1e-12)
    assert metrics["macro_f1"] == pytest.approx(exact["macro_f1"], abs=1e-12)
    assert metrics["ece"] == pytest.approx(exact["ece"], abs=1e-9)
    assert metrics["loss"] == pytest.approx(exact["loss"], rel=1e-6)
    assert metrics["auroc"] == pytest.approx(exact["auroc"], abs=0.01)
    assert 0.55 < exact["auroc"] < 1, "it has learnt something"


def test_each_owner_is_what_the_simulation_measures_of_it(points: Site, tmp_path: Path) -> None:
    _, (state, ledger) = run(points.plan, InProcess(points), points)
    own = own_held_out(points, state, Folder(tmp_path))
    assert own is not None and own["examples"] == told(ledger)["examples"]
    for name in ("accuracy", "loss"):
        want, got = own["metrics"][name], told(ledger)["metrics"][name]
        assert got["each"] == pytest.approx(want["each"])
        assert (got["mean"], got["worst_tenth"]) == pytest.approx(
            (want["mean"], want["worst_tenth"])
        )
        assert got["pooled"] == pytest.approx(want["weighted"])


def test_engines_measure_the_same(points: Site, tmp_path: Path) -> None:
    plan = points.plan
    engines: dict[str, Any] = {
        "one": InProcess(points, Folder(tmp_path / "a")),
        "many": Processes(points, Folder(tmp_path / "b"), workers=2),
        "stack": Cohort(points, Folder(tmp_path / "c")),
    }
    found = {name: run(plan, engine, points) for name, engine in engines.items()}
    for engine in engines.values():
        engine.close()
    for one, many, stack in zip(*found.values(), strict=True):
        assert told(one[1]) == told(many[1]) and one[1].up == many[1].up
        assert told(stack[1])["examples"] == told(one[1])["examples"]
        for name, metric in told(one[1])["metrics"].items():
            assert told(stack[1])["metrics"][name]["pooled"] == pytest.approx(
                metric["pooled"], abs=1e-3
            )


def test_training_is_the_same_whether_owners_are_asked_or_not(points: Site) -> None:
    plain = replace(points.plan, evaluate_at=read_plan({}).evaluate_at, metrics=())
    with_owners = run(points.plan, InProcess(points), points)
    without = run(plain, InProcess(replace(points, plan=plain)), points)
    for (state, _), (other, _) in zip(with_owners, without, strict=True):
        assert all(torch.equal(x, other.params[name]) for name, x in state.params.items())


def test_what_was_asked_is_counted_and_everybody_is_asked(points: Site) -> None:
    for _, ledger in run(points.plan, InProcess(points), points):
        report = told(ledger)
        assert set(report["examples"]) == set(ledger.up) == set(points.data.clients)
        trained = set(ledger.weights)
        assert len(trained) == 2
        rest = sum(size for client, size in ledger.up.items() if client not in trained)
        assert rest < report["bytes_up"] < ledger.bytes_up
        assert report["bytes_down"] < ledger.bytes_down
        assert report["failed"] == {} and report["without"] == [] and not ledger.failed


def test_owners_are_asked_when_the_server_measures_and_at_the_end(points: Site) -> None:
    plan = replace(points.plan, rounds=5, evaluate_every=2)
    asked = ["owners" in ledger.reports for _, ledger in run(plan, InProcess(points), points)]
    assert asked == [False, True, False, True, True]


def test_no_scores_leave_an_owner_that_no_metric_needs(points: Site) -> None:
    few = replace(points.plan, metrics=(), rounds=1)
    [(_, ledger)] = run(few, InProcess(replace(points, plan=few)), points)
    [(_, whole), *_] = run(points.plan, InProcess(points), points)
    assert told(ledger)["bytes_up"] < told(whole)["bytes_up"] / 2
    assert list(told(ledger)["metrics"]) == ["accuracy", "loss"]


def test_owners_without_held_out_examples_are_counted_and_told() -> None:
    plan = points_plan(
        **{**POINTS, "partition": {"name": "dirichlet", "clients": 24, "alpha": 0.1}},
        seed=2,
    )
    site = open_site(plan)
    data: Any = site.data
    some = {client: part[:1] for client, part in list(data.parts.items())[:2]}
    site = replace(site, data=replace(data, apart=some))
    [(_, ledger), *_] = run(plan, InProcess(site), site)
    assert told(ledger)["examples"] == dict.fromkeys(some, 1)
    assert told(ledger)["without"] == [c for c in data.clients if c not in some]
    nobody = replace(site, data=replace(data, apart={}))
    [(_, ledger), *_] = run(plan, InProcess(nobody), nobody)
    assert told(ledger)["metrics"] == {} and len(told(ledger)["without"]) == 24


def test_counts_travel_deflated(points: Site) -> None:
    """200 bins of each class, twice, in 8 bytes each: most of them are 0."""
    plan, classes = replace(points.plan, rounds=0), len(points.classes)
    raw = 8 * (1 + classes**2 + classes * 2 * 200 + 15 * 3)
    [(_, ledger)] = run(plan, InProcess(points), points)
    assert len(ledger.up) == 4
    assert all(200 < size < raw / 10 for size in ledger.up.values())


def test_a_tally_that_unpacks_to_more_than_was_asked_is_refused(points: Site) -> None:
    """A body of 50 KB is 50 MB of zeros; the server unpacks as many as it asked for."""
    plan, client = replace(points.plan, rounds=0), points.data.clients[1]
    tally = honest_tally(points, client)
    flat = {f"{PHASE}/{name}": x for name, x in tally.items()}
    bomb = encode_tensors(["deflated"], flat, zlib.compress(bytes(50_000_000), 9))
    totals = {name: [1.0, 1.0] for name in ("accuracy", "loss")}
    payload = frame([None, totals], bomb, nested=True)
    engine = Tampering(InProcess(points), {client: lambda _: Reply(client, payload)})
    tracemalloc.start()
    [(_, ledger)] = run(plan, engine, points)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "does not inflate to at most" in told(ledger)["failed"][client]
    assert peak < 20_000_000


Change = Callable[[dict[str, Tensor]], None]


def _negative(tally: dict[str, Tensor]) -> None:
    tally[CONFUSION][0, 0] = -5


def _more_than_it_has(tally: dict[str, Tensor]) -> None:
    tally[EXAMPLES] += 1


def _scores_of_others(tally: dict[str, Tensor]) -> None:
    tally[SCORES][0, 0, 0] += 1


def _sure(tally: dict[str, Tensor]) -> None:
    tally[CONFIDENCE] += 1


def _wrong_ones(tally: dict[str, Tensor]) -> None:
    tally[CONFIDENT] = tally[CONFIDENT].flip(1).contiguous()


def _floats(tally: dict[str, Tensor]) -> None:
    tally[CONFUSION] = tally[CONFUSION].double()


def _another_shape(tally: dict[str, Tensor]) -> None:
    tally[CONFUSION] = tally[CONFUSION][:2].contiguous()


def _no_number(tally: dict[str, Tensor]) -> None:
    tally[CONFIDENCE][0] = float("nan")


def _huge(tally: dict[str, Tensor]) -> None:
    tally[EXAMPLES] += 2**62


def _far_more(tally: dict[str, Tensor]) -> None:
    more = 100_000
    tally[EXAMPLES] += more
    tally[CONFUSION][0, 0] += more
    tally[SCORES][0, 0, -1] += more
    tally[SCORES][1:, 1, 0] += more
    tally[CONFIDENT][-1, 0] += more
    tally[CONFIDENCE][-1] += more


HOSTILE: dict[str, tuple[Change, str]] = {
    "negative": (_negative, "'confusion' go from -5"),
    "more than it has": (_more_than_it_has, "'confusion' are not of the"),
    "scores of others": (_scores_of_others, "'scores' are not of the"),
    "too sure": (_sure, "its probabilities in bin"),
    "right and wrong": (_wrong_ones, "'confident' are not of the"),
    "floats": (_floats, "evaluate/confusion"),
    "shape": (_another_shape, "evaluate/confusion"),
    "nan": (_no_number, "not finite|no finite"),
    "huge": (_huge, "examples; 0 to"),
    "far more than others": (_far_more, "weight_factor"),
}


def _reply_with(honest: Tensors, change: Change, plan: Plan) -> bytes:
    tally = {name: x.clone() for name, x in honest.items()}
    change(tally)
    right, examples = (float(x) for x in (tally[CONFUSION].diagonal().sum(), tally[EXAMPLES]))
    totals = {"accuracy": Weighted(right, examples), "loss": Weighted(1.0, examples)}
    return encode_answer(Message({PHASE: tally}, {"metrics": totals}), plan.lossless)


def honest_tally(site: Site, client: str) -> Tensors:
    """What a client really answers about the model of the start."""
    heard: list[bytes] = []

    def keep(reply: Reply | Failure) -> Reply | Failure:
        assert isinstance(reply, Reply)
        heard.append(reply.payload)
        return reply

    plan = replace(site.plan, rounds=0)
    [(_, _)] = run(plan, Tampering(InProcess(site), {client: keep}), site)
    expected = {PHASE: tally_layout(len(site.classes), plan.metrics_read)}
    said = decode_answer(heard[0], answer_codec(plan, PHASE), expected)
    return said.tensors[PHASE]


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_a_hostile_answer_is_refused_by_name_and_the_rest_goes_on(points: Site, kind: str) -> None:
    change, words = HOSTILE[kind]
    plan, client = replace(points.plan, rounds=0), points.data.clients[1]
    payload = _reply_with(honest_tally(points, client), change, plan)
    engine = Tampering(InProcess(points), {client: lambda _: Reply(client, payload)})
    [(_, ledger)] = run(plan, engine, points)
    report = told(ledger)
    assert list(report["failed"]) == [client] and not ledger.failed
    assert re.search(words, report["failed"][client]), report["failed"]
    assert set(report["examples"]) == set(points.data.clients) - {client}
    assert ledger.refusals == {client: 1}, "it is held against it as a refused update is"


def test_an_honest_answer_that_was_made_anew_is_taken(points: Site) -> None:
    """So that the refusals above are of what was changed."""
    plan, client = replace(points.plan, rounds=0), points.data.clients[1]
    payload = _reply_with(honest_tally(points, client), lambda tally: None, plan)
    engine = Tampering(InProcess(points), {client: lambda _: Reply(client, payload)})
    [(_, ledger)] = run(plan, engine, points)
    assert told(ledger)["failed"] == {}


@pytest.mark.parametrize(
    ("totals", "words"),
    [
        ({"accuracy": Weighted(1e9, 1e9), "loss": Weighted(1.0, 1.0)}, "by its confusion matrix"),
        ({"auroc": Weighted(1.0, 1.0)}, "this task's metrics are accuracy, loss"),
        ({}, "this task's metrics are accuracy, loss"),
    ],
)
def test_metrics_that_the_counts_deny_are_refused(
    points: Site, totals: dict[str, Weighted], words: str
) -> None:
    plan, client = replace(points.plan, rounds=0), points.data.clients[0]
    tally = honest_tally(points, client)
    payload = encode_answer(Message({PHASE: tally}, {"metrics": totals}), plan.lossless)
    engine = Tampering(InProcess(points), {client: lambda _: Reply(client, payload)})
    [(_, ledger)] = run(plan, engine, points)
    assert words in told(ledger)["failed"][client]


def test_no_rounds_measure_the_model_as_it_is(points: Site) -> None:
    plan = replace(points.plan, rounds=0)
    begun = start(plan, points.params())
    [(state, ledger)] = list(federate(plan, InProcess(points), begun))
    assert state is begun and not ledger.weights
    again = ask_owners(points.plan, InProcess(points), begun)
    assert told(again) == told(ledger), "and so does asking about any state"


def test_a_server_that_does_not_know_the_labels_says_so_before_the_first_round(
    points: Site,
) -> None:
    engine = Tampering(InProcess(points), {})
    with pytest.raises(PlanError, match=r"name them in the plan, classes = \["):
        next(federate(points.plan, engine, start(points.plan, points.params())))


def test_a_model_that_gives_no_numbers_is_its_owners_failure(points: Site) -> None:
    plan = replace(points.plan, rounds=0)
    begun = start(plan, points.params())
    name = next(iter(begun.params))
    huge = replace(begun, params={**begun.params, name: begun.params[name] + 3e38})
    report = told(ask_owners(plan, InProcess(points), huge))
    assert set(report["failed"]) == set(points.data.clients)
    assert all("infinite or no numbers" in why for why in report["failed"].values())


def test_owners_measure_their_own_models(tmp_path: Path) -> None:
    """Personal biases are each client's own, and the server has none of them."""
    plan = points_plan(
        **{**POINTS, "cohort": 4}, routing=[{"name": "personal", "patterns": ["*.bias"]}]
    )
    site, store = open_site(plan), Folder(tmp_path)
    rounds = run(plan, InProcess(site, store), site)
    state, ledger = rounds[-1]
    own = own_held_out(site, state, store)
    assert own is not None
    got = told(ledger)["metrics"]["accuracy"]["each"]
    assert got == pytest.approx(own["metrics"]["accuracy"]["each"])
