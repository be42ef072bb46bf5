"""Parts of every kind, put together as they come: a seeded sample in the normal run, many more
under `slow`."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import fits, staged

from fedpeft import Folder, InProcess, federate, open_site, read_plan, start
from fedpeft.core.facts import Fact, offered_by
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import finite
from fedpeft.registry import build, names

KINDS = {
    "method": "method",
    "aggregator": "aggregator",
    "server": "server",
    "uplink": "codec",
    "downlink": "codec",
    "optimizer": "optimizer",
    "correction": "correction",
    "stage": "stage",
    "partition": "partition",
}
EACH_ONCE = 24  # draws after which all parts have been through, clashes and all
UNFIT = {
    "method": {"prefix"},  # needs a decoder
    "aggregator": {"class_rows"},  # rows of a head that some methods do not have
    # Need columns or lists of the data's; a mistake, not to be built on.
    "partition": {"column", "lists", "redrawn"},
    # These change what clients were sent last, and go down alone.
    "uplink": {n for n in names("codec") if getattr(build("codec", n), "follows", False)},
    # These drop parameters, or are of a change to what was sent.
    "downlink": {
        name
        for name in names("codec")
        for part in [build("codec", name)]
        if Fact.SPARSE in offered_by(part) or getattr(part, "reads_sent", False)
    },
}


NEEDED: dict[str, dict[str, Any]] = {"early_exits": {"exits": [2, 4]}}
"""What a method cannot do without."""
PLAIN = {"server": "average", "correction": "none", "stage": "", "aggregator": "mean"}
"""What takes the place of parts that clash with others."""


def sample(count: int) -> Iterator[dict[str, str]]:
    """`count` draws of one part of each kind that fit together, every part of every kind at least
    once in a long enough sample."""
    rng = generator(43, "pairs")
    known = {key: sorted(set(names(kind)) - UNFIT.get(key, set())) for key, kind in KINDS.items()}
    orders = {
        key: torch.randperm(len(parts), generator=rng).tolist() for key, parts in known.items()
    }
    met = set[tuple[str, str]]()
    for k in range(count):
        chosen = {}
        for place, (key, parts) in enumerate(known.items()):
            shift = int(torch.randint(len(parts), (1,), generator=rng)) if k >= EACH_ONCE else 0
            # kinds with as many parts would else meet in the same pairs in each lap
            lap = place * (k // len(parts))
            chosen[key] = parts[orders[key][(k + lap + shift) % len(parts)]]
        ways = fitting(chosen)
        own = max(ways, key=lambda way: len(way.items() - met)) if k < EACH_ONCE else next(ways)
        met |= own.items()
        yield own


def fitting(chosen: dict[str, str]) -> Iterator[dict[str, str]]:
    """The chosen parts, and with ever more plain ones in the place of some, where they go together.
    SCAFFOLD goes with SGD."""
    plain = {"optimizer": "sgd"} if chosen["correction"] == "scaffold" else {}
    for count in range(len(PLAIN) + 1):
        for keys in combinations(PLAIN, count):
            way = {**chosen, **plain, **{key: PLAIN[key] for key in keys}}
            if fits(**spec_of(way)):
                yield way


def spec_of(chosen: dict[str, str]) -> dict[str, Any]:
    """A plan of the chosen parts."""
    return {
        "method": {"name": chosen["method"], **NEEDED.get(chosen["method"], {})},
        "aggregator": chosen["aggregator"],
        "server": chosen["server"],
        "uplink": chosen["uplink"],
        "downlink": chosen["downlink"],
        **staged(chosen["stage"]),
        "partition": {"name": chosen["partition"], "clients": 30},
        "rounds": 2,
        "cohort": 3,
        "task": "image-classification",
        "data": {"name": "digits", "subset": 450},
        "local": {
            "optimizer": chosen["optimizer"],
            "correction": chosen["correction"],
            "lr": 0.001,
            "batch_size": 8,
        },
    }


def check(chosen: dict[str, str], folder: Path) -> None:
    plan = read_plan(spec_of(chosen))
    site = open_site(plan)
    first = start(plan, site.params())
    for state, ledger in federate(plan, InProcess(site, Folder(folder)), first):
        assert ledger.failed == {}
        assert len(ledger.up) == 3 and ledger.bytes_up > ledger.up_headers > 0
        assert finite(state.flat)
        assert state.params.keys() == first.params.keys()
    assert any(not torch.equal(x, first.params[name]) for name, x in state.params.items())


@pytest.mark.parametrize(
    "chosen", list(sample(EACH_ONCE)), ids=lambda chosen: "-".join(chosen.values())
)
def test_parts_work_together(chosen: dict[str, str], tmp_path: Path) -> None:
    check(chosen, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen", list(sample(120))[EACH_ONCE:], ids=lambda chosen: "-".join(chosen.values())
)
def test_many_parts_work_together(chosen: dict[str, str], tmp_path: Path) -> None:
    check(chosen, tmp_path)


def test_the_short_sample_holds_every_part() -> None:
    """Every part of every kind is met by the normal run."""
    drawn = list(sample(EACH_ONCE))
    for key, kind in KINDS.items():
        met = {chosen[key] for chosen in drawn} - {""}
        assert met == set(names(kind)) - UNFIT.get(key, set())
