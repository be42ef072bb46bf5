"""Several models, of which each client trains the one that fits it best (IFCA)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounds import Recording, on, points_plan, run

from fedpeft import PlanError
from fedpeft.algorithms.ifca import IFCA, blurred
from fedpeft.algorithms.received_loss import least
from fedpeft.core.conversation import Message
from fedpeft.core.tensors import add_prefix, equal, finite
from fedpeft.core.types import Division, Examples, State, Table
from fedpeft.deploy.consent import consent_to
from fedpeft.deploy.terms import check_node_plan
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.evaluation.client_model import client_params
from fedpeft.evaluation.measure import held_out
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site, site_of
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.record import record_of
from fedpeft.storage.client_memory import Folder, Nowhere

PLAIN = {"name": "sgd", "momentum": 0.0, "nesterov": False}
TWO = {"a": 0.0, "b": 10.0}


def bowls_plan(**changes: Any) -> Plan:
    plan = {
        "task": "parts:Bowls",
        "method": "full",
        "local": {"lr": 0.5, "optimizer": PLAIN},
        "cohort": 2,
        "weighting": "uniform",
        "rounds": 1,
        "algorithms": ["ifca"],
    }
    return read_plan({**plan, **changes})


def bowls(clients: Mapping[str, float], **changes: Any) -> Site:
    """Clients with two equal examples x each, of the loss (w − x)², so that a step of 1/2 goes all
    the way from w to x."""
    points = torch.tensor(list(clients.values())).repeat_interleave(2)[:, None]
    table = Table({"point": points, "curvature": torch.full((len(points),), 2.0)})
    division = Division({n: torch.tensor([2 * k, 2 * k + 1]) for k, n in enumerate(clients)})
    plan = bowls_plan(cohort=len(clients), **changes)
    return site_of(plan, Examples(table, table, ()), division)


def begun(site: Site, *models: float) -> State:
    """A state with these models."""
    first, *others = (torch.tensor([w]) for w in models)
    kept = {f"{k + 1}/params/w": w for k, w in enumerate(others)}
    return replace(start(site.plan, {"w": first}), memory={"ifca": kept})


def ends(site: Site, state: State) -> list[float]:
    [models] = site.plan.hooks("models")
    return [float(model["w"]) for model in models(state)]


def test_a_round_by_hand() -> None:
    """Of the models 1 and 9 client a, who looks for 0, takes the first, b, who looks for 10, the
    second, and each goes all the way. The mean of both would be 5."""
    site = bowls(TWO)
    [(state, ledger)] = run(site, site.plan, state=begun(site, 1.0, 9.0))
    assert ends(site, state) == [0.0, 10.0]
    told = record_of(ledger, None, 0.0).values()["reports"]
    chosen = {"a": 0, "b": 1}
    assert told == {"ifca": {"sizes": [1, 1], "empty": 0, "draws": 1, "chosen": chosen}}
    assert ledger.weights == {"a": 1.0, "b": 1.0} and not ledger.note and not ledger.failed
    loss = ledger.metrics["loss"]  # of both models: 1 of each example, and there are four
    assert (loss.total, loss.weight) == (4.0, 4.0)
    assert state.accepted == {"a": 0, "b": 0}


def test_equal_models_are_one_and_the_other_keeps_its_bits() -> None:
    """All choose the first of equals: a cluster has collapsed, and the ledger says so."""
    site = bowls(TWO)
    [(state, ledger)] = run(site, site.plan, state=begun(site, 3.0, 3.0))
    assert ends(site, state) == [5.0, 3.0]
    told = ledger.reports["ifca"]
    assert (told["sizes"], told["empty"], told["chosen"]) == ([2, 0], 1, {"a": 0, "b": 0})


def test_the_first_model_too_may_rest() -> None:
    site = bowls({"a": 10.0, "b": 8.0})
    [(state, ledger)] = run(site, site.plan, state=begun(site, 1.0, 7.0))
    assert ends(site, state) == [1.0, 9.0] and state.round == 1
    assert set(ledger.weights) == set(state.accepted) == {"a", "b"}


@pytest.mark.parametrize("server", ["average", "momentum", {"name": "adam", "lr": 0.1}], ids=str)
def test_one_model_is_the_mean_to_the_bit(points: Site, server: Any) -> None:
    plain = points_plan(server=server)
    one = replace(plain, algorithms=(IFCA(clusters=1, least=0.0),))
    for (state, mine), (other, theirs) in zip(run(points, one), run(points, plain), strict=True):
        assert equal(state.params, other.params)
        assert (mine.up, mine.down) == (theirs.up, theirs.down)


def test_each_model_has_an_optimizer_of_its_own() -> None:
    """Momentum 1/2, lr 1: model 0 goes 8 → 4 with a velocity of −4 while model 1 rests at 20, and
    in the second round, where local training is at its end, 4 / 2 further."""
    site = bowls({"a": 4.0}, rounds=2, server={"name": "momentum", "momentum": 0.5, "lr": 1.0})
    begin = begun(site, 8.0, 20.0)
    plain = start(site.plan, {"w": torch.tensor([8.0])})
    begin = replace(begin, memory={**plain.memory, **begin.memory})
    rounds = run(site, site.plan, state=begin)
    assert [ends(site, state)[0] for state, _ in rounds] == [4.0, 2.0]
    moving = replace(begin, params={"w": torch.tensor([20.0])})
    still = plain.memory["server"]
    kept = {"1/params/w": torch.tensor([8.0]), **add_prefix("1/server", still)}
    moving = replace(moving, memory={**plain.memory, "ifca": kept})
    rounds = run(site, site.plan, state=moving)
    assert [ends(site, state) for state, _ in rounds] == [[20.0, 4.0], [20.0, 2.0]]
    assert still and equal(rounds[-1][0].memory["server"], still)


def test_two_kinds_of_clients_part_and_models_go_to_each() -> None:
    """The first model begins at 1 and the other near it; whichever side that is, those who look for
    less take the lower one."""
    kinds = {"a": -10.0, "b": -10.0, "c": 12.0, "d": 12.0}
    site = bowls(kinds, rounds=2)
    (_, first), (state, second) = run(site, site.plan)
    assert sorted(ends(site, state)) == [-10.0, 12.0]
    assert first.reports["ifca"]["sizes"] == second.reports["ifca"]["sizes"] == [2, 2]
    for client, x in kinds.items():
        assert client_params(site, state, Nowhere(), client)["w"] == x
    # Each is measured with its own model on all that is held out: 0 on half of it, 22² on the rest.
    assert held_out(site, state, Nowhere()) == {"loss": 22**2 / 2}


def test_noise_is_drawn_again_where_a_model_has_too_few() -> None:
    """All clients look for 0, so that one of the two models has all of them at every draw."""
    same = {"a": 0.0, "b": 0.0, "c": 0.0}
    site = bowls(same, algorithms=[{"name": "ifca", "draws": 3, "least": 0.3}])
    engine = Recording(on(site, site.plan))
    [(_, ledger)] = federate(site.plan, engine, start(site.plan, site.params()))
    told = ledger.reports["ifca"]
    assert told["draws"] == 3 and sorted(told["sizes"]) == [0, 3] and told["empty"] == 1
    assert [job.phase for job in engine.jobs] == ["ifca"] * 9 + ["fit"] * 3
    asked = [job.payload for job in engine.jobs if job.phase == "ifca"]
    assert len(set(asked)) == 3
    once = bowls(same, algorithms=[{"name": "ifca", "draws": 3, "least": 0.0}])
    assert run(once, once.plan)[0][1].reports["ifca"]["draws"] == 1


def test_what_travels_is_counted(points: Site) -> None:
    """k + 1 models go down and one comes up; in the first round here one draw is enough."""
    plan = points_plan(algorithms=[{"name": "ifca", "clusters": 3, "least": 0.0}], rounds=1)
    plain = points_plan(rounds=1)
    [(_, one)], [(_, other)] = run(points, plan), run(points, plain)
    model = sum(4 * x.numel() for x in points.params().values())
    heads = 4 * 400  # frames and names, for each of four clients
    more = one.bytes_down - other.bytes_down
    assert 4 * 3 * model < more < 4 * 3 * model + 2 * heads
    assert 0 < one.bytes_up - other.bytes_up < heads


def test_a_checkpoint_resumes_to_the_same_bits(points: Site, tmp_path: Path) -> None:
    plan = points_plan(algorithms=["ifca"], server="adam", cohort=8)
    whole = [state for state, _ in run(points, plan)]
    save_checkpoint(tmp_path / "checkpoint" / "state", plan, whole[1], {})
    saved = load_checkpoint(tmp_path / "checkpoint" / "state", plan)
    assert saved is not None
    end = [state for state, _ in run(points, plan, state=saved.state)][-1]
    assert equal(end.params, whole[-1].params)
    assert equal(end.memory["ifca"], whole[-1].memory["ifca"])


def test_one_by_one_and_together(points: Site) -> None:
    plan = points_plan(algorithms=["ifca"], rounds=2, cohort=8)
    site = replace(points, plan=plan)
    here = run(site, plan)
    together = list(federate(plan, Cohort(site), start(plan, points.params())))
    for (one, mine), (other, theirs) in zip(here, together, strict=True):
        assert mine.reports["ifca"] == theirs.reports["ifca"]
        for x, y in zip(one.memory["ifca"].values(), other.memory["ifca"].values(), strict=True):
            assert torch.allclose(x, y, atol=1e-4)


def test_personal_tensors_are_in_their_places(tmp_path: Path) -> None:
    plan = points_plan(algorithms=["ifca"], personal=["*.bias"], rounds=2, cohort=24)
    site, store = open_site(plan), Folder(tmp_path)
    state, ledger = run(site, plan, store)[-1]
    assert not ledger.failed and finite(state.flat)
    client = site.data.clients[0]
    own = client_params(site, state, store, client)
    kept = store.load(client, state.accepted[client])
    assert torch.equal(own["head.bias"], kept["personal/head.bias"])


def test_own_examples_are_measured_with_the_model_that_training_chooses() -> None:
    partition = {"name": "dirichlet", "clients": 6, "alpha": 10.0, "held_out": 0.2}
    plan = points_plan(algorithms=["ifca"], partition=partition, cohort=6, rounds=1)
    site = open_site(plan)
    state, _ = run(site, plan)[-1]
    [models] = plan.hooks("models")
    good, bad = site.params(), {n: x + 100.0 for n, x in site.params().items()}
    bad["head.weight"] = -100 * state.params["head.weight"]
    kept = {f"1/params/{n}": state.params[n] for n in good}
    turned = replace(state, params=bad, memory={"ifca": kept})
    plain = replace(state, memory={})
    assert own_held_out(site, turned, Nowhere()) == own_held_out(site, plain, Nowhere())
    assert len(models(plain)) == 1


@pytest.mark.parametrize("number", [-1, 2, 10**9])
def test_a_model_that_is_not_there_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="there are 2, from 0"):
        IFCA()._check("a", Message({"ifca": {"model": torch.tensor(number)}}))


def test_what_is_no_number_is_not_chosen() -> None:
    nan, inf = float("nan"), float("inf")
    assert least([nan, 2.0, inf, 1.0, 1.0]) == 3
    with pytest.raises(ArithmeticError, match="none has a finite loss"):
        least([nan, inf])


@given(st.integers(0, 2**31), st.floats(0.01, 1.0))
def test_noise_is_by_the_size_of_a_tensor(seed: int, spread: float) -> None:
    """LoRA's B begins as zeros: it moves too, or no two models would differ."""
    params = {
        "b": torch.zeros(400, 4),
        "a": torch.full((40, 40), 3.0),
        "n": torch.tensor(7),
        "bn.running_mean": torch.ones(3),
    }
    got = blurred(params, spread, torch.Generator().manual_seed(seed))
    assert float(got["b"].std()) == pytest.approx(spread / 2, rel=0.2)
    assert float((got["a"] - 3).std()) == pytest.approx(3 * spread, rel=0.2)
    assert got["n"] is params["n"] and got["bn.running_mean"] is params["bn.running_mean"]


