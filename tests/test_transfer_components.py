"""Random features and the components that a target without labels shares with sources."""

from itertools import count
from math import pi
from typing import Any

import pytest
import torch
from rounds import POINTS, Tampering
from torch import Tensor, nn

from fedpeft import InProcess, PlanError, federate, open_site, read_plan, start
from fedpeft.algorithms.transfer_components import PHASE, Moments, TransferComponents, components
from fedpeft.codecs.dense import Dense
from fedpeft.core.conversation import Message
from fedpeft.core.types import Reply
from fedpeft.methods.random_features import RandomFeatures, random_features
from fedpeft.rounds.site import Site
from fedpeft.wire.payloads import decode_answer, encode_answer

W = "head.components.weight"


def test_random_features_have_length_one_and_stand_for_the_gaussian_kernel() -> None:
    draws = torch.Generator().manual_seed(0)
    x, omega = torch.randn(6, 5, generator=draws), torch.randn(5, 20000, generator=draws)
    found = random_features(x, omega)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    unit = x / x.norm(dim=1, keepdim=True)
    kernel = (-torch.cdist(unit, unit).square() / 2).exp()
    torch.testing.assert_close(found @ found.T, kernel, atol=0.03, rtol=0)


def test_two_points_a_half_turn_apart() -> None:
    """cos and sin of ±π/2: the means differ by 2."""
    found = random_features(torch.tensor([[3.0], [-0.1]]), torch.tensor([[pi / 2]]))
    assert float((found[0] - found[1]).square().sum()) == pytest.approx(4)


