"""Clients that count by their loss (q-FedAvg)."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import pytest
import torch
from contributions import merge, study
from parts import Odd
from rounds import Recording, Tampering, changed, distance, last, on, points_plan, round_of, run
from torch.nn.functional import cross_entropy

from fedpeft import PlanError
from fedpeft.algorithms.fedavg import average
from fedpeft.algorithms.q_ffl import QFFL
from fedpeft.core.conversation import Answer, Ask, Message, replay
from fedpeft.core.tensors import equal, finite, layout
from fedpeft.core.types import Division, Examples, Reply, State, Table, Update
from fedpeft.deploy.consent import consent_to
from fedpeft.engines.inprocess import InProcess
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.oneshot.rules import Rules
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site, site_of
from fedpeft.storage.client_memory import Folder
from fedpeft.storage.files import load_tensors
from fedpeft.wire.payloads import message_of, pack, unpack

PLAIN = {"name": "sgd", "momentum": 0.0, "nesterov": False}


def q_ffl(q: float) -> dict[str, Any]:
    return {"algorithms": [{"name": "q_ffl", "q": q}]}


def bowls_plan(q: float, rounds: int = 1) -> Plan:
    return read_plan(
        {
            "task": "parts:Bowls",
            "method": "full",
            "local": {"lr": 0.1, "optimizer": PLAIN},
            "cohort": 4,
            "weighting": "uniform",
            "rounds": rounds,
            **q_ffl(q),
        }
    )


def bowls(q: float, clients: Mapping[str, tuple[float, float]], rounds: int = 1) -> Site:
    """Clients with one example (x, a) each: the loss is a/2·(w − x)², from w = 1, in steps of
    0.1."""
    own = torch.tensor(list(clients.values()))
    table = Table({"point": own[:, :1], "curvature": own[:, 1]})
    division = Division({name: torch.tensor([k]) for k, name in enumerate(clients)})
    return site_of(bowls_plan(q, rounds), Examples(table, table, ()), division)


def end(site: Site) -> tuple[float, Ledger]:
    state, ledger = run(site, site.plan)[-1]
    assert not ledger.failed and not ledger.note
    return float(state.params["w"]), ledger


def test_a_step_by_hand() -> None:
    """Client a looks for 0 and b for 4, so that with L = 10 the gradients L·(w − w_k) are 1 and −3,
    and the losses 1/2 and 9/2.

    q = 1: h = 1·1 + 10·1/2 = 6 and 9 + 10·9/2 = 54; w = 1 − (1/2·1 − 9/2·3) / 60 = 1 + 13 / 60.
    q = 2: h = 2·1/2·1 + 10·1/4 = 3.5 and 2·9/2·9 + 10·81/4 = 283.5;
    w = 1 − (1/4·1 − 81/4·3) / 287 = 1 + 60.5 / 287.
    """
    two = {"a": (0.0, 1.0), "b": (4.0, 1.0)}
    one, ledger = end(bowls(1.0, two))
    assert one == pytest.approx(1 + 13 / 60, rel=1e-6)
    assert ledger.weights == pytest.approx({"a": 0.6, "b": 5.4}, rel=1e-6)
    assert end(bowls(2.0, two))[0] == pytest.approx(1 + 60.5 / 287, rel=1e-6)
    assert end(bowls(0.0, two))[0] == pytest.approx(1.1, rel=1e-6)


def test_one_client() -> None:
    """F = 9/2, L·(w − w_k) = −3: w = 1 + 9/2·3 / (9 + 10·9/2) = 1 + 1/4."""
    got, _ = end(bowls(1.0, {"b": (4.0, 1.0)}))
    assert got == pytest.approx(1.25, rel=1e-6)


def test_with_q_the_worst_client_counts_more_and_does_better() -> None:
    """Client a has the steeper bowl and the mean goes its way; of b's loss alone, w = 4 is the
    best."""
    shares, losses = [], []
    for q in (0.0, 0.1, 1.0, 5.0):
        site = bowls(q, {"a": (0.0, 1.0), "b": (4.0, 0.25)}, rounds=60)
        rounds = run(site, site.plan)
        first = rounds[0][1].weights
        shares.append(first["b"] / (first["a"] + first["b"]))
        w = float(rounds[-1][0].params["w"])
        losses.append(max(w**2 / 2, (4 - w) ** 2 / 8))
    assert shares == sorted(shares) and shares[0] == 0.5 and shares[-1] > 0.95
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("q", [0.0, 0.1, 1.0, 5.0, 30.0])
def test_a_loss_of_nothing_has_next_to_no_say(q: float) -> None:
    """Client a is where it wants to be, and counts (1e-10)^q; b counts 4.5^q·(1 + q·10·0.3²/4.5),
    which is 1.2·4.5 at q = 1."""
    got, _ = end(bowls(q, {"a": (1.0, 1.0), "b": (4.0, 1.0)}))
    alone, _ = end(bowls(q, {"b": (4.0, 1.0)}))
    counts = 4.5**q * (1 + 0.2 * q)
    assert got - 1 == pytest.approx((alone - 1) * counts / (counts + 1e-10**q), rel=1e-5)
    still, _ = end(bowls(q, {"a": (1.0, 1.0), "b": (1.0, 2.0)}))
    assert still == 1.0


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_q_of_0_is_the_mean_to_the_bit(points: Site, weighting: str) -> None:
    plain = points_plan(weighting=weighting)
    same = replace(plain, algorithms=(QFFL(0.0),))
    for (one, ours), (other, theirs) in zip(run(points, same), run(points, plain), strict=True):
        assert equal(one.params, other.params)
        assert ours.weights == theirs.weights


def test_running_statistics_go_their_whole_way() -> None:
    """A client alone: what is learned takes 1 / (1 + r) of its way, and r = 10·4/2 here."""
    begun = {"w": torch.zeros(1), "bn.running_mean": torch.zeros(1)}
    delta = {"w": torch.tensor([2.0]), "bn.running_mean": torch.ones(1)}
    state, plan = State(0, begun), bowls_plan(1.0)
    update = Update("a", delta, told={"received_loss": 2.0})
    answer = Answer("a", message_of(update), Message({"params": begun}))
    round = round_of(plan, state, ["a"], Ledger(0))
    heard = [(Ask("fit", {}, lambda _: {}, updates=True), [answer])]
    got = replay(plan.algorithms[0].round(state, round, average), heard).params
    assert float(got["w"]) == pytest.approx(2 / 21, rel=1e-6)
    assert float(got["bn.running_mean"]) == 1.0


@pytest.mark.parametrize(
    "told",
    [{}, *({"received_loss": x} for x in (float("nan"), float("inf"), -1.0, True, 1, "1", [1.0]))],
)
def test_what_is_no_loss_is_refused(told: Mapping[str, Any]) -> None:
    plan = bowls_plan(1.0)
    [check] = plan.hooks("check_update")
    update = Update("a", {"w": torch.ones(1)}, told=told)
    with pytest.raises(ValueError, match="tells no loss of what it received"):
        check(update, State(0, {"w": torch.ones(1)}), plan)


@pytest.mark.parametrize("q", [2.0, 30.0])
def test_a_loss_that_no_mean_could_hold_costs_its_client_alone(points: Site, q: float) -> None:
    plan, clients = points_plan(**q_ffl(q), cohort=24), points.data.clients

    def lying(loss: float) -> Any:
        def harm(reply: Any) -> Any:
            update = unpack(reply.client, reply.payload, plan.uplink, layout(points.params()))
            told = {"received_loss": loss}
            return replace(reply, payload=pack(replace(update, told=told), plan.uplink))

        return harm

    harm = {clients[0]: lying(1e200), clients[1]: lying(float("nan"))}
    engine = Tampering(on(points, plan), harm)
    state, ledger = next(federate(plan, engine, start(plan, points.params())))
    assert sorted(ledger.failed) == sorted(clients[:2])
    assert "its loss of 1e+200 is too large to count by" in ledger.failed[clients[0]]
    assert finite(state.params) and not ledger.note


def test_a_client_whose_loss_is_not_finite_says_so(tmp_path: Path) -> None:
    plan = points_plan(**q_ffl(1.0), cohort=24)
    site = open_site(plan)
    bad = site.data.clients[0]
    trigger = float(next(iter(site.data.training(bad)))["point"][0, 0])
    odd = replace(plan, task=Odd("infinite", trigger))
    state, ledger = next(federate(odd, InProcess(open_site(odd), Folder(tmp_path))))
    assert list(ledger.failed) == [bad]
    assert "its loss is inf before it trains" in ledger.failed[bad]
    assert finite(state.params)


def test_one_by_one_and_together(points: Site) -> None:
    plan = points_plan(**q_ffl(1.0))
    site = replace(points, plan=plan)
    engine, begun = Cohort(site), points.params()
    here, together = run(site, plan), list(federate(plan, engine, start(plan, begun)))
    assert not engine.alone
    assert distance(changed(last(together), begun), changed(last(here), begun)) <= 1e-4


def test_a_client_measures_with_its_own_tensors_in_their_places(tmp_path: Path) -> None:
    plan = points_plan(**q_ffl(1.0), personal=["*.bias"], rounds=2)
    site, store = open_site(plan), Folder(tmp_path)
    engine = Recording(on(site, plan, store))
    rounds = federate(plan, engine, start(plan, site.params()))
    state, _ = next(rounds)
    clients = site.data.clients
    kept = {client: store.load(client, 0).get("personal/head.bias") for client in clients}
    next(rounds)
    second = [job.round == 1 for job in engine.jobs]
    for reply in compress(engine.replies, second):
        assert isinstance(reply, Reply)
        update = unpack(reply.client, reply.payload, plan.uplink, layout(state.params))
        own = kept[reply.client]
        bias = site.params()["head.bias"] if own is None else own
        [batch] = site.data.training(reply.client)
        logits = batch["point"] @ state.params["head.weight"].T + bias
        loss = float(cross_entropy(logits, batch["label"]))
        assert update.told["received_loss"] == pytest.approx(loss, rel=1e-5)


def test_files_of_one_round_merge_to_its_mean(tmp_path: Path) -> None:
    four = study(tmp_path, 'algorithms=[{ name = "q_ffl", q = 2.0 }]', "partition.alpha=0.1")
    merge(four.path, four.files, tmp_path / "merged", Rules())
    site = open_site(four.invitation.plan)
    [(state, _)] = run(site, site.plan)
    got = load_tensors(tmp_path / "merged" / "checkpoint" / "state.safetensors")[0]
    assert all(torch.equal(got[f"params/{name}"], x) for name, x in state.params.items())


def test_an_owner_reads_what_is_told() -> None:
    site = bowls(1.0, {"a": (0.0, 1.0)})
    told = dict(consent_to(site, "a", ["a"]).lines)["not hidden"]
    assert told.endswith("the loss of each model that is sent here, on the examples here")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"exchange": {"name": "secure", "threshold": 3}, "weighting": "uniform"},
            'which sums hide: leave it out, or set exchange = "plain"',
        ),
        ({"aggregator": "median"}, 'set aggregator = "mean"'),
        ({"local": {"optimizer": "adamw"}}, 'set local.optimizer = "sgd"'),
        (
            {"local": {"correction": "scaffold"}, "server": "scaffold"},
            "shares control variates, whose mean counts all alike: leave it out",
        ),
        (
            {"algorithms": ["q_ffl", {"name": "fedbuff", "buffer": 3}]},
            "asynchronous steps have several",
        ),
        (
            {"stages": [{"name": "local_dp", "noise_multiplier": 1.0}], "weighting": "uniform"}
            | {"delta": 1e-3},
            "without noise: leave it out of a private plan",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**{"algorithms": ["q_ffl"], **changes})


@pytest.mark.parametrize("q", [-0.1, 30.5, float("nan"), float("inf")])
def test_q_out_of_range(q: float) -> None:
    with pytest.raises((PlanError, ValueError), match="q must be between 0 and 30"):
        QFFL(q)


@pytest.mark.parametrize("name", ["q_ffl", "minimax", "fisher"])
def test_what_weighs_clients_itself_is_refused_beside_ef21(name: str) -> None:
    """The server's mean of all clients would be of other weights than the round's."""
    changes = {"algorithms": [name], "stages": ["ef21"], "weighting": "uniform", "uplink": "topk"}
    with pytest.raises(PlanError, match=r"keeps a mean over all clients.*leave out one of them"):
        points_plan(**changes)
