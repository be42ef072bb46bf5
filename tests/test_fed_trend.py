"""Fed-TREND: examples by which descent moves models as training moved them, and who learns of
them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from parts import Slopes
from rounds import last, points_plan, run

from fedpeft import InProcess, PlanError, federate, open_site, start
from fedpeft.algorithms.fed_trend import OWN, OWNER, FedTrend
from fedpeft.cli.progress import Watched
from fedpeft.compute.trajectories import Leg, Matching
from fedpeft.core.tensors import equal, split_prefixes
from fedpeft.core.types import Batch, State, Tensors
from fedpeft.plan.plan import Plan
from fedpeft.registry import build
from fedpeft.rounds.loop import LocalEngine
from fedpeft.terms.shared_examples import SharedExamples

TERM = {"local": {"lr": 0.05, "batch_size": 16, "terms": ["shared_examples"]}}


def plan_of(term: bool = False, **settings: Any) -> Plan:
    rounds = settings.pop("rounds", 4)
    part = {"name": "fed_trend", "every": 2, "steps": 3, **settings}
    whole = {"task": {"name": "parts:Slopes"}, "method": "full", "rounds": rounds}
    return points_plan(**whole, algorithms=[part], **(TERM if term else {}))


def line_losses(params: Tensors, batch: Batch) -> torch.Tensor:
    """(w·x − y)²."""
    return (params["w"] * batch["x"] - batch["y"]).square()


def rows(x: float, y: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([float(x)]), "y": torch.tensor([float(y)]), "mask": torch.ones(1)}


def leg_of(start: float, end: float, counts: float = 1.0) -> Leg:
    one, other, both = ({"w": torch.tensor(x)} for x in (start, end, counts))
    return Leg(one, other, both)


def test_a_step_on_an_example_by_hand() -> None:
    """From w = 0 on (1, y) with η = 0.5 the model comes to y: of a way to 1, (1 − y)² is left."""
    matching, way, batch = Matching(1, 0.1, rate=0.5, inner_steps=1), leg_of(0.0, 1.0), rows(1, 0)
    for y, left, slope in ((0.0, 1.0, -2.0), (1.0, 0.0, 0.0), (3.0, 4.0, 4.0)):
        told = torch.tensor([y], requires_grad=True)
        reached = matching.descend(line_losses, way.start, ["w"], {**batch, "y": told})
        distance = way.distance(reached)
        distance.backward()  # type: ignore[no-untyped-call]
        assert float(reached["w"].detach()) == pytest.approx(y)
        assert float(distance.detach()) == pytest.approx(left)
        assert told.grad is not None and float(told.grad) == pytest.approx(slope)


def test_two_steps_on_an_example_by_hand() -> None:
    """w ← w − 2·0.25·(w − y): from 0 to y/2, and on to 3y/4."""
    matching = Matching(1, 0.1, rate=0.25, inner_steps=2)
    reached = matching.descend(line_losses, {"w": torch.tensor(0.0)}, ["w"], rows(1, 4))
    assert float(reached["w"].detach()) == 3.0


def test_a_fit_finds_an_example_that_makes_a_way() -> None:
    matching, draws = Matching(200, 0.05, rate=0.25, inner_steps=1), torch.Generator()
    found, left = matching.fit(line_losses, [leg_of(1.0, 2.0)], rows(1.0, 1.5), draws)
    moved = matching.descend(line_losses, {"w": torch.tensor(1.0)}, ["w"], found)
    assert float(moved["w"].detach()) == pytest.approx(2.0, abs=1e-2) and left < 1e-3
    assert equal({"mask": found["mask"]}, {"mask": torch.ones(1)})


def test_what_does_not_count_moves_no_example() -> None:
    """One entry of two went another way than before: the example is fitted to the other alone."""
    start, end = {"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 5.0])}
    way = Leg(start, end, {"w": torch.tensor([1.0, 0.0])})
    assert float(way.distance(start)) == 1.0 and float(way.distance(end)) == 0.0


def states_of(plan: Plan) -> list[State]:
    site = open_site(plan)
    return [state for state, _ in federate(plan, InProcess(site), start(plan, site.params()))]


def test_examples_come_with_the_first_fit_and_change_with_the_next() -> None:
    plan = plan_of(term=True)
    shared = [state.shared["shared_examples"] for state in states_of(plan)]
    assert [float(x["mask"].sum()) for x in shared] == [0, 20, 20, 20]
    assert equal(shared[1], shared[2]) and not torch.equal(shared[1]["point"], shared[3]["point"])
    assert shared[1]["point"].shape == (20, 8) and shared[1]["target"].shape == (20,)


def test_a_checkpoint_finds_no_tensor_twice() -> None:
    for state in states_of(plan_of(term=True)):
        groups = [state.params, *state.shared.values(), *state.memory.values()]
        places = [x.data_ptr() for tensors in groups for x in tensors.values()]
        assert len(places) == len(set(places))


def test_before_a_fit_it_is_federated_averaging_to_the_bit() -> None:
    plan = plan_of(term=True, every=5)
    plain = replace(plan, algorithms=(), local=replace(plan.local, terms=()))  # type: ignore[type-var]
    site = open_site(plan)
    assert equal(run(site, plan)[-1][0].params, last(run(site, plain)))


def test_the_server_descends_on_its_examples_after_a_merge() -> None:
    """θ ← θ − η·∇L, by autograd on the task's own loss."""
    plan = plan_of(client_examples=0, rate=0.1)
    plain = replace(plan, algorithms=())
    site, states = open_site(plan), states_of(plan)
    assert equal(states[1].params, run(site, replace(plain, rounds=2))[-1][0].params)
    own = split_prefixes(states[1].memory[OWNER])[OWN]
    assert "shared_examples" not in states[1].shared
    began = replace(states[1], memory={}, shared={})
    merged = next(federate(plain, InProcess(site), began))[0].params
    w, b = (merged[f"head.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
    loss = ((own["point"] @ w.T + b)[:, 0] - own["target"]).square().mean()
    slopes = torch.autograd.grad(loss, [w, b])
    for name, x, slope in zip(("weight", "bias"), (w, b), slopes, strict=True):
        torch.testing.assert_close(states[2].params[f"head.{name}"], (x - 0.1 * slope).detach())


def test_a_client_counts_where_it_goes_on_in_its_direction() -> None:
    """Two fits of all clients: the second one's counts, by what the memory has of the first."""
    plan = plan_of(every=1, server_examples=0)
    plan = replace(plan, cohort=24, rounds=2)
    first, second = (split_prefixes(state.memory[OWNER]) for state in states_of(plan))
    changes = split_prefixes(second["changed"])
    assert len(changes) == 24 and set(changes["c000"]) == {"head.weight", "head.bias"}
    for name, x in changes["c000"].items():
        ends = [split_prefixes(memory["ended"])["c000"][name] for memory in (first, second)]
        torch.testing.assert_close(x, ends[1] - ends[0])
    agree = [
        (x.sign() == split_prefixes(first["changed"])[client][name].sign()).float().mean()
        for client, tensors in changes.items()
        for name, x in tensors.items()
    ]
    assert 0.05 < float(torch.stack(agree).mean()) < 1  # both happen, so that the mask matters


def test_the_report_says_how_much_of_the_ways_is_left() -> None:
    plan = plan_of(steps=60, lr=0.05, rate=0.1)
    site = open_site(plan)
    reports = [ledger.reports for _, ledger in run(site, plan)]
    assert "fed_trend_clients" not in reports[0]
    assert reports[1]["fed_trend_clients"]["ways"] == 4
    assert reports[1]["fed_trend_server"]["ways"] == 2
    assert 0 < reports[1]["fed_trend_server"]["left"] < 0.9


def test_the_term_is_the_mean_loss_of_examples_with_a_mask() -> None:
    term = SharedExamples(weight=0.5)
    given = {
        "shared_examples/point": torch.tensor([[1.0], [2.0], [9.0]]),
        "shared_examples/mask": torch.tensor([1.0, 1.0, 0.0]),
        "other/point": torch.zeros(1),
    }
    examples = term.examples(given)
    assert sorted(examples) == ["mask", "point"]
    losses = {"losses": torch.tensor([3.0, 5.0, 100.0])}
    assert float(term.loss(losses, examples, given)) == 4.0
    nobody = {**examples, "mask": torch.zeros(3)}
    assert float(term.loss(losses, nobody, given)) == 0.0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"task": "parts:Points"}, "makes examples that are numbers, and those of Points are not"),
    ({"exchange": {"name": "secure", "threshold": 3}, "weighting": "uniform"}, "single clients"),
    ({"routing": [{"name": "personal", "patterns": ["*.bias"]}]}, "follows one model"),
    ({"algorithms": ["fed_trend", {"name": "ifca", "clusters": 2}]}, "leave out one of them"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_does_not_go_with_it(changes: dict[str, Any], words: str) -> None:
    whole = {"task": "parts:Slopes", "method": "full", "algorithms": ["fed_trend"], **changes}
    with pytest.raises(PlanError, match=words):
        points_plan(**whole)


def test_the_server_alone_learns_of_a_sum() -> None:
    secure = {"exchange": {"name": "secure", "threshold": 3}, "weighting": "uniform"}
    part = {"name": "fed_trend", "client_examples": 0}
    points_plan(task="parts:Slopes", method="full", algorithms=[part], **secure)


def test_a_term_without_examples_has_nothing_to_learn_of() -> None:
    with pytest.raises(PlanError, match=r"no algorithm makes some: set algorithms"):
        points_plan(task="parts:Slopes", method="full", **TERM)
    none = [{"name": "fed_trend", "client_examples": 0}]
    with pytest.raises(PlanError, match="no algorithm makes some"):
        points_plan(task="parts:Slopes", method="full", algorithms=none, **TERM)


@pytest.mark.parametrize(
    "key", ["every", "steps", "inner_steps", "lr", "rate", "client_examples", "server_examples"]
)
def test_values_out_of_range(key: str) -> None:
    for value in (-1, 0) if key not in ("client_examples", "server_examples") else (-1,):
        with pytest.raises(PlanError, match=key):
            build("algorithm", {"name": "fed_trend", key: value})
    with pytest.raises(ValueError, match="not both 0"):
        FedTrend(client_examples=0, server_examples=0)


def test_an_engine_beside_no_model_is_told_so() -> None:
    plan = plan_of()
    site = open_site(plan)

    class Elsewhere:
        clients = site.data.clients
        run = InProcess(site).run

    with pytest.raises(PlanError, match="this engine lies beside none"):
        next(federate(plan, Elsewhere(), start(plan, site.params()), classes=["a", "b", "c"]))


def test_an_engine_that_somebody_watches_lies_beside_the_model_still() -> None:
    plan, seen = plan_of(every=1, rounds=1), list[int]()
    site = open_site(plan)
    engine = Watched(InProcess(site), seen.append)
    assert isinstance(engine, LocalEngine) and engine.site is site
    [(state, _)] = list(federate(plan, engine, start(plan, site.params())))
    assert equal(state.params, run(site, plan)[-1][0].params) and seen == [1, 2, 3, 4]

    class Elsewhere:
        clients = site.data.clients
        run = InProcess(site).run

    assert not isinstance(Watched(Elsewhere(), seen.append), LocalEngine)


def test_slopes_have_the_loss_that_these_tests_take() -> None:
    batch = {"target": torch.tensor([1.0]), "point": torch.zeros(1, 8)}
    assert float(Slopes().losses({"prediction": torch.tensor([3.0])}, batch)) == 4.0
