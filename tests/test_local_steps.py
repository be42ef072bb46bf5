"""Rounds of so many steps, and rates that do not fall to nothing (Photon, arXiv:2411.02908)."""

from dataclasses import replace
from itertools import chain
from math import cos, pi
from typing import Any

import pytest
import torch
from rounds import points_plan, run

from fedpeft import PlanError
from fedpeft.core.tensors import equal
from fedpeft.core.types import Context
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.local.descent import Descent
from fedpeft.plan.reading import read_plan
from fedpeft.registry import settings_of
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.server_steps.momentum import Momentum

SIZE = 8
OWN = {"lr": 0.1, "batch_size": SIZE}


def ends(site: Site, local: dict[str, Any]) -> Any:
    return run(site, points_plan(local=local, rounds=2))[-1][0].params


def labels(site: Site, local: Descent, client: str) -> list[list[float]]:
    """The first feature of what comes in each step."""
    size = site.data.size(client)
    context = Context("run", 0, 1, client, size, local.steps_for(size), seed=5)
    batches = local.batches(site.data, {}, context)
    return [batch["point"][:, 0].tolist() for batch in batches]


def test_steps_are_the_first_batches_of_the_passes(points: Site) -> None:
    """18 examples or so in batches of 8 are 3 batches a pass, the last one short."""
    client = points.data.clients[0]
    size = points.data.size(client)
    a_pass = -(-size // SIZE)
    whole = labels(points, Descent(batch_size=SIZE, epochs=3), client)
    for steps in (1, a_pass - 1, a_pass, a_pass + 1, 3 * a_pass):
        local = Descent(batch_size=SIZE, steps=steps)
        assert local.steps_for(size) == steps
        assert labels(points, local, client) == whole[:steps]
    one, other = (sorted(chain(*whole[at : at + a_pass])) for at in (0, a_pass))
    assert one == other
    assert whole[0] != whole[a_pass]


def test_a_client_with_one_example_begins_anew_in_every_step() -> None:
    site = open_site(points_plan(partition={"name": "iid", "clients": 400}))
    client = next(name for name in site.data.clients if site.data.size(name) == 1)
    found = labels(site, Descent(batch_size=SIZE, steps=5), client)
    assert len(found) == 5 and found == found[:1] * 5


def test_as_many_steps_as_epochs_have_are_the_same_to_the_bit() -> None:
    """24 clients of 18 or 19 examples: batches of 8 are 3 a pass for all of them."""
    site = open_site(points_plan(partition={"name": "iid", "clients": 24}))
    one, other = ({**OWN, "schedule": "cosine"} | more for more in ({"epochs": 2}, {"steps": 6}))
    assert equal(ends(site, one), ends(site, other))
    assert not equal(ends(site, one), ends(site, {**other, "steps": 5}))


def test_one_by_one_and_together(points: Site) -> None:
    plan = points_plan(local={**OWN, "steps": 5}, rounds=2)
    engine = Cohort(replace(points, plan=plan))
    together = list(federate(plan, engine, start(plan, points.params())))[-1][0].params
    assert not engine.alone
    for name, x in ends(points, {**OWN, "steps": 5}).items():
        torch.testing.assert_close(together[name], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_rate_ends_at_its_floor(schedule: str) -> None:
    """After 3 of 4 steps a cosine is at (1 + cos(3π/4)) / 2 and a line at 1/4 of its fall."""
    local = Descent(lr=0.2, schedule=schedule, floor=0.1)
    at = [float(local._rate(torch.tensor(float(k)), torch.tensor(4.0))) for k in (0, 3, 4)]
    share = 0.25 if schedule == "linear" else (1 + cos(3 * pi / 4)) / 2
    assert at == pytest.approx([0.2, 0.02 + 0.18 * share, 0.02], rel=1e-6)


def test_the_rate_rises_to_its_height_before_it_falls_to_its_floor() -> None:
    """Photon's 125M script: a rise, then a cosine to a tenth."""
    local = Descent(lr=1.0, schedule="cosine", warmup=0.2, floor=0.1)
    at = [float(local._rate(torch.tensor(float(k)), torch.tensor(10.0))) for k in (0, 1, 2, 6, 10)]
    assert at == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1], rel=1e-6)


def test_no_tensor_makes_the_step_of_another_shorter_where_entries_are_clipped() -> None:
    """Entries of 3 and 0.5 at most 1: a long gradient of one tensor leaves that of another."""
    gradient = {"one": torch.tensor([3.0, -4.0]), "other": torch.tensor([0.5, -0.25])}
    found = Descent(clip_value=1.0)._clip(gradient)
    assert found["one"].tolist() == [1.0, -1.0] and found["other"].tolist() == [0.5, -0.25]
    together = Descent(clip_norm=1.0)._clip(gradient)
    assert together["other"].tolist() != [0.5, -0.25]
    both = Descent(clip_value=1.0, clip_norm=1.0)._clip(gradient)
    length = torch.cat(list(both.values())).norm()
    assert length.item() == pytest.approx(1.0) and both["one"][0].item() == -both["one"][1].item()
    assert Descent()._clip(gradient) is gradient


def test_what_is_not_set_changes_the_name_of_no_plan() -> None:
    plain = points_plan(server="momentum", local=OWN)
    unset = {"steps": 0, "floor": 0.0, "clip_value": float("inf")}
    same = points_plan(server={"name": "momentum", "nesterov": False}, local={**OWN, **unset})
    assert same.fingerprint == plain.fingerprint
    assert settings_of(plain.server) == {"lr": 1.0, "momentum": 0.9}
    assert not {"steps", "floor", "clip_value"} & settings_of(plain.local).keys()
    for changes in (
        {"server": {"name": "momentum", "nesterov": True}},
        {"local": {**OWN, "steps": 3}},
        {"local": {**OWN, "schedule": "linear", "floor": 0.5}},
    ):
        plan = points_plan(**{"server": "momentum", "local": OWN, **changes})
        assert plan.fingerprint != plain.fingerprint
        assert read_plan(plan.toml()) == plan


@pytest.mark.parametrize(
    ("local", "words"),
    [
        ({"steps": -1}, "steps must be at least 1, or 0 to count by epochs, got -1"),
        ({"steps": 3, "epochs": 2}, "both say how long a round is: leave out one"),
        ({"floor": 1.0, "schedule": "cosine"}, r"floor is a share of lr and must be in \[0, 1\)"),
        ({"floor": -0.1, "schedule": "cosine"}, "floor is a share of lr"),
        ({"clip_value": 0.0}, "clip_value must be positive, got 0.0"),
        ({"floor": 0.1}, 'set schedule = "cosine" or "linear"'),
    ],
)
def test_what_means_nothing_is_refused(local: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(local=local)


def test_photons_plan() -> None:
    """The whole of it on points: the outer step looks ahead and the inner rate goes on over the
    run."""
    local = {
        "steps": 4,
        "schedule": "cosine",
        "warmup": 0.1,
        "floor": 0.1,
        "clip_norm": 1.0,
        "optimizer": "adamw",
        "restart_schedule": False,
    }
    server = {"name": "momentum", "lr": 0.7, "momentum": 0.9, "nesterov": True}
    plan = points_plan(local=local, server=server, weighting="examples")
    assert plan.server == Momentum(0.7, 0.9, True)
    assert plan.local.steps_for(1) == plan.local.steps_for(10_000) == 4
