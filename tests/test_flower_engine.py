"""Flower's engine and the nodes' workers in this process, on a grid that does to envelopes what
networks do."""

import random
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rounds import points_plan
from town import PLAN, Town, engine, node, run, silent, town

from fedpeft.core.tensors import equal
from fedpeft.engines.flower import engine as flower_engine
from fedpeft.engines.flower.engine import AGAIN, SOON
from fedpeft.engines.inprocess import InProcess
from fedpeft.errors import RunError
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.sockets import Envelope

pytestmark = pytest.mark.skipif(find_spec("flwr") is None, reason="flwr is not installed")


@pytest.fixture(scope="module")
def site() -> Site:
    return open_site(PLAN)


def test_the_bits_and_the_ledger_of_one_process_with_what_clients_remember(
    site: Site, tmp_path: Path
) -> None:
    said: list[str] = []
    made = engine(site, town(site, tmp_path), said, 30)
    made.gather()
    assert sorted(said) == [f"{client} is here" for client in site.data.clients]
    got, want = run(site, made), run(site, InProcess(site, Folder(tmp_path / "here")))
    assert all(equal(a.flat, b.flat) and x == y for (a, x), (b, y) in zip(got, want, strict=True))


def test_who_does_not_answer_is_a_named_failure_and_the_others_are_counted(
    site: Site, tmp_path: Path
) -> None:
    grid = town(site, tmp_path)
    made = engine(site, grid, [])
    made.gather()
    grid.nodes[8] = silent
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed == {"c001": "no answer within 0.7 s"}
    assert sorted(ledger.weights) == ["c000", "c002"]


def test_an_upload_that_is_broken_off_keeps_nobody_waiting_beyond_the_deadline(
    site: Site, tmp_path: Path
) -> None:
    """Flower waits for the rest of it as long as it may come."""
    grid, mended = town(site, tmp_path), threading.Event()
    made = engine(site, grid, [])
    made.gather()
    honest = grid.nodes[8]
    grid.nodes[8] = lambda envelope: (answer for answer in honest(envelope) if mended.wait())
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed == {"c001": "no answer within 0.7 s"} and sorted(ledger.weights) == [
        "c000",
        "c002",
    ]
    mended.set()
    made.deadline = 30
    [(_, ledger)] = run(site, made, rounds=1)
    assert not ledger.failed