def test_an_owner_reads_what_is_told() -> None:
    site = bowls(TWO)
    told = dict(consent_to(site, "a", ["a", "b"]).lines)["not hidden"]
    assert told.endswith("which of several models has the least loss on the examples here")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exchange": {"name": "secure", "threshold": 3}, "weighting": "uniform"}, "sums hide who"),
        (
            {"local": {"correction": "scaffold"}, "server": "scaffold"},
            "of one model, and ifca has several",
        ),
        ({"algorithms": ["ifca", {"name": "fedbuff", "buffer": 3}]}, "leave"),
        ({"stages": ["error_feedback"], "uplink": "topk"}, "maybe to another model: leave it out"),
        ({"algorithms": ["ifca", "q_ffl"]}, "put it last in algorithms"),
        ({"algorithms": ["vote", "ifca"]}, "a vote is on one merge"),
        (
            {"stages": [{"name": "local_dp", "noise_multiplier": 1.0}], "weighting": "uniform"}
            | {"delta": 1e-3},
            "without noise: leave it out of a private plan",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**{"algorithms": ["ifca"], **changes})


def test_nodes_cannot_be_measured_with_their_models() -> None:
    with pytest.raises(PlanError, match="this server cannot measure nodes with theirs"):
        check_node_plan(points_plan(algorithms=["ifca"]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clusters": 0}, "clusters and draws must be at least 1"),
        ({"draws": 0}, "clusters and draws must be at least 1"),
        ({"spread": 0.0}, "spread must be positive"),
        ({"spread": float("nan")}, "spread must be positive"),
        ({"clusters": 4, "least": 0.3}, "1 / clusters = 0.25"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        IFCA(**settings)
