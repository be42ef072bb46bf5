"""Groups of tensors that are drawn to be trained: Fed-PLoRA, and stochastic block attention."""

from typing import Any

import pytest
import torch
from rounds import Recording, distance, last, on, points_plan, run
from test_cohort import read
from torch import nn

from fedpeft import PlanError, open_site, read_plan
from fedpeft.compute.trainable import write
from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.tensors import equal
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.methods.plora import PLoRA
from fedpeft.plan.plan import Plan
from fedpeft.rounds.loop import federate, start
from fedpeft.routing.drawn import DrawnGroups

PARALLEL: dict[str, Any] = {
    "task": {"name": "parts:Points", "network": "hidden"},
    "method": {"name": "plora", "modules": 4, "target": ["first"], "head": "head"},
    "local": {"lr": 0.2, "batch_size": 8},
}
MODULES: dict[str, Any] = {"name": "drawn", "pattern": "*.plora_?.{}", "groups": 4}


def parallel(**drawn: Any) -> Plan:
    return points_plan(**PARALLEL, routing=[{**MODULES, **drawn}])


def layer(weight: list[list[float]]) -> nn.Module:
    """A model of one linear layer without bias."""
    model = nn.Module()
    model.one = nn.Linear(len(weight[0]), len(weight), bias=False)
    model.one.weight.data = torch.tensor(weight)
    return model.requires_grad_(False)


def test_two_modules_by_hand() -> None:
    """W = diag(3, 2), α = 4 and R = 2, so that each product counts twice: x = (1, 1) gives W·x =
    (3, 2), A_0·x = 1 and A_1·x = 3, and 2·((1, 0)·1 + (0, 5)·3) is added."""
    made: Any = PLoRA(2, 4.0, target=("one",), head="").inject(layer([[3.0, 0.0], [0.0, 2.0]]))
    x = torch.ones(1, 2)
    assert made.one(x).tolist() == [[3.0, 2.0]]
    values = {
        "one.plora_A.0": torch.tensor([[1.0, 0.0]]),
        "one.plora_B.0": torch.tensor([[1.0], [0.0]]),
        "one.plora_A.1": torch.tensor([[1.0, 2.0]]),
        "one.plora_B.1": torch.tensor([[0.0], [5.0]]),
    }
    assert {n: x.shape for n, x in made.named_parameters() if x.requires_grad} == {
        n: x.shape for n, x in values.items()
    }
    write(made, values)
    assert made.one(x).tolist() == [[5.0, 32.0]]


def test_where_all_are_trained_it_is_lora_of_that_rank() -> None:
    """From the same factors, but for the order of sums."""
    lora = {"name": "lora", "rank": 4, "target": ["first"], "head": "head"}
    whole, plain = points_plan(**PARALLEL), points_plan(**{**PARALLEL, "method": lora})
    site, other = open_site(whole), open_site(plain)
    begun = site.params()
    method, as_lora = whole.method.as_exported(site.model, begun)  # type: ignore[attr-defined]
    assert method == plain.method
    got = whole.method.as_exported(site.model, last(run(site, whole)))[1]  # type: ignore[attr-defined]
    want = last(run(other, plain, state=start(plain, as_lora)))
    assert distance(got, want) < 1e-5
    assert distance(want, as_lora) > 0.1


def test_a_client_trains_as_many_modules_as_it_can_and_the_others_stay() -> None:
    plan = parallel(counts=[1, 2, 4], by="client")
    site = open_site(plan)
    engine = Recording(on(site, plan))
    begun = start(plan, site.params())
    [(after, ledger), *_] = federate(plan, engine, begun)
    assert not ledger.failed
    clients = list(site.data.clients)
    sent: dict[str, set[int]] = {}
    left = set(range(4))
    for reply in engine.replies[: len(ledger.up)]:
        delta = [name for name in read(plan, reply).delta if "plora" in name]
        count = [1, 2, 4][clients.index(reply.client) % 3]
        sent[reply.client] = {int(name.rpartition(".")[2]) for name in delta}
        assert len(sent[reply.client]) == count and len(delta) == 2 * count
        left -= sent[reply.client]
    for name, x in after.params.items():
        if "plora_B" in name and int(name.rpartition(".")[2]) in left:
            assert torch.equal(x, begun.params[name])


def test_a_mean_is_over_those_who_trained_a_module() -> None:
    """Each of two clients trains one of two modules, an other one in this round: the state takes
    the whole change of each."""
    plan = points_plan(
        **{**PARALLEL, "method": {**PARALLEL["method"], "modules": 2}},
        routing=[{**MODULES, "groups": 2, "by": "client", "seed": 3}],
        partition={"name": "iid", "clients": 2},
        cohort=2,
        rounds=6,
    )
    site = open_site(plan)
    names = list(site.data.clients)
    apart = [k for k in range(6) if len({plan.view(n, k, names) for n in names}) == 2]
    assert apart, "no round of this seed has two draws"
    engine = Recording(on(site, plan))
    begun = start(plan, site.params())
    states = [begun, *(state for state, _ in federate(plan, engine, begun))]
    k = apart[0]
    before, after = states[k].params, states[k + 1].params
    for reply in engine.replies[2 * k : 2 * k + 2]:
        for name, change in read(plan, reply).delta.items():
            if "plora" in name:
                torch.testing.assert_close(after[name], before[name] + change)


