"""Laws of secure aggregation: the sum is exact, whoever drops out, and nobody sees more than the
sum."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import slow_but
from rounds import Recording, on, points_plan
from secure_rounds import (
    BY_SIZE,
    SECURE,
    Losing,
    one_round,
    opened,
    recording_plan,
    secure_plan,
    stepped,
    updates_in_the_open,
)

from fedpeft.core.tensors import equal
from fedpeft.core.types import Reply
from fedpeft.engines.processes import Processes
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.errors import PlanError
from fedpeft.exchanges.secure import masks as masking
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Folder


@pytest.mark.parametrize(
    "changes",
    [SECURE, BY_SIZE, {**BY_SIZE, "personal": ["*.bias"]}],
    ids=["uniform", "size", "own"],
)
@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_is_that_of_the_rounded_updates_to_the_bit(
    points: Site, tmp_path: Path, changes: dict[str, object], bits: int
) -> None:
    plan = points_plan(**changes)
    plan = replace(plan, exchange=replace(plan.exchange, bits=bits))  # type: ignore[type-var]
    state, trained = start(plan, points.params()), []
    for after, ledger in federate(plan, on(points, plan, Folder(tmp_path)), state):
        if not plan.personal:
            trained = list(updates_in_the_open(points, plan, state).values())
            assert equal(after.params, stepped(state, trained, plan, 6))
            assert sum(ledger.weights.values()) == pytest.approx(
                sum(update.weight for update in trained)
            )
        assert (
            not ledger.failed
            and not ledger.note
            and ledger.metrics == {}
            and len(ledger.weights) == 6
        )
        state = after
    assert not equal(state.params, start(plan, points.params()).params)


def test_rounding_costs_next_to_nothing(points: Site, tmp_path: Path) -> None:
    plan = points_plan(**BY_SIZE)
    hidden = [
        state
        for state, _ in federate(
            plan, on(points, plan, Folder(tmp_path)), start(plan, points.params())
        )
    ]
    open_ = recording_plan(plan)
    plain = [
        state for state, _ in federate(open_, on(points, open_), start(open_, points.params()))
    ]
    for name, x in plain[-1].params.items():
        torch.testing.assert_close(hidden[-1].params[name], x, rtol=0, atol=1e-5)


PHASES = ("fit", "shares", "masked", "unmask")


@pytest.mark.parametrize(
    ("phase", "count"), [("fit", 1), ("shares", 2), ("masked", 1), ("masked", 2), ("unmask", 2)]
)
def test_who_drops_out_costs_its_own_update_and_no_other(
    points: Site, tmp_path: Path, phase: str, count: int
) -> None:
    plan = secure_plan(rounds=1)
    trained = updates_in_the_open(points, plan, start(plan, points.params()))
    lost = sorted(trained)[1 : 1 + count]
    before, after, ledger, _ = one_round(points, plan, tmp_path, lost={phase: lost})
    counted = sorted(trained) if phase == "unmask" else sorted(set(trained) - set(lost))
    roster = 6 - count if phase == "fit" else 6
    assert equal(after.params, stepped(before, [trained[c] for c in counted], plan, roster))
    assert sorted(ledger.weights) == sorted(after.accepted) == counted
    if phase == "unmask":
        assert not ledger.failed and all(
            f"{c} counts, but did not answer all" in ledger.note for c in lost
        )
    else:
        assert ledger.failed == dict.fromkeys(lost, f"lost in {phase}") and not ledger.note


def test_drop_outs_before_and_after_masking_at_once(points: Site, tmp_path: Path) -> None:
    plan = secure_plan(rounds=1, cohort=9, exchange={"name": "secure", "threshold": 5})
    trained = updates_in_the_open(points, plan, start(plan, points.params()))
    a, b, c, d, *rest = sorted(trained)
    lost = {"fit": [a], "shares": [b], "masked": [c], "unmask": [d]}
    before, after, _, _ = one_round(points, plan, tmp_path, lost=lost)
    assert equal(after.params, stepped(before, [trained[x] for x in (d, *rest)], plan, 8))


@pytest.mark.parametrize("phase", PHASES)
def test_below_the_threshold_the_round_fails_by_name_and_the_next_goes_on(
    points: Site, tmp_path: Path, phase: str
) -> None:
    plan = secure_plan()
    clients = sorted(updates_in_the_open(points, plan, start(plan, points.params())))
    before, after, ledger, _ = one_round(points, plan, tmp_path, lost={phase: clients[:3]})
    assert (
        equal(after.params, before.params)
        and after.round == 1
        and after.accepted == {} == ledger.weights
    )
    few = f"3 clients answered '{phase}', 4 are needed"
    assert ledger.note == f"{few}; 0 good replies, 1 needed: nothing changes"
    assert ledger.failed == dict.fromkeys(clients[:3], f"lost in {phase}")
    [(_, following)] = federate(plan, on(points, plan, Folder(tmp_path)), after)
    assert len(following.weights) == 6 and not following.note


def test_no_message_holds_an_update_and_masked_ones_look_like_noise(
    points: Site, tmp_path: Path
) -> None:
    plan = secure_plan(rounds=1)
    trained = updates_in_the_open(points, plan, start(plan, points.params()))
    sent: dict[tuple[str, str], bytes] = {}

    def keep(phase: str, client: str) -> Callable[[bytes], bytes]:
        return lambda payload: (sent.setdefault((phase, client), payload), payload)[1]

    harm = {(phase, client): keep(phase, client) for phase in PHASES for client in trained}
    for _ in range(2):  # sessions differ, sums do not: what is kept is that of the first
        _, after, _, engine = one_round(points, plan, tmp_path, harm=harm)
    by, total = plan.exchange.shift(6), np.zeros(28, dtype=np.uint32)  # type: ignore[attr-defined]
    bits = 0
    for client, update in trained.items():
        plain = masking.integers(update, 32, by)
        payload = sent["masked", client]
        message = opened(payload)
        assert message.tensors.keys() == {"masked"} == message.tensors["masked"].keys()
        got = masking.read(message.tensors["masked"]["masked"])
        assert got.shape == (28,) and int((got == plain).sum()) <= 1 and message.values == {}
        assert not any(plain[:4].tobytes() in every for every in sent.values())
        bits += sum(int(x).bit_count() for x in (got - plain).tolist())
        total = total + got
    assert 0.45 < bits / (6 * 28 * 32) < 0.55, "masks: about half of the bits are set"
    assert bool((total != sum(masking.integers(u, 32, by) for u in trained.values())).any()), (
        "own masks are still on"
    )
    assert len({job.phase for job in engine.jobs}) == 4 and after.round == 1


def test_every_session_has_keys_of_its_own(points: Site, tmp_path: Path) -> None:
    plan = secure_plan(rounds=1)
    seen = []
    for _ in range(2):
        recording = Recording(on(points, plan, Folder(tmp_path)))
        next(federate(plan, recording, start(plan, points.params())))
        seen.append([reply.payload for reply in recording.replies if isinstance(reply, Reply)])
    assert not set(seen[0]) & set(seen[1])


def test_every_message_is_in_the_ledger(points: Site, tmp_path: Path) -> None:
    plan = secure_plan(rounds=1)
    recording = Recording(on(points, plan, Folder(tmp_path)))
    _, ledger = next(federate(plan, recording, start(plan, points.params())))
    for client in ledger.weights:
        assert ledger.down[client] == sum(
            len(job.payload) for job in recording.jobs if job.client == client
        )
        replies = [r for r in recording.replies if isinstance(r, Reply) and r.client == client]
        assert (
            ledger.up[client] == sum(len(reply.payload) for reply in replies) and len(replies) == 4
        )
    keys, masked, sealed, shares = 2 * 32, 28 * 4, 6 * 92, 6 * 32  # 92: two shares, a nonce, a tag
    assert ledger.up_headers == ledger.bytes_up - 6 * (keys + masked + sealed + shares)


@pytest.mark.parametrize("engine", slow_but([Cohort], [Processes, Cohort]))
def test_engines_end_in_the_same_parameters(points: Site, tmp_path: Path, engine: type) -> None:
    plan = secure_plan()
    site = replace(points, plan=plan)
    other = engine(site, Folder(tmp_path / "a"), **({"workers": 2} if engine is Processes else {}))
    try:
        *_, (there, ledger) = federate(plan, other, start(plan, points.params()))
    finally:
        other.close()
    *_, (here, _) = federate(
        plan, on(points, plan, Folder(tmp_path / "b")), start(plan, points.params())
    )
    assert not ledger.failed and len(ledger.weights) == 6
    for name, x in here.params.items():
        torch.testing.assert_close(
            there.params[name], x, rtol=0, atol=0 if engine is Processes else 1e-5
        )


class Killed(Exception):
    """The server is gone."""


OWN = {**SECURE, "personal": ["*.bias"]}


@pytest.mark.parametrize(
    ("changes", "phase"),
    [(SECURE, "masked"), (SECURE, "unmask"), (OWN, "fit"), (OWN, "shares"), (OWN, "unmask")],
    ids=["masked", "unmask", "own-fit", "own-shares", "own-unmask"],
)
def test_a_round_that_was_cut_short_is_done_again_with_new_keys_and_ends_in_the_same_bits(
    points: Site, tmp_path: Path, phase: str, changes: dict[str, object]
) -> None:
    plan = points_plan(**changes)
    whole = list(
        federate(plan, on(points, plan, Folder(tmp_path / "a")), start(plan, points.params()))
    )

    def kill(payload: bytes) -> bytes:
        raise Killed

    folder = Folder(tmp_path / "b")
    state, _ = next(federate(plan, on(points, plan, folder), start(plan, points.params())))
    victim = sorted(whole[1][1].weights)[3]
    engine = Losing(on(points, plan, folder), harm={(phase, victim): kill})
    with pytest.raises(Killed):
        next(federate(plan, engine, state))
    [(again, ledger)] = federate(plan, on(points, plan, folder), state)
    assert equal(again.params, whole[1][0].params) and not ledger.failed and not ledger.note


def test_without_a_place_for_sessions_it_does_not_begin(points: Site) -> None:
    plan = secure_plan()
    with pytest.raises(PlanError, match="give the engine a store"):
        next(federate(plan, on(points, plan), start(plan, points.params())))
