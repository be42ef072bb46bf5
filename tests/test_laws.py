"""Laws that parts keep together: any of them with any other."""

from dataclasses import replace
from functools import cache
from itertools import islice, product
from math import ceil
from pathlib import Path
from random import Random

import pytest
import torch
from marks import slow_but
from rounds import PRIVATE, staged

from fedpeft.codecs.topk import TopK
from fedpeft.compute.trainable import read
from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import equal, finite, layout
from fedpeft.core.types import Tensors
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import PlanError
from fedpeft.plan.checks import check_holders, holder_of
from fedpeft.plan.reading import read_plan
from fedpeft.registry import build, names
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import open_site
from fedpeft.storage.client_memory import Folder

ROOMS = {
    kind: sorted(names(kind))
    for kind in ("aggregator", "codec", "correction", "optimizer", "server", "stage")
}
ROOMS["aggregator"].remove("class_rows")  # rows of a head, which these models do not have
UPLINKS = [n for n in ROOMS["codec"] if not getattr(build("codec", n), "follows", False)]
DOWNLINKS = [
    name
    for name in ROOMS["codec"]
    if Fact.SPARSE not in offered_by(codec := build("codec", name))
    and not getattr(codec, "reads_sent", False)
]


MOST = 1200
"""Combinations that are looked for: the long run tries about so many."""


def fitting(one: tuple[str, ...]) -> bool:
    """Whether such parts go together, as their own facts say; see `staged` for the noisy ones."""
    kinds = ("codec", "codec", "aggregator", "correction", "optimizer", "server", "stage")
    holders = []
    for place, (kind, name) in enumerate(zip(kinds, one, strict=True)):
        if not name:
            continue
        noise = {"noise_multiplier": 0.1} if name in PRIVATE else {}
        part = build(kind, {"name": name, **noise})
        for holder in (holder_of(one) for one in (part, getattr(part, "codec", None)) if one):
            if place == 1:  # a downlink's loss is known to the server
                holder = replace(holder, offers=holder.offers - {Fact.LOSSY})
            holders.append(holder)
    try:
        check_holders(holders)
    except PlanError:
        return False
    return True


@cache
def combinations() -> list[tuple[str, ...]]:
    """Ways to furnish a round: uplink, downlink, aggregator, and so on; first those that show a
    part for the first time, and all in an order of chance."""
    every: list[tuple[str, ...]] = list(
        product(
            UPLINKS,
            DOWNLINKS,
            ROOMS["aggregator"],
            ROOMS["correction"],
            ROOMS["optimizer"],
            ROOMS["server"],
            ["", *ROOMS["stage"]],
        )
    )
    Random(21).shuffle(every)
    found = list(islice((one for one in every if fitting(one)), MOST))
    seen: set[tuple[int, str]] = set()
    first: list[tuple[str, ...]] = []
    for one in found:
        if not seen.issuperset(parts := set(enumerate(one))):
            first.append(one)
            seen |= parts
    early = set(first)
    return [*first, *(one for one in found if one not in early)]


def trained(where: Path, combination: tuple[str, ...]) -> Tensors:
    """The tensors after two rounds with such parts, on a model of points."""
    uplink, downlink, aggregator, correction, optimizer, server, stage = combination
    spec = {
        "task": {"name": "parts:Points", "network": "convolution"},
        "data": "parts:Blobs",
        "partition": {"name": "dirichlet", "clients": 4, "alpha": 10.0},
        "method": "full",
        "local": {"lr": 0.01, "batch_size": 8, "correction": correction, "optimizer": optimizer},
        "uplink": uplink,
        "downlink": downlink,
        "aggregator": aggregator,
        "server": server,
        **staged(stage),
        "rounds": 2,
        "cohort": 3,
    }
    plan = read_plan(spec)
    site = open_site(plan)
    where.mkdir(exist_ok=True)
    (where / "secret").write_bytes(bytes(32))
    before = start(plan, site.params())
    rounds = list(federate(plan, InProcess(site, Folder(where)), before, Secret(bytes(32))))
    assert all(
        not ledger.failed and not ledger.note and len(ledger.weights) == 3 for _, ledger in rounds
    )
    state = rounds[-1][0]
    assert finite(state.params) and layout(state.params) == layout(before.params)
    assert not equal(state.params, before.params)
    return state.params


@pytest.mark.parametrize("combination", combinations()[:40], ids="-".join)
def test_any_parts_train_together(tmp_path: Path, combination: tuple[str, ...]) -> None:
    assert equal(trained(tmp_path / "a", combination), trained(tmp_path / "b", combination))


@pytest.mark.slow
@pytest.mark.parametrize("combination", combinations()[40:1000], ids="-".join)
def test_many_more_parts_train_together(tmp_path: Path, combination: tuple[str, ...]) -> None:
    trained(tmp_path, combination)


def test_the_sample_has_every_part() -> None:
    sample = combinations()[:40]
    rooms = {**ROOMS, "uplink": UPLINKS, "downlink": DOWNLINKS}
    for place, kind in enumerate(
        ("uplink", "downlink", "aggregator", "correction", "optimizer", "server")
    ):
        assert {one[place] for one in sample} == set(rooms[kind])


@pytest.mark.parametrize("density", slow_but([0.1], [0.25, 0.1, 0.01]))
@pytest.mark.parametrize("method", sorted(names("method")))
def test_topk_costs_less_than_dense_whatever_the_method_sends(method: str, density: float) -> None:
    own = {"early_exits": {"exits": [2, 4]}}.get(method, {})
    plan = read_plan({"method": {"name": method, **own}})
    try:
        model = plan.model([str(k) for k in range(10)])
    except PlanError as error:
        pytest.skip(f"not for this model: {error}")
    params = read(model, plan.method.names(model))
    entries = sum(x.numel() for x in params.values())
    dense, sparse = len(build("codec", "dense").encode(params)), len(TopK(density).encode(params))
    kept = ceil(density * entries)
    assert sparse < dense - 4 * (entries - kept) + entries / 8 + 1, (
        "more than the values and a bit for each entry"
    )
    assert sparse < dense * (density * 1.3 + 0.05)


def test_precision_lost_on_the_way_is_small() -> None:
    """What each codec does to the same delta, as a share of its length: none is a surprise."""
    delta = {"a": torch.randn(100, 50, generator=torch.Generator().manual_seed(1))}
    lost = {}
    for name in ROOMS["codec"]:
        codec = build("codec", name)
        error = codec.decode(codec.encode(delta))["a"] - delta["a"]
        lost[name] = float(error.norm() / delta["a"].norm())
    assert (
        lost["dense"] == 0
        and lost["float16"] < 3e-4
        and lost["bfloat16"] < 3e-3
        and lost["int8"] < 1e-2
    )
    assert 0.6 < lost["topk"] < 0.9  # a tenth of a normal's entries holds four tenths of its square
