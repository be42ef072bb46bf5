"""A server that asks a node for more than its owner agreed to: it gets refusals with a reason."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import slow_but
from rounds import POINTS

from benchmarks.federation import until
from fedpeft.core.tensors import finite, layout
from fedpeft.core.types import Failure, Job, Tensors
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.client import Worker
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.sockets import SOCKET, Envelope
from tools.curious_questions import FIELDS, known_phases, odd_layouts
from tools.curious_server import (
    CLIENTS,
    SMALL,
    WAYS,
    AtSocket,
    Curious,
    interrogate,
    kinds,
    list_breaches,
    table,
    target_of,
)

pytestmark = pytest.mark.skipif(
    find_spec("cryptography") is None or find_spec("Crypto") is None, reason="no secure sums"
)
SEVERAL = {
    **POINTS,
    "partition": {"name": "iid", "clients": CLIENTS},
    "rounds": 3,
    "cohort": 4,
    "seed": 1,
}


FAST = (
    *("plain", "class means in a phase"),
    *("local_dp", "client_dp", "dp_sgd", "secure sum"),
)


def asked(kind: str, folder: Path, **changes: Any) -> Curious:
    return interrogate(kind, {**SEVERAL, **kinds().get(kind, {}), **changes}, folder)


@pytest.mark.parametrize("kind", slow_but(FAST, sorted(kinds())))
def test_a_node_answers_its_plan_and_nothing_else(kind: str, tmp_path: Path) -> None:
    found = asked(kind, tmp_path)
    assert list_breaches([found]) == []
    assert found.own == found.same == found.asked >= 2
    assert {one.way for one in found.outcomes} == set(WAYS)
    assert len(found.outcomes) > 100
    # a reason says what came and what is allowed, and is no error of Python's
    bare = {one.reason for one in found.outcomes if one.reason.startswith(("KeyError", "Type"))}
    untold = {one.reason for one in found.outcomes if "its words stay here" in one.reason}
    assert not bare and not untold


def test_every_phase_of_a_registered_part_is_asked_for() -> None:
    every = {"class_means", "fit", "masked", "shares", "story", "unmask", "vote", "examples"}
    assert set(known_phases()) >= every


def test_private_plans_are_among_the_kinds() -> None:
    events = {
        kind: part.event.unit
        for kind, changes in kinds().items()
        if (part := read_plan({**SEVERAL, **changes}).private_part) is not None
    }
    assert set(events) >= {"local_dp", "client_dp", "dp_sgd", "dp_sgd, own head"}
    assert set(events.values()) == {"client", "example"}


@dataclass(frozen=True)
class Obliging:
    """A node without an agreement: it answers each job that its worker can answer."""

    site: Site
    client: str
    folder: Path

    def answer(self, envelope: Envelope) -> Envelope:
        head = {key: envelope.head[key] for key in FIELDS}
        done = Worker(self.site, Folder(self.folder))(Job(**head, payload=envelope.body))
        if isinstance(done, Failure):
            return Envelope({"kind": "failed", "reason": done.reason})
        return Envelope({"kind": "reply"}, done.payload)


def test_what_answers_too_much_is_found_out(tmp_path: Path) -> None:
    found = interrogate("obliging", SEVERAL, tmp_path, Obliging)
    told = list_breaches([found])
    assert "obliging: answered seed, seed 0" in told
    assert "obliging: answered again, moved" in told
    assert "obliging: answered round, round 1000000000" in told
    assert not any("answered layout" in words or "answered phase" in words for words in told)
    refused, answered = (int(x) for x in table([found])[-1].split("|")[10:12])
    assert answered == len(told) and refused + answered == len(found.outcomes)


def test_odd_layouts_are_odd() -> None:
    sent = {"params": {"a": torch.zeros(2, 3), "b": torch.zeros(2)}}
    odd = odd_layouts(sent)
    assert {"params: one more", "params: no number", "without params", "another group"} <= set(odd)

    def shown(groups: Mapping[str, Tensors]) -> list[object]:
        return [(group, layout(some), finite(some)) for group, some in sorted(groups.items())]

    assert all(shown(groups) != shown(sent) for groups in odd.values())


@contextmanager
def worker(plan: Path, number: int, folder: Path) -> Iterator[AtSocket]:
    """A worker of `fedpeft node`, as an owner starts it."""
    log = folder.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "fedpeft", "node", plan, "--client", str(number)),
                *("--out", folder, "--yes"),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            until((folder / SOCKET).exists, 120, log.read_text, process)
            yield AtSocket(folder)
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local_dp", "secure sum"])
def test_a_worker_of_fedpeft_node_refuses_at_its_socket(kind: str, tmp_path: Path) -> None:
    """The process that an owner starts, and the socket of its folder."""
    settings = {**SMALL, **kinds()[kind]}
    plan = tmp_path / "plan.toml"
    plan.write_text(read_plan(settings).toml())
    clients = [f"c{k:03}" for k in range(CLIENTS)]
    target, _ = target_of(read_plan(settings), clients)
    with worker(plan, clients.index(target), tmp_path / "node") as node:
        found = interrogate(kind, settings, tmp_path / "others", lambda *_: node)
    assert list_breaches([found]) == []
    assert found.own == found.same == found.asked >= 2
    assert len(found.outcomes) > 100