def test_who_goes_in_the_middle_of_an_upload_fails_before_the_deadline(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpeft.engines.flower.engine.STUCK", 0.3)
    grid, began, never = town(site, tmp_path), time.monotonic(), threading.Event()
    made = engine(site, grid, [], deadline=60)
    made.gather()
    honest = grid.nodes[8]

    def goes(envelope: Envelope) -> Iterable[Envelope]:
        yield from honest(envelope)
        grid.nodes.pop(8)
        never.wait()

    grid.nodes[8] = goes
    [(_, ledger)] = run(site, made, rounds=1)
    never.set()
    assert ledger.failed == {"c001": "its node went in the middle of its answer"}
    assert (
        sorted(ledger.weights) == ["c000", "c002"]
        and time.monotonic() - began < 30
        and "c001" not in made.homes
    )


def test_who_is_gone_fails_at_once_and_may_come_back_as_another_node(
    site: Site, tmp_path: Path
) -> None:
    grid = town(site, tmp_path)
    made = engine(site, grid, [], deadline=30)
    made.gather()
    gone = grid.nodes.pop(8)
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed == {"c001": "its node is not connected"}
    grid.nodes[99] = gone
    [(_, ledger)] = run(site, made, rounds=1)
    assert not ledger.failed and made.homes["c001"] == 99


def test_what_makes_no_sense_is_a_failure_and_nothing_is_counted_twice(
    site: Site, tmp_path: Path
) -> None:
    grid = town(site, tmp_path)
    made = engine(site, grid, [])
    made.gather()
    grid.nodes[7] = lambda envelope: [Envelope({"kind": "what"})]
    honest = grid.nodes[8]
    grid.nodes[8] = lambda envelope: [*honest(envelope)] * 5
    grid.nodes[9] = lambda envelope: [Envelope({"kind": "reply"}, b"no update")]
    [(_, ledger)] = run(site, made, rounds=1)
    assert ledger.failed["c000"] == "its node's answer has no sense"
    assert "its checksum does not match" in ledger.failed["c002"]
    assert list(ledger.weights) == ["c001"]


def test_strangers_and_doubles_are_not_taken_in(site: Site, tmp_path: Path) -> None:
    grid, said = town(site, tmp_path), []  # type: ignore[var-annotated]
    grid.nodes[20] = node(site, "c000", tmp_path / "double")
    grid.nodes[21] = lambda envelope: [
        Envelope({"kind": "welcome", "client": "mallory", "differs": 7})
    ]
    grid.nodes[22] = lambda envelope: [Envelope({"kind": "no", "reason": "\033[2J" + "!" * 9999})]
    made = engine(site, grid, said)
    made.gather()
    made._greet(made._here())
    made._welcome()
    assert made.homes == {"c000": 7, "c001": 8, "c002": 9}
    assert (
        "mallory cannot serve: this run knows no client 'mallory'; it has c000, c001, c002" in said
    )
    assert "a node cannot serve:  [2J" + "!" * 496 in said
    assert "c000 cannot serve: another node is 'c000' already" in said


def test_who_cannot_serve_is_asked_again_soon_and_said_to_once(site: Site, tmp_path: Path) -> None:
    """Its worker comes a little later than it."""
    grid, asked, said = town(site, tmp_path), list[float](), list[str]()
    ready = grid.nodes[8]

    def begins(envelope: Envelope) -> Iterable[Envelope]:
        asked.append(time.monotonic())
        return (
            ready(envelope)
            if len(asked) > 3
            else [Envelope({"kind": "no", "client": "c001", "reason": "no worker"})]
        )

    grid.nodes[8] = begins
    made = engine(site, grid, said, 30)
    made.gather()
    assert made.homes["c001"] == 8
    assert said.count("c001 cannot serve: no worker") == 1 and said[-1] == "c001 is here"
    pauses = [after - before for before, after in pairwise(asked)]
    assert min(pauses) >= SOON and max(pauses) < AGAIN / 2 and pauses[-1] > pauses[0]


def test_nobody_is_an_error_that_says_who_is_missing(site: Site) -> None:
    with pytest.raises(
        RunError, match=r"no client is here after 0.3 s; c000: no node of that name came; c001"
    ):
        engine(site, Town({}), [], 0.3).gather()


def test_who_has_not_come_is_told_soon(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_engine, "AWAITED", 0.2)
    monkeypatch.setattr(flower_engine, "POLL", 0.05)
    grid, said = Town({7: node(site, "c000", tmp_path / "a")}), list[str]()
    engine(site, grid, said, 1.0).gather()
    assert said[:2] == ["c000 is here", "waiting for c001, c002"]
    assert sum(line.startswith("waiting") for line in said) == 1


def test_a_superlink_that_stumbles_costs_nothing(site: Site, tmp_path: Path) -> None:
    """It answers 500 now and then; a 403, which says that the run is over, ends it."""
    import httpx

    def fails(code: int) -> httpx.HTTPStatusError:
        asked = httpx.Request("POST", "http://superlink")
        return httpx.HTTPStatusError(
            "busy", request=asked, response=httpx.Response(code, request=asked)
        )

    @dataclass
    class Stumbling:
        """A town where every other call fails, as it comes."""

        town: Town
        code: int = 500
        draws: random.Random = field(default_factory=lambda: random.Random(1))

        def _or_fail(self) -> None:
            if self.draws.random() < 0.5:
                raise fails(self.code)

        def get_node_ids(self) -> list[int]:
            self._or_fail()
            return self.town.get_node_ids()

        def push_messages(self, messages: Iterable[Any]) -> list[str | None]:
            self._or_fail()
            return self.town.push_messages(messages)

        def pull_messages(self, names: Iterable[str]) -> list[Any]:
            self._or_fail()
            return self.town.pull_messages(names)

    grid, said = Stumbling(town(site, tmp_path)), []  # type: ignore[var-annotated]
    made = engine(site, grid, said, 30)  # type: ignore[arg-type]
    made.gather()
    [(_, ledger)] = run(site, made, rounds=1)
    assert not ledger.failed and "the SuperLink stumbles: busy" in said
    grid.code = 403
    with pytest.raises(httpx.HTTPStatusError):
        run(site, made, rounds=1)


def test_a_secure_sum_ends_in_the_bits_of_one_process_and_survives_who_drops_out(
    tmp_path: Path,
) -> None:
    """Four messages to each node in a round; the second round loses one who has shared its secrets
    already."""
    secure = {
        "exchange": {"name": "secure", "threshold": 2},
        "weighting": "uniform",
        "cohort": 3,
        "rounds": 2,
    }
    site = open_site(
        points_plan(partition={"name": "dirichlet", "clients": 3, "alpha": 10.0}, **secure)
    )
    grid, said = town(site, tmp_path), []  # type: ignore[var-annotated]
    made = engine(site, grid, said, 2)
    made.gather()
    rounds = federate(site.plan, made, start(site.plan, site.params()))
    state, ledger = next(rounds)
    [(wanted, _)] = run(site, InProcess(site, Folder(tmp_path / "here")), rounds=1)
    assert equal(state.flat, wanted.flat) and ledger.bytes_up > 0 and not ledger.failed
    honest = grid.nodes[8]
    grid.nodes[8] = lambda envelope: (
        silent(envelope) if envelope.head.get("phase") == "masked" else honest(envelope)
    )
    after, ledger = next(rounds)
    assert ledger.failed == {"c001": "no answer within 2 s"} and sorted(ledger.weights) == [
        "c000",
        "c002",
    ]
    assert not equal(after.params, state.params)
