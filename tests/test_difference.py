"""A downlink of changes: the server sends what is new since its last message, compressed, and what
the codec drops comes later."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rounds import Recording, Tampering, distance, last, on, points_plan, run

from fedpeft import PlanError
from fedpeft.core.conversation import PARAMS
from fedpeft.core.interfaces import Coding
from fedpeft.core.tensors import equal
from fedpeft.core.types import ClientId, Failure, Job, State, Tensors
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.plan.coding import DOWNLINK
from fedpeft.registry import build
from fedpeft.rounds.client import ClientRound, Worker
from fedpeft.rounds.loop import Ledger, federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder

TERNARY = {"downlink": {"name": "difference", "codec": "ternary"}}
EXACT = {"downlink": {"name": "difference", "codec": "dense"}}


def test_by_hand() -> None:
    """From h = 0 to θ = (4, −1, 0.5, −3, 0.1) with the threshold 0.7: first ±3.5 at the two largest
    entries, then, of the rest (0.5, −1, 0.5, 0.5, 0.1), ±0.625 at four."""
    codec = build("codec", "difference")
    theta = {"a": torch.tensor([4.0, -1.0, 0.5, -3.0, 0.1])}
    held: Tensors = {"a": torch.zeros(5)}
    steps = []
    for _ in range(2):
        how = Coding("down", held=held)
        held = codec.decode(codec.encode(theta, how), how)
        steps.append(held["a"].tolist())
    assert steps[0] == [3.5, 0, 0, -3.5, 0]
    assert steps[1] == [4.125, -0.625, 0.625, -2.875, 0]


@pytest.mark.parametrize(
    "inner", ["ternary", "sign", {"name": "topk", "density": 0.1}, "int8", "randk"], ids=str
)
def test_what_is_held_comes_to_what_is_sent(inner: Any) -> None:
    """Nothing is lost for ever: what a codec drops of the change is in the next difference. A step
    never makes the error longer, since each codec is the nearest point of its kind or drops."""
    codec = build("codec", {"name": "difference", "codec": inner})
    draws = torch.Generator().manual_seed(3)
    theta = {"a": torch.randn(200, generator=draws), "n": torch.tensor(7)}
    held: Tensors = {"a": torch.zeros(200), "n": torch.tensor(3)}
    errors = []
    for round in range(40):
        how = Coding("down", root=round, held=held)
        held = codec.decode(codec.encode(theta, how), how)
        errors.append(float((theta["a"] - held["a"]).norm()))
    assert int(held["n"]) == 7
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(errors))
    assert errors[-1] < 0.3 * errors[0]


def test_a_variance_stays_one_and_truth_values_differ_exactly() -> None:
    codec = build("codec", {"name": "difference", "codec": "sign"})
    held = {"n.running_var": torch.tensor([0.1, 2.0]), "b": torch.tensor([True, False])}
    sent = {"n.running_var": torch.tensor([0.05, 0.1]), "b": torch.tensor([True, True])}
    how = Coding("down", held=held)
    got = codec.decode(codec.encode(sent, how), how)
    # the mean change is 0.975: 0.1 − 0.975 is no variance
    assert got["n.running_var"].tolist() == pytest.approx([0.0, 1.025])
    assert got["b"].tolist() == [True, True]


def test_other_tensors_than_are_held_come_whole() -> None:
    codec = build("codec", "difference")
    sent = {"a": torch.tensor([4.0, -1.0])}
    for held in ({"a": torch.zeros(3)}, {"b": torch.zeros(2)}, None):
        how = Coding("down", held=held)
        assert equal(codec.decode(codec.encode(sent, how), how), sent)


@dataclass(frozen=True)
class Watching:
    """An engine that keeps, by round and client, what a client starts from."""

    worker: Worker
    seen: dict[tuple[int, ClientId], Tensors] = field(default_factory=dict)

    @property
    def clients(self) -> list[ClientId]:
        return list(self.worker.site.data.clients)

    def run(self, jobs: Iterable[Job]) -> Iterator[Any]:
        for job in jobs:
            opened = self.worker.open(job)
            assert isinstance(opened, ClientRound)
            self.seen[job.round, job.client] = dict(opened.client.found.message.tensors[PARAMS])
            yield self.worker.close(opened, partial(self.worker.alone, opened))


def ended(rounds: list[tuple[State, Ledger]]) -> State:
    assert not any(ledger.failed for _, ledger in rounds)
    return rounds[-1][0]


def test_an_exact_codec_is_federated_averaging(points: Site, tmp_path: Path) -> None:
    """a + (b − a) is b but for rounding."""
    change = run(points, points_plan(**EXACT), Folder(tmp_path))
    assert distance(last(change), last(run(points, points_plan()))) < 1e-6


def test_all_train_from_one_model_and_who_missed_a_round_gets_the_whole(
    points: Site, tmp_path: Path
) -> None:
    plan = points_plan(cohort=12, rounds=5, method="full", **TERNARY)
    engine = Watching(Worker(replace(points, plan=plan), Folder(tmp_path)))
    rounds = list(federate(plan, engine, start(plan, points.params())))
    sizes: dict[bool, set[int]] = {True: set(), False: set()}
    for state, ledger in rounds:
        now = state.round - 1
        starts = [x for (round, _), x in engine.seen.items() if round == now]
        held = state.memory[DOWNLINK]
        assert len(starts) == 12 and all(equal(one, held) for one in starts)
        before = rounds[now - 1][1].down if now else {}
        for client, sent in ledger.down.items():
            sizes[client in before].add(sent)
    assert sizes[True] and max(sizes[True]) < min(sizes[False])
    assert len(sizes[False]) == 1


def test_bytes_fall_by_what_the_codec_spares(tmp_path: Path) -> None:
    plan = points_plan(
        task={"name": "parts:Points", "network": "hidden", "features": 24},
        data={"name": "parts:Blobs", "features": 24, "examples": 600},
        method="full",
        cohort=24,
        rounds=3,
        **TERNARY,
    )
    site = open_site(plan)
    rounds = run(site, plan, Folder(tmp_path))
    ended(rounds)
    numbers = sum(x.numel() for x in site.params().values())
    whole, *changes = (ledger.bytes_down / 24 for _, ledger in rounds)
    assert whole > 4 * numbers
    assert all(change < whole - 4 * numbers + numbers / 2 for change in changes)


def test_a_client_that_failed_gets_the_whole(points: Site, tmp_path: Path) -> None:
    plan = points_plan(cohort=24, rounds=3, **TERNARY)
    here = replace(points, plan=plan)
    lost = points.data.clients[0]
    recording = Recording(on(here, plan, Folder(tmp_path)))
    times = iter(range(10))

    def harm(reply: Any) -> Any:
        return Failure(lost, "lost") if next(times) == 0 else reply

    engine = Tampering(recording, {lost: harm})
    rounds = list(federate(plan, engine, start(plan, points.params())))
    assert [lost in ledger.failed for _, ledger in rounds] == [True, False, False]
    first, second, third = (ledger.down for _, ledger in rounds)
    assert second[lost] == first[lost] > max(n for c, n in second.items() if c != lost)
    assert third[lost] < second[lost]


def test_a_client_without_its_memory_fails_and_then_gets_the_whole(
    points: Site, tmp_path: Path
) -> None:
    plan = points_plan(cohort=24, rounds=3, **TERNARY)
    stores = [Folder(tmp_path / one) for one in ("a", "b")]
    rounds = federate(plan, on(points, plan, stores[0]), start(plan, points.params()))
    state = next(rounds)[0]
    (after, ledger), *_ = list(federate(plan, on(points, plan, stores[1]), state))
    assert len(ledger.failed) == 24 and equal(after.params, state.params)


@pytest.mark.parametrize("split", [1, 2])
def test_a_resume_is_not_noticed(points: Site, tmp_path: Path, split: int) -> None:
    plan = points_plan(cohort=12, rounds=3, **TERNARY)
    ends = []
    for stops in ([3], [split, 3 - split]):
        store, state = Folder(tmp_path / str(stops)), start(plan, points.params())
        for count in stops:
            rounds = federate(plan, on(points, plan, store), state)
            state = [next(rounds)[0] for _ in range(count)][-1]
        ends.append({**state.flat, **state.memory[DOWNLINK]})
    assert equal(*ends)


def test_one_by_one_and_together(points: Site, tmp_path: Path) -> None:
    plan = points_plan(cohort=6, rounds=3, **EXACT)
    engine = Cohort(replace(points, plan=plan), Folder(tmp_path / "together"))
    one = run(points, plan, Folder(tmp_path / "alone"))
    other = list(federate(plan, engine, start(plan, points.params())))
    assert not engine.alone
    assert distance(last(other), last(one)) <= 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"uplink": {"name": "difference", "codec": "sign"}}, "what goes up is a change already"),
        ({**TERNARY, "algorithms": [{"name": "fedbuff", "buffer": 2}]}, "leave out fedbuff"),
        ({**TERNARY, "phase": [{"until": 2, "set": ["downlink='dense'"]}]}, "for all rounds"),
        ({"phase": [{"until": 2, "set": ["downlink='difference'"]}]}, "for all rounds"),
        ({**TERNARY, "algorithms": ["ifca"]}, "leave out one of them"),
        ({"downlink": {"name": "difference", "codec": "difference"}}, "needs no memory"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        points_plan(**changes)