def test_draws_are_of_a_round_or_of_a_client() -> None:
    clients = [f"c{k}" for k in range(40)]
    alike = DrawnGroups("*.{}", 8, (3,))
    for k in range(5):
        [view] = {alike.view(client, k, clients) for client in clients}
        assert len(view.trains) == 5
    assert len({alike.view("c0", k, clients) for k in range(20)}) > 10
    assert not alike.differs and Fact.MIXED_TENSORS not in offered_by(alike)
    apart = DrawnGroups("*.{}", 8, (3,), by="client")
    assert len({apart.view(client, 0, clients) for client in clients}) > 20
    assert DrawnGroups("*.{}", 8, (3,), seed=1).view("c0", 0, clients) != alike.view(
        "c0", 0, clients
    )
    # Each group has its turn: of 40 draws of 3 of 8 none is left out.
    still = [set(apart.view(client, 0, clients).trains) for client in clients]
    assert not set.intersection(*still)
    nested = [DrawnGroups("*.{}", 8, (2, 8)).view(client, 0, clients) for client in ("c0", "c1")]
    assert len(nested[0].trains) == 6 and nested[1].trains == ()


def test_all_groups_are_no_routing_to_the_bit() -> None:
    plain, all_of_them = points_plan(**PARALLEL), parallel(counts=[4], by="client")
    site = open_site(plain)
    assert equal(last(run(site, plain)), last(run(site, all_of_them)))


@pytest.mark.parametrize("by", ["round", "client"])
def test_one_by_one_and_together(by: str) -> None:
    plan = parallel(counts=[1, 2], by=by)
    site = open_site(plan)
    engine = Cohort(site)
    other = list(federate(plan, engine, start(plan, site.params())))
    assert not any(ledger.failed for _, ledger in other)
    assert distance(last(other), last(run(site, plan))) <= 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pattern": "*.plora_A.0"}, r"pattern must have one \{\}"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"counts": [5]}, "counts must be numbers from 1 to groups = 4"),
        ({"counts": []}, "counts must be numbers"),
        ({"by": "block"}, "by"),
    ],
)
def test_values_out_of_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parallel(**changes)


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        ({"pattern": "*.lora_?.{}"}, "group 0 of 4"),
        ({"groups": 3}, "set groups to the number that there are"),
        ({"groups": 5}, "group 4 of 5"),
    ],
)
def test_groups_must_be_those_that_there_are(drawn: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        start(parallel(**drawn))


NOISE = {"noise_multiplier": 1.0}
APART = {"counts": [1], "by": "client"}


@pytest.mark.parametrize(
    ("drawn", "changes", "words"),
    [
        (APART, {"aggregator": "median"}, 'set aggregator = "mean"'),
        (APART, {"stages": ["error_feedback"], "uplink": "topk"}, "nothing can be remembered"),
        (APART, {"exchange": {"name": "secure", "threshold": 2}}, "updates of one layout"),
        (APART, {"algorithms": ["fisher"]}, "leave out one of them"),
        ({"counts": [1, 2]}, {"algorithms": ["vote"]}, "leave out one of them"),
        (
            {},
            {"routing": [{"name": "ranks", "ranks": [2]}], "aggregator": "fedit"},
            "PLoRA has no rank",
        ),
    ],
)
def test_what_does_not_fit(drawn: Any, changes: dict[str, Any], words: str) -> None:
    routing = [{**MODULES, **drawn}]
    with pytest.raises(PlanError, match=words):
        points_plan(**PARALLEL, **{"routing": routing, "weighting": "uniform", **changes})


def test_noise_for_clients_is_made_for_means_over_all() -> None:
    private = {
        "stages": [{"name": "client_dp", **NOISE}],
        "privacy": {"delta": 1e-3},
        "weighting": "uniform",
    }
    alike = points_plan(**PARALLEL, **private, routing=[MODULES])
    site = open_site(alike)
    assert not any(ledger.failed for _, ledger in run(site, alike))
    with pytest.raises(PlanError, match="over fewer clients than the noise is made for"):
        points_plan(**PARALLEL, **private, routing=[{**MODULES, **APART}])


def test_a_plan_reads_back() -> None:
    plan = parallel(counts=[1, 2], by="client", seed=9)
    assert read_plan(plan.toml()) == plan
