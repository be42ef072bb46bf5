"""Groups of tensors that some clients have in common: whose mean is taken, and what travels."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from rounds import Recording, last, merged, on, points_plan, run
from test_cohort import read
from torch import Tensor

from fedpeft import PlanError, federate, open_site, read_plan, start
from fedpeft.core.types import State, Update
from fedpeft.core.views import EVERYTHING
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.oneshot.invitation import check_plan
from fedpeft.rounds.ledger import Ledger
from fedpeft.routing.scopes import Scopes

TOWERS = {"vision.*": ("img-*", "pair-*"), "text.*": ("txt-*", "pair-*")}


def named(*names: str) -> dict[str, Tensor]:
    return {name: torch.ones(1) for name in names}


EVERY = named("vision.a", "vision.attn.q", "text.a", "text.attn.q", "scale")


def test_each_kind_of_client_has_its_towers() -> None:
    scopes = Scopes(TOWERS)
    of = {kind: scopes.view(f"{kind}-0", 0, ()) for kind in ("img", "txt", "pair")}
    assert list(of["img"].select(EVERY)) == ["vision.a", "vision.attn.q", "scale"]
    assert list(of["txt"].select(EVERY)) == ["text.a", "text.attn.q", "scale"]
    assert of["pair"] == EVERYTHING
    assert of["img"].trained(of["img"].select(EVERY)).keys() == of["img"].select(EVERY).keys()


def test_attention_is_shared_and_the_rest_comes_frozen() -> None:
    scopes = Scopes({**TOWERS, "!*.attn.*": ("pair-*",)}, outside="frozen")
    view = scopes.view("img-3", 0, ())
    assert view.select(EVERY).keys() == EVERY.keys()
    assert list(view.trained(EVERY)) == ["vision.attn.q"]


def test_a_mean_is_over_those_in_a_scope() -> None:
    """Images' clients change their tower by 1 and 3, a client of pairs by 5; so the mean is 3, and
    that of the texts' tower 5."""
    plan = points_plan(
        routing=[{"name": "scopes", "scopes": {k: list(x) for k, x in TOWERS.items()}}]
    )
    state = State(0, named("vision", "text", "rest"))
    updates = [
        Update("img-0", {"vision": torch.tensor([1.0])}, 1.0),
        Update("img-1", {"vision": torch.tensor([3.0])}, 1.0),
        Update("pair-0", {"vision": torch.tensor([5.0]), "text": torch.tensor([5.0])}, 1.0),
    ]
    after = merged(plan, updates, state, Ledger(0)).params
    assert {name: float(x) for name, x in after.items()} == {"vision": 4, "text": 6, "rest": 1}


@pytest.mark.parametrize("outside", ["absent", "frozen"])
def test_what_is_out_of_scope_is_not_sent_back(outside: str) -> None:
    even = "*[02468]"
    scopes = {"name": "scopes", "scopes": {"*first.*": [even]}, "outside": outside}
    plan = points_plan(
        task={"name": "parts:Points", "network": "hidden"},
        method="full", rounds=1, cohort=8, routing=[scopes],
    )  # fmt: skip
    site = open_site(plan)
    engine = Recording(on(site, plan))
    [(_, ledger)] = federate(plan, engine, start(plan, site.params()))
    assert not ledger.failed
    sizes = {True: set[int](), False: set[int]()}
    for job, reply in zip(engine.jobs, engine.replies, strict=True):
        inside = fnmatchcase(reply.client, even)
        sent = read(plan, reply).delta
        assert any("first" in name for name in sent) == inside and "head.weight" in sent
        sizes[inside].add(len(job.payload))
    assert len(sizes[True]) == len(sizes[False]) == 1
    assert (sizes[True] == sizes[False]) == (outside == "frozen")


def test_a_scope_of_all_clients_is_no_routing_to_the_bit() -> None:
    plain, scoped = (
        points_plan(method="full", routing=routing)
        for routing in ([], [{"name": "scopes", "scopes": {"*.bias": ["*"]}}])
    )
    site = open_site(plain)
    want, got = last(run(site, plain)), last(run(open_site(scoped), scoped))
    assert all(torch.equal(want[name], got[name]) for name in want)


def test_clients_in_a_stack_train_them() -> None:
    scopes = {"name": "scopes", "scopes": {"*.bias": ["*[02468]"]}}
    plan = points_plan(method="full", rounds=2, routing=[scopes])
    site = open_site(plan)
    want = last(run(site, plan))
    got = list(federate(plan, Cohort(site), start(plan, site.params())))[-1][0].flat
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, rtol=0, atol=2e-4)


def test_a_client_outside_of_every_scope_is_told_so_and_the_rest_goes_on() -> None:
    plan = points_plan(
        method="full", rounds=1, cohort=8,
        routing=[{"name": "scopes", "scopes": {"*": ["*[02468]"]}}],
    )  # fmt: skip
    site = open_site(plan)
    [(_, ledger)] = federate(plan, on(site, plan), start(plan, site.params()))
    assert 0 < len(ledger.failed) < 8
    for client, why in ledger.failed.items():
        assert f"leaves {client} nothing to train in round 1" in why


def test_scopes_that_say_nothing_are_told() -> None:
    with pytest.raises(PlanError, match="scopes are by pattern"):
        points_plan(routing=[{"name": "scopes", "scopes": {}}])
    with pytest.raises(PlanError, match="has no clients, so that nobody trains it"):
        points_plan(routing=[{"name": "scopes", "scopes": {"*": []}}])
    with pytest.raises(PlanError, match="no outside called 'kept'"):
        points_plan(routing=[{"name": "scopes", "scopes": {"*": ["*"]}, "outside": "kept"}])
    plan = points_plan(routing=[{"name": "scopes", "scopes": {"tower.*": ["*"]}}])
    with pytest.raises(PlanError, match=r"no trained tensor has a name like 'tower\.\*'"):
        run(open_site(plan), plan)
    with pytest.raises(PlanError, match="scopes let clients of one round train different tensors"):
        points_plan(aggregator="median", routing=[{"name": "scopes", "scopes": {"*": ["*"]}}])


def test_one_file_from_each_client_has_no_scopes() -> None:
    scopes = {"name": "scopes", "scopes": {"*.bias": ["*"]}}
    with pytest.raises(PlanError, match="different tensors to train, by the list of all clients"):
        check_plan(points_plan(rounds=1, routing=[scopes]))


def test_a_plan_with_scopes_reads_back(tmp_path: Path) -> None:
    scopes = {"name": "scopes", "scopes": {"*.bias": ["a*", "!b*"], "head.*": ["*"]}}
    plan = points_plan(routing=[scopes])
    (tmp_path / "plan.toml").write_text(plan.toml())
    assert read_plan(tmp_path / "plan.toml") == plan