def test_components_are_the_eigenvectors_of_the_published_form() -> None:
    """(I − v·vᵀ/(γ + vᵀv))·C, which is not symmetric, by the general solver."""
    v, draws = torch.tensor([1.0, 2.0], dtype=torch.double), torch.Generator().manual_seed(1)
    shrunk = torch.eye(2, dtype=torch.double) - torch.outer(v, v) / (10 + v @ v)
    assert shrunk.flatten().tolist() == pytest.approx([14 / 15, -2 / 15, -2 / 15, 11 / 15])
    half = torch.randn(2, 2, generator=draws, dtype=torch.double)
    values, vectors = torch.linalg.eig(shrunk @ half @ half.T)
    order = values.real.argsort(descending=True)
    rows = components(v, half @ half.T, 2, 10.0)
    along = (rows * vectors.real.T[order]).sum(1).abs()
    assert along.tolist() == pytest.approx([1, 1])
    assert (rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all()


def test_where_the_means_are_one_it_is_principal_components() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    x = x * torch.tensor([1.0, 5, 2, 3])
    whole = Moments(50.0, x.sum(0), x.T @ x)
    torch.testing.assert_close(whole.scatter, 49 * x.T.cov())
    rows = components(torch.zeros(4, dtype=torch.double), whole.scatter, 2, 1.0)
    _, _, right = torch.linalg.svd(x - x.mean(0))
    assert (rows * right[:2]).sum(1).abs().tolist() == pytest.approx([1, 1])


def test_a_small_gamma_turns_components_away_from_the_difference() -> None:
    v, scatter = torch.tensor([2.0, 0.0]), torch.diag(torch.tensor([4.0, 3.0]))
    assert components(v, scatter, 1, 1e6)[0].tolist() == pytest.approx([1, 0])
    assert components(v, scatter, 1, 1e-3)[0].tolist() == pytest.approx([0, 1])


def site_of(**changes: Any) -> Site:
    method = {"name": "random_features", "pairs": 8, "components": 4, "head": "head"}
    partition = {"name": "iid", "clients": 4}
    algorithms = [{"name": "transfer_components", "targets": ["c003"], "gamma": 0.1}]
    plan = {**POINTS, "method": method, "partition": partition, "algorithms": algorithms}
    return open_site(read_plan({**plan, "rounds": 2, "cohort": 4, **changes}))


def pooled(site: Site, model: nn.Module) -> Tensor:
    """The projection from everybody's features in one place."""
    by_client: list[Tensor] = []
    for client in site.data.clients:
        points = torch.cat([one["point"][one["mask"] > 0] for one in site.data.training(client)])
        omega: Any = model.get_submodule("head").omega
        by_client.append(random_features(points, omega).double())
    every = torch.cat(by_client)
    apart = torch.cat(by_client[:3]).mean(0) - by_client[3].mean(0)
    scatter = (every - every.mean(0)).T @ (every - every.mean(0))
    return components(apart, scatter, 4, 0.1).float()


def test_sums_of_clients_are_those_of_all_and_the_target_never_trains() -> None:
    site = site_of()
    assert sorted(site.data.clients) == ["c000", "c001", "c002", "c003"]
    begin = start(site.plan, site.params())
    for state, ledger in federate(site.plan, InProcess(site), begin):
        assert not ledger.failed and not ledger.note
        assert sorted(ledger.weights) == ["c000", "c001", "c002"]
        torch.testing.assert_close(state.params[W], pooled(site, site.model), atol=2e-4, rtol=0)
        classifier = "head.classifier.weight"
        assert not torch.equal(state.params[classifier], begin.params[classifier])
        told = ledger.reports.get("transfer_components")
        assert (told is not None) == (state.round == 1)


def test_a_round_without_a_source_changes_nothing() -> None:
    site = site_of(cohort=1, rounds=12)
    was = None
    for state, ledger in federate(site.plan, InProcess(site), start(site.plan, site.params())):
        if "no source was drawn" in ledger.note and was is not None:
            assert torch.equal(
                was.params["head.classifier.bias"], state.params["head.classifier.bias"]
            )
            break
        was = state
    else:
        pytest.fail("the target was never drawn alone: give the test another seed")


def test_targets_that_are_none_and_methods_without_random_features() -> None:
    site = site_of(algorithms=[{"name": "transfer_components", "targets": ["c9"]}])
    with pytest.raises(PlanError, match="the target 'c9' is none of the clients c000, c001"):
        list(federate(site.plan, InProcess(site), start(site.plan, site.params())))
    everyone = [f"c00{k}" for k in range(4)]
    site = site_of(algorithms=[{"name": "transfer_components", "targets": everyone}])
    with pytest.raises(PlanError, match="all clients are targets"):
        list(federate(site.plan, InProcess(site), start(site.plan, site.params())))
    with pytest.raises(PlanError, match="set method"):
        start(site.plan, {"head.weight": torch.zeros(3, 8)})
    with pytest.raises(ValueError, match="targets must name"):
        TransferComponents(())
    with pytest.raises(ValueError, match="gamma must be positive"):
        TransferComponents(("a",), gamma=0.0)
    with pytest.raises(ValueError, match="components must be at least 1 and at most twice"):
        RandomFeatures(pairs=4, components=9)
    with pytest.raises(PlanError, match="no new linear head"):
        RandomFeatures(head="0").inject(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("count", lambda x: x + 0.5, "it counts"),
        ("count", lambda x: 0 * x, "do not have length 1"),
        ("products", lambda x: 3 * x, "do not have length 1"),
        ("products", lambda x: x + torch.triu(x.new_ones(x.shape), 1), "no sum of"),
        ("sum", lambda x: x + 1e3, "do not have length 1"),
    ],
)
def test_moments_that_no_features_have_are_refused(name: str, change: Any, match: str) -> None:
    def lie(reply: Any) -> Any:
        if next(asked):  # what comes after the moments
            return reply
        layout = TransferComponents(("c003",)).answers(site.params())
        told = decode_answer(reply.payload, Dense(), layout).tensors[PHASE]
        grown = Message({PHASE: {**told, name: change(told[name])}})
        return Reply("c001", encode_answer(grown, Dense()))

    site, asked = site_of(rounds=1), count()
    engine = Tampering(InProcess(site), {"c001": lie})
    ((_, ledger),) = federate(site.plan, engine, start(site.plan, site.params()))
    assert match in ledger.failed["c001"] and "c001" not in ledger.weights
