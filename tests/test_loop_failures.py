"""Laws of a round in which something goes wrong: it is named, it costs its own client, and the
round goes on."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from rounds import (
    FEEDBACK,
    MEMORIES,
    Recording,
    Tampering,
    good,
    last,
    merged,
    on,
    points_plan,
    run,
)

from fedpeft.core.tensors import equal, finite, layout
from fedpeft.core.types import (
    Cohort,
    Context,
    Event,
    Failure,
    Reply,
    State,
    Tensors,
    Update,
    Weighted,
)
from fedpeft.errors import PlanError
from fedpeft.plan.plan import Plan
from fedpeft.rounds.loop import Ledger, federate, start
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.payloads import pack, unpack


@pytest.mark.parametrize("answered", [True, False], ids=["says so", "silent"])
def test_a_client_that_declines_one_question_is_asked_the_others(
    points: Site, answered: bool
) -> None:
    plan = points_plan(algorithms=["class_means"], cohort=24, rounds=1)
    client = points.data.clients[3]
    seen: list[int] = []

    def decline(reply: Reply | Failure) -> Reply | Failure:
        seen.append(len(seen))
        return Failure(client, "declined", answered) if len(seen) == 1 else reply

    engine = Tampering(on(points, plan), {client: decline})
    [(_, ledger)] = federate(plan, engine, start(plan, points.params()))
    assert len(seen) == 1 + answered and (client in ledger.weights) == answered
    if answered:
        assert not ledger.failed
        assert ledger.note == f"{client} counts, but did not answer all: declined"
    else:
        assert ledger.failed == {client: "declined"} and not ledger.note


def test_of_two_questions_that_failed_both_reasons_are_told(points: Site) -> None:
    plan = points_plan(algorithms=["class_means"], cohort=24, rounds=1)
    client, whys = points.data.clients[3], iter(["no labels", "no memory"])
    fail: Callable[[Reply | Failure], Failure] = lambda _: Failure(client, next(whys), True)
    engine = Tampering(on(points, plan), {client: fail})
    [(_, ledger)] = federate(plan, engine, start(plan, points.params()))
    assert ledger.failed == {client: "no labels; no memory"} and len(ledger.weights) == 23


def test_a_reply_that_was_not_counted_leaves_no_memory(points: Site, tmp_path: Path) -> None:
    """With too few replies the round counts for nothing, so what the clients kept of it counts for
    nothing either."""
    plan = points_plan(**FEEDBACK, cohort=24, rounds=2, min_replies=24)
    victim = points.data.clients[5]
    lost: Callable[[Reply | Failure], Failure] = lambda reply: Failure(
        reply.client, "lost on the way"
    )
    engine = on(points, plan, Folder(tmp_path / "a"))
    state, ledger = next(
        federate(plan, Tampering(engine, {victim: lost}), start(plan, points.params()))
    )
    assert state.accepted == {} and equal(state.params, points.params()) and state.round == 1
    assert (
        ledger.note == "23 good replies, 24 needed: nothing changes" and len(ledger.weights) == 23
    )
    resumed = run(points, plan, Folder(tmp_path / "a"), state)
    unspoilt = run(points, plan, Folder(tmp_path / "b"), State(1, points.params()))
    assert equal(last(resumed), last(unspoilt))


def changed(
    plan: Plan, expected: Tensors, change: Callable[[Update], Update]
) -> Callable[[Reply | Failure], Reply]:
    def harm(reply: Reply | Failure) -> Reply:
        assert isinstance(reply, Reply)
        update = unpack(reply.client, reply.payload, plan.uplink, layout(expected))
        return Reply(reply.client, pack(change(update), plan.uplink))

    return harm


def delta(change: Callable[[Tensors], Tensors]) -> Callable[[Update], Update]:
    return lambda update: replace(update, delta=change(update.delta))


HARMS: dict[str, tuple[Callable[[Update], Update], str]] = {
    "nan": (delta(lambda d: {n: x.sqrt() - 1e30 * 1e30 for n, x in d.items()}), "not finite"),
    "shape": (delta(lambda d: {n: x[..., :1] for n, x in d.items()}), "came as"),
    "name": (
        delta(lambda d: {f"other.{n}": x for n, x in d.items()}),
        "lacks 2 tensors of the plan",
    ),
    "type": (delta(lambda d: {n: x.double() for n, x in d.items()}), "came as .*float64"),
    "missing": (delta(lambda d: dict(list(d.items())[:1])), "lacks 1 tensors"),
    "weight": (lambda update: replace(update, weight=0.0), "must be positive"),
    "metric": (
        lambda u: replace(u, metrics={"loss": Weighted(float("inf"), 1.0)}),
        "no finite number",
    ),
}


@pytest.mark.parametrize("harm", sorted(HARMS))
def test_a_bad_update_is_a_named_failure_and_the_rest_are_averaged(points: Site, harm: str) -> None:
    plan = points_plan(rounds=1)
    recording = Recording(on(points, plan))
    next(federate(plan, recording, start(plan, points.params())))
    victim, *others = recording.jobs
    change, reason = HARMS[harm]
    engine = Tampering(on(points, plan), {victim.client: changed(plan, points.params(), change)})
    [(state, ledger)] = federate(plan, engine, start(plan, points.params()))
    assert ledger.failed.keys() == {victim.client} and victim.client not in state.accepted
    with pytest.raises(AssertionError, match=reason):  # the reason says what is wrong
        raise AssertionError(ledger.failed[victim.client])
    assert ledger.up[victim.client] > 0, "its bytes crossed, so they count"
    rest = [
        unpack(r.client, r.payload, plan.uplink, layout(points.params()))
        for r in good(recording, others)
    ]
    for name, x in state.params.items():
        total = sum(update.weight for update in rest)
        mean = sum(update.delta[name] * (update.weight / total) for update in rest)
        torch.testing.assert_close(x, points.params()[name] + mean, rtol=0, atol=1e-6)


def test_a_truncated_reply_and_a_lost_client_are_failures(points: Site) -> None:
    plan = points_plan(rounds=1)
    recording = Recording(on(points, plan))
    next(federate(plan, recording, start(plan, points.params())))
    a, b, *_ = (job.client for job in recording.jobs)
    harm: dict[str, Callable[[Reply | Failure], Reply | Failure]] = {
        a: lambda reply: (
            Reply(reply.client, reply.payload[:-1]) if isinstance(reply, Reply) else reply
        ),
        b: lambda reply: Failure(reply.client, "gone"),
    }
    [(_, ledger)] = federate(plan, Tampering(on(points, plan), harm), start(plan, points.params()))
    assert (
        "corrupt or truncated" in ledger.failed[a]
        and ledger.failed[b] == "gone"
        and b not in ledger.up
    )
    assert len(ledger.weights) == 2


def test_a_training_that_diverges_fails_by_name_and_nothing_changes(points: Site) -> None:
    plan = points_plan(rounds=2, local={"lr": 1e38, "batch_size": 4, "epochs": 2})
    for state, ledger in run(points, plan):
        assert equal(state.params, points.params()) and state.accepted == {}
        assert len(ledger.failed) == 4 and all(
            "diverged" in reason for reason in ledger.failed.values()
        )
        assert ledger.note.startswith("0 good replies, 1 needed")
    assert state.round == 2


def test_what_the_codec_cannot_hold_is_a_named_failure(points: Site) -> None:
    plan = points_plan(rounds=1, uplink="float16", local={"lr": 1e6, "batch_size": 16})
    [(_, ledger)] = run(points, plan)
    assert len(ledger.failed) == 4 and all(
        "float16 ends at 65504" in reason for reason in ledger.failed.values()
    )


def test_a_client_that_lost_its_memory_is_a_named_failure(points: Site, tmp_path: Path) -> None:
    plan = points_plan(**FEEDBACK, rounds=2, cohort=24)
    rounds = federate(plan, on(points, plan, Folder(tmp_path)), start(plan, points.params()))
    next(rounds)
    lost = points.data.clients[0]
    shutil.rmtree(Folder(tmp_path).place(lost))
    _, ledger = next(rounds)
    assert list(ledger.failed) == [lost] and "its memory of round 0 is gone" in ledger.failed[lost]


@MEMORIES
def test_a_memory_without_a_place_is_an_error_before_anyone_trains(
    points: Site, changes: dict[str, object]
) -> None:
    plan = points_plan(**changes)
    with pytest.raises(PlanError, match="give the engine a store"):
        next(federate(plan, on(points, plan)))


def test_a_memory_without_a_place_that_nobody_saw_is_a_named_failure(points: Site) -> None:
    plan = points_plan(**FEEDBACK, rounds=1)
    [(_, ledger)] = federate(plan, Recording(on(points, plan)), start(plan, points.params()))
    assert len(ledger.failed) == 4
    assert all("clients have a memory" in reason for reason in ledger.failed.values())


def huge(*signs: int) -> dict[str, torch.Tensor]:
    return {"a": torch.tensor([3e38 * sign for sign in signs]), "b": torch.ones(2)}


@pytest.mark.parametrize("aggregator", ["mean", "median"])
def test_an_infinite_mean_of_finite_updates_changes_nothing(aggregator: str) -> None:
    plan = points_plan(aggregator=aggregator)
    state = State(3, {"a": torch.zeros(2), "b": torch.zeros(2)}, accepted={"x": 1})
    updates = [Update("x", huge(1, 1)), Update("y", huge(-1, 1))]
    update = plan.aggregator(iter(updates), state, lambda client: state.params)
    assert not finite(update.delta), "the case that this test is about"
    ledger = Ledger(3)
    assert merged(plan, updates, state, ledger) == replace(state, round=4)
    assert ledger.note == "the server's step makes 'a' infinite or no number: nothing changes"


@pytest.mark.parametrize(
    ("server", "correction"),
    [("adam", "none"), ("yogi", "none"), ("adagrad", "none"), ("adam", "scaffold")],
)
def test_one_update_whose_square_is_infinite_does_not_poison_the_run(
    server: str, correction: str
) -> None:
    plan = points_plan(server=server, local={"correction": correction, "lr": 0.1})
    state = start(plan, {"a": torch.zeros(2), "b": torch.zeros(2)})
    ordinary = {name: torch.ones(2) for name in state.flat}
    large, small = Ledger(0), Ledger(1)
    giant = Update("x", {**ordinary, "a": torch.full((2,), 1e20)})
    kept = merged(plan, [giant], state, large)
    assert kept == replace(state, round=1) and "'v/a'" in large.note
    moved = merged(plan, [Update("x", ordinary)], kept, small)
    assert finite(moved.flat) and not small.note and moved.accepted == {"x": 1}
    assert bool((moved.params["a"] > 0).all())


def test_a_state_that_the_downlink_cannot_hold_is_an_error_that_names_the_codec(
    points: Site,
) -> None:
    plan = points_plan(downlink="float16")
    state = State(2, {name: torch.full_like(x, 1e5) for name, x in points.params().items()})
    with pytest.raises(
        PlanError, match="downlink codec 'float16' cannot hold the state of round 2: tensor 'head"
    ):
        next(federate(plan, on(points, plan), state))


@dataclass(frozen=True)
class Doorman:
    """A stage that does not let one client's updates in."""

    client: str

    @property
    def remembers(self) -> bool:
        return False

    @property
    def event(self) -> Event | None:
        return None

    def on_client(
        self, update: Update, memory: Tensors, context: Context
    ) -> tuple[Update, Tensors]:
        return update, {}

    def on_arrival(self, update: Update) -> Update:
        if update.client == self.client:
            raise ValueError("not with these shoes")
        return update

    def on_server(self, update: Update, cohort: Cohort) -> Update:
        return update


def test_what_a_stage_does_not_let_in_is_a_failure_of_its_client(points: Site) -> None:
    plan = points_plan(cohort=24, rounds=1)
    victim = points.data.clients[5]
    [(state, ledger)] = run(points, replace(plan, stages=(Doorman(victim),)))
    assert ledger.failed == {victim: "not with these shoes"} and len(ledger.weights) == 23
    lost: Callable[[Reply | Failure], Failure] = lambda reply: Failure(
        reply.client, "lost on the way"
    )
    [(without, _)] = federate(
        plan, Tampering(on(points, plan), {victim: lost}), start(plan, points.params())
    )
    assert equal(state.params, without.params)
