"""The mistakes of FedPEFT's published code, each beside the right thing. (Its adapter:
test_methods.py.)"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from crashes import assert_same_end
from rounds import FEEDBACK, points_plan, run
from running import SMALL
from running import run as run_folder

from fedpeft import Plan, PlanError, Processes, read_plan
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import equal
from fedpeft.core.types import Division, Table
from fedpeft.errors import DataError
from fedpeft.evaluation.measure import measure
from fedpeft.partitions.dirichlet import Dirichlet
from fedpeft.partitions.redrawn import Redrawn
from fedpeft.rounds.site import Site, open_site
from fedpeft.runs.folder import create


def test_weights_are_rounded_up_to_batches(points: Site) -> None:
    (_, exact), *_ = run(points, points_plan(rounds=1))
    (_, rounded), *_ = run(points, points_plan(rounds=1, weighting="batches"))
    sizes = {client: points.data.size(client) for client in exact.weights}
    assert exact.weights == sizes
    assert rounded.weights == {client: -(-size // 16) * 16 for client, size in sizes.items()}
    assert rounded.weights != exact.weights


def shares_optimizer_state(rounds: int = 2, **changes: object) -> Plan:
    return points_plan(
        rounds=rounds, local={"lr": 0.05, "batch_size": 16, "as_published": True, **changes}
    )


def test_momentum_goes_over_to_the_next_client_and_round(points: Site) -> None:
    right, wrong = (
        run(points, plan)
        for plan in (points_plan(rounds=2, cohort=1), replace(shares_optimizer_state(), cohort=1))
    )
    assert equal(right[0][0].params, wrong[0][0].params), "the first client of all finds nothing"
    assert not equal(right[1][0].params, wrong[1][0].params)


def test_without_momentum_nothing_leaks(points: Site) -> None:
    plain = {"name": "sgd", "momentum": 0.0, "nesterov": False}
    right = run(
        points, points_plan(rounds=2, local={"lr": 0.05, "batch_size": 16, "optimizer": plain})
    )
    assert equal(
        right[-1][0].params, run(points, shares_optimizer_state(optimizer=plain))[-1][0].params
    )


def test_engines_without_an_order_refuse_to_leak(points: Site) -> None:
    with pytest.raises(PlanError, match='set engine = "inprocess"'):
        replace(shares_optimizer_state(), engine="processes")
    with pytest.raises(PlanError, match="clients one after another"):
        Processes(replace(points, plan=shares_optimizer_state()))


def test_a_run_that_leaks_begins_anew_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    changes = {"local": {"batch_size": 8, "lr": 0.1, "as_published": True}, **FEEDBACK}
    plan = read_plan({**SMALL, "server": "average", **changes})
    site = open_site(plan)
    whole, cut = create(plan, tmp_path / "whole"), create(plan, tmp_path / "cut")
    records = run_folder(whole, site)
    run_folder(cut, site, rounds=2)
    again = run_folder(cut, site)
    assert (
        [record.round for record in again] == [record.round for record in records] == [1, 2, 3, 4]
    )
    assert [record.held_out for record in again] == [record.held_out for record in records]
    assert_same_end(cut.path, whole.path)


LABELS = torch.arange(20_000) % 2


def skew(division: Division) -> float:
    """The mean distance of a client's share of class 1 from one half."""
    shares = torch.stack([LABELS[part].double().mean() for part in division.parts.values()])
    return float((shares - 0.5).abs().mean())


def test_a_subset_drawn_twice_loses_the_skew_and_keeps_the_sizes() -> None:
    of = Dirichlet(clients=16, alpha=0.1)
    wrong = Redrawn(4000, of).split(Table({"label": LABELS}), generator(1))
    subset = torch.randperm(len(LABELS), generator=generator(1))[:4000]
    right = of.split(Table({"label": LABELS[subset]}), generator(2))
    right = Division({client: subset[index] for client, index in right.parts.items()})
    assert skew(right) > 0.3
    assert skew(wrong) < 0.1
    sizes = [len(part) for part in wrong.parts.values()]
    assert sum(sizes) == 4000 and max(sizes) > 2 * min(sizes)
    taken = torch.cat(list(wrong.parts.values()))
    assert len(set(taken.tolist())) == 4000
    assert torch.equal(
        taken,
        torch.cat(
            list(Redrawn(4000, of).split(Table({"label": LABELS}), generator(1)).parts.values())
        ),
    )


@pytest.mark.slow
def test_a_redrawn_partition_reads_back_and_checks_its_subset() -> None:
    plan = read_plan(
        {"partition": {"name": "redrawn", "subset": 800, "of": {"name": "dirichlet", "clients": 8}}}
    )
    assert read_plan(plan.toml()) == plan
    site = open_site(replace(plan, method=read_plan("method='head'").method))
    assert sum(site.data.size(client) for client in site.data.clients) == 800
    assert measure(site, site.params())["accuracy"] >= 0
    with pytest.raises(DataError, match="there are 20000 training examples"):
        Redrawn(30_000).split(Table({"label": LABELS}), generator(1))
    with pytest.raises(PlanError, match="subset must be at least 1"):
        read_plan({"partition": {"name": "redrawn", "subset": 0}})
