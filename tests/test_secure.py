"""Laws of secure aggregation: the sum is exact, whoever drops out, and nobody sees more than the sum."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounds import Recording, on, points_plan

from fedpeft.core.interfaces import Engine
from fedpeft.core.stores import Folder
from fedpeft.core.tensors import equal, layout
from fedpeft.core.types import Failure, Job, Reply, State, Tensors, Update
from fedpeft.core.wire import frame, unframe, unpack
from fedpeft.engines.cohort import Cohort
from fedpeft.engines.processes import Processes
from fedpeft.errors import PlanError
from fedpeft.exchanges import masking, sharing
from fedpeft.loop import Ledger, federate, start
from fedpeft.plan import Plan
from fedpeft.site import Site

SECURE = {"exchange": {"name": "secure", "threshold": 4}, "weighting": "uniform", "cohort": 6, "rounds": 2}
BY_SIZE = {**SECURE, "exchange": {"name": "secure", "threshold": 4, "max_weight": 100}, "weighting": "examples"}


def secure_plan(**changes: object) -> Plan:
    return points_plan(**{**SECURE, **changes})


@dataclass(frozen=True)
class Losing:
    """An engine on whose way some clients are lost from a message on, or their answers harmed."""

    inner: Engine
    lost: Mapping[str, Sequence[str]] = field(default_factory=dict)
    harm: Mapping[tuple[str, str], Callable[[bytes], bytes]] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)

    @property
    def clients(self) -> Sequence[str]:
        return self.inner.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for job in jobs:
            self.jobs.append(job)
            if job.client in self.lost.get(job.phase, ()):
                yield Failure(job.client, f"lost in {job.phase}")
                continue
            [reply] = self.inner.run([job])
            if isinstance(reply, Reply) and (job.phase, job.client) in self.harm:
                reply = Reply(reply.client, self.harm[job.phase, job.client](reply.payload))
            yield reply


def updates_in_the_open(site: Site, plan: Plan, state: State) -> dict[str, Update]:
    """What each client of the round trains, as it would send it without secure aggregation."""
    recording = Recording(on(site, replace(plan, exchange=points_plan().exchange)))
    next(federate(recording_plan(plan), recording, state))
    expected = layout(state.params)
    return {r.client: unpack(r.client, r.payload, plan.uplink, expected) for r in recording.replies}  # type: ignore[union-attr]


def recording_plan(plan: Plan) -> Plan:
    return replace(plan, exchange=points_plan().exchange)


def stepped(state: State, updates: Iterable[Update], plan: Plan, clients: int) -> Tensors:
    """The state after adding the mean of rounded updates, computed with plain integers."""
    by = plan.exchange.shift(clients)  # type: ignore[attr-defined]
    updates = list(updates)
    weight = sum(int(update.weight) for update in updates)
    new = {}
    for name, x in state.params.items():
        total = sum((u.delta[name].double() * u.weight * 2.0**by).round() for u in updates)
        new[name] = x + (total * 2.0**-by / weight).float()
    return new


def one_round(site: Site, plan: Plan, folder: Path, **losing: object) -> tuple[State, State, Ledger, Losing]:
    engine = Losing(on(site, plan, Folder(folder)), **losing)  # type: ignore[arg-type]
    before = start(plan, site.params())
    after, ledger = next(federate(plan, engine, before))
    return before, after, ledger, engine


@pytest.mark.parametrize(
    "changes", [SECURE, BY_SIZE, {**BY_SIZE, "personal": ["*.bias"]}], ids=["uniform", "size", "own"]
)
@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_is_that_of_the_rounded_updates_to_the_bit(
    points: Site, tmp_path: Path, changes: dict[str, object], bits: int
) -> None:
    plan = points_plan(**changes)
    plan = replace(plan, exchange=replace(plan.exchange, bits=bits))  # type: ignore[type-var]
    state, opened = start(plan, points.params()), []
    for after, ledger in federate(plan, on(points, plan, Folder(tmp_path)), state):
        if not plan.personal:
            opened = list(updates_in_the_open(points, plan, state).values())
            assert equal(after.params, stepped(state, opened, plan, 6))
            assert sum(ledger.weights.values()) == pytest.approx(sum(update.weight for update in opened))
        assert not ledger.failed and not ledger.note and ledger.metrics == {} and len(ledger.weights) == 6
        state = after
    assert not equal(state.params, start(plan, points.params()).params)


def test_rounding_costs_next_to_nothing(points: Site, tmp_path: Path) -> None:
    plan = points_plan(**BY_SIZE)
    hidden = [state for state, _ in federate(plan, on(points, plan, Folder(tmp_path)), start(plan, points.params()))]
    open_ = recording_plan(plan)
    plain = [state for state, _ in federate(open_, on(points, open_), start(open_, points.params()))]
    for name, x in plain[-1].params.items():
        torch.testing.assert_close(hidden[-1].params[name], x, rtol=0, atol=1e-5)


PHASES = ("fit", "shares", "masked", "unmask")


@pytest.mark.parametrize(("phase", "count"), [("fit", 1), ("shares", 2), ("masked", 1), ("masked", 2), ("unmask", 2)])
def test_who_drops_out_costs_its_own_update_and_no_other(points: Site, tmp_path: Path, phase: str, count: int) -> None:
    plan = secure_plan(rounds=1)
    trained = updates_in_the_open(points, plan, start(plan, points.params()))
    lost = sorted(trained)[1 : 1 + count]
    before, after, ledger, _ = one_round(points, plan, tmp_path, lost={phase: lost})
    counted = sorted(trained) if phase == "unmask" else sorted(set(trained) - set(lost))
    roster = 6 - count if phase == "fit" else 6
    assert equal(after.params, stepped(before, [trained[c] for c in counted], plan, roster))
    assert sorted(ledger.weights) == sorted(after.accepted) == counted
    if phase == "unmask":
        assert not ledger.failed and all(f"{c} is in the sum, but did not help" in ledger.note for c in lost)
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
    assert equal(after.params, before.params) and after.round == 1 and after.accepted == {} == ledger.weights
    assert ledger.note == f"3 clients answered '{phase}', 4 are needed: nothing changes"
    assert ledger.failed == dict.fromkeys(clients[:3], f"lost in {phase}")
    [(_, following)] = federate(plan, on(points, plan, Folder(tmp_path)), after)
    assert len(following.weights) == 6 and not following.note


def test_no_message_holds_an_update_and_masked_ones_look_like_noise(points: Site, tmp_path: Path) -> None:
    plan = secure_plan(rounds=1)
    trained = updates_in_the_open(points, plan, start(plan, points.params()))
    sent: dict[tuple[str, str], bytes] = {}

    def keep(phase: str, client: str) -> Callable[[bytes], bytes]:
        return lambda payload: sent.setdefault((phase, client), payload)

    harm = {(phase, client): keep(phase, client) for phase in PHASES for client in trained}
    for _ in range(2):  # sessions differ, sums do not: what is kept is that of the first
        _, after, _, engine = one_round(points, plan, tmp_path, harm=harm)
    by, total = plan.exchange.shift(6), np.zeros(28, dtype=np.uint32)  # type: ignore[attr-defined]
    bits = 0
    for client, update in trained.items():
        plain = masking.integers(update, 32, by)
        payload = sent["masked", client]
        got = masking.read(unpack(client, payload, plan.uplink, [("masked", [28], "int32")]).delta["masked"])
        assert int((got == plain).sum()) <= 1 and unpack_header(payload) == [1.0, {}]
        assert not any(plain[:4].tobytes() in every for every in sent.values())
        bits += sum(int(x).bit_count() for x in (got - plain).tolist())
        total = total + got
    assert 0.45 < bits / (6 * 28 * 32) < 0.55, "masks: about half of the bits are set"
    assert bool((total != sum(masking.integers(u, 32, by) for u in trained.values())).any()), "own masks are still on"
    assert len({job.phase for job in engine.jobs}) == 4 and after.round == 1


def unpack_header(payload: bytes) -> object:
    return unframe(payload, nested=True)[0]


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
        assert ledger.down[client] == sum(len(job.payload) for job in recording.jobs if job.client == client)
        replies = [r for r in recording.replies if isinstance(r, Reply) and r.client == client]
        assert ledger.up[client] == sum(len(reply.payload) for reply in replies) and len(replies) == 4
    assert ledger.up_headers == ledger.bytes_up - 6 * 28 * 4


@pytest.mark.parametrize("engine", [Processes, Cohort])
def test_engines_end_in_the_same_parameters(points: Site, tmp_path: Path, engine: type) -> None:
    plan = secure_plan()
    site = replace(points, plan=plan)
    other = engine(site, Folder(tmp_path / "a"), **({"workers": 2} if engine is Processes else {}))
    try:
        *_, (there, ledger) = federate(plan, other, start(plan, points.params()))
    finally:
        other.close()
    *_, (here, _) = federate(plan, on(points, plan, Folder(tmp_path / "b")), start(plan, points.params()))
    assert not ledger.failed and len(ledger.weights) == 6
    for name, x in here.params.items():
        torch.testing.assert_close(there.params[name], x, rtol=0, atol=0 if engine is Processes else 1e-5)


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
    whole = list(federate(plan, on(points, plan, Folder(tmp_path / "a")), start(plan, points.params())))

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


def changed(payload: bytes) -> bytes:
    """Another body, framed as an honest one."""
    header, body = unframe(payload)
    return frame(header, bytes([body[0] ^ 1]) + body[1:])


@pytest.mark.parametrize(
    ("phase", "harm", "reason"),
    [
        ("fit", lambda p: frame({"own": "x"}, bytes(64)), "fit: "),
        ("fit", lambda p: frame({}, bytes(64)), "no two public keys came"),
        ("shares", lambda p: frame({}, b"short"), "5 bytes came, not 6 times 92"),
        ("masked", lambda p: p[:-1], "corrupt or truncated"),
        ("masked", lambda p: b"", "shorter than a frame"),
        ("unmask", lambda p: p[5:], "corrupt or truncated"),
        ("unmask", lambda p: frame([], bytes(6 * 32)), "does not say what it could not read"),
    ],
)
def test_what_is_not_as_it_must_be_is_refused_and_the_others_are_added_up(
    points: Site, tmp_path: Path, phase: str, harm: Callable[[bytes], bytes], reason: str
) -> None:
    plan = secure_plan(rounds=1)
    trained = updates_in_the_open(points, plan, start(plan, points.params()))
    bad, *rest = sorted(trained)
    before, after, ledger, _ = one_round(points, plan, tmp_path, harm={(phase, bad): harm})
    counted = [bad, *rest] if phase == "unmask" else rest
    assert equal(after.params, stepped(before, [trained[c] for c in counted], plan, 5 if phase == "fit" else 6))
    assert reason in (ledger.note if phase == "unmask" else ledger.failed[bad]) and after.refusals == {bad: 1}


@pytest.mark.parametrize("gone", [False, True], ids=["alive", "gone"])
def test_a_wrong_share_is_found_out_and_the_round_fails_by_name(points: Site, tmp_path: Path, gone: bool) -> None:
    plan = secure_plan(rounds=1)
    clients = sorted(updates_in_the_open(points, plan, start(plan, points.params())))
    lost = {"masked": clients[:1]} if gone else {}
    before, after, ledger, _ = one_round(points, plan, tmp_path, lost=lost, harm={("unmask", clients[1]): changed})
    assert equal(after.params, before.params) and ledger.weights == {}
    assert f"the shares that were told for '{clients[0]}' do not fit" in ledger.note


def test_one_share_that_cannot_be_read_costs_nothing(points: Site, tmp_path: Path) -> None:
    plan = secure_plan(rounds=1)
    trained = updates_in_the_open(points, plan, start(plan, points.params()))
    harm = {("shares", sorted(trained)[2]): changed}
    before, after, ledger, _ = one_round(points, plan, tmp_path, harm=harm)
    assert equal(after.params, stepped(before, trained.values(), plan, 6)) and not ledger.note


def test_who_seals_nonsense_fails_the_round_by_its_own_name(points: Site, tmp_path: Path) -> None:
    plan = secure_plan(rounds=1)
    bad = sorted(updates_in_the_open(points, plan, start(plan, points.params())))[2]
    nonsense: Callable[[bytes], bytes] = lambda payload: frame({}, bytes(6 * sharing.SEALED))
    before, after, ledger, _ = one_round(points, plan, tmp_path, harm={("shares", bad): nonsense})
    assert equal(after.params, before.params) and after.refusals == {bad: 1} and list(ledger.failed) == [bad]
    assert ledger.note == f"0 clients could read the shares of '{bad}', 4 are needed: nothing changes"


def asked(points: Site, folder: Path, change: Callable[[dict[str, list[str]]], object], phase: str) -> list[str]:
    """What the clients of a finished round say when they are asked once more, in changed words."""
    plan = secure_plan(rounds=1)
    _, _, _, engine = one_round(points, plan, folder)
    replies = []
    for job in [job for job in engine.jobs if job.phase == phase]:
        header, body = unframe(job.payload)
        changed = change(header)
        [reply] = on(points, plan, Folder(folder)).run([replace(job, payload=frame(changed, body))])
        assert isinstance(reply, Failure)
        replies.append(reply.reason)
    return replies


@pytest.mark.parametrize(
    ("phase", "change"),
    [
        ("unmask", lambda header: {"alive": header["alive"][:-1]}),
        ("masked", lambda header: {"peers": header["peers"][1:]}),
        ("shares", lambda header: {"roster": dict(list(header["roster"].items())[1:])}),
    ],
)
def test_no_client_answers_two_versions_of_a_question(
    points: Site, tmp_path: Path, phase: str, change: Callable[[dict[str, list[str]]], object]
) -> None:
    reasons = asked(points, tmp_path, change, phase)
    assert len(reasons) == 6 and all(f"asked twice for '{phase}', in two versions" in reason for reason in reasons)


def first_asked(points: Site, folder: Path, phase: str, content: object) -> str:
    """What a client that has trained says to this message, as the first."""
    plan = secure_plan(rounds=1)
    engine = on(points, plan, Folder(folder))
    recording = Recording(engine)
    lost = Losing(recording, lost={"shares": points.data.clients})
    next(federate(plan, lost, start(plan, points.params())))
    [reply] = engine.run([replace(recording.jobs[0], phase=phase, payload=frame(content, b""))])
    assert isinstance(reply, Failure)
    return reply.reason


def test_a_client_hides_only_in_a_crowd_and_answers_in_order(points: Site, tmp_path: Path) -> None:
    few = {"roster": {f"x{k}": ["", ""] for k in range(6)}}
    assert "of whom 4 must take part" in first_asked(points, tmp_path / "a", "shares", few)
    assert "asked for 'masked' before 'shares'" in first_asked(points, tmp_path / "b", "masked", {"peers": []})
    assert "asked for 'unmask' before 'masked'" in first_asked(points, tmp_path / "c", "unmask", {"alive": []})
    assert "no message of a secure sum" in first_asked(points, tmp_path / "d", "tell me all", {})
    job = Job("r", 9, points.data.clients[0], "masked", 0, None, frame({}, b""))
    [reply] = on(points, secure_plan(), Folder(tmp_path / "e")).run([job])
    assert isinstance(reply, Failure) and "in which this client has not trained" in reply.reason
    [reply] = on(points, points_plan()).run([job])
    assert isinstance(reply, Failure) and "nothing but 'fit'" in reply.reason


@pytest.mark.parametrize(
    ("exchange", "reason"),
    [
        ({"limit": 1e-4}, "exchange.limit is 0.0001"),
        ({"max_norm": 1e-4}, "exchange.max_norm 0.0001"),
        ({"max_weight": 2}, "exchange.max_weight is 2"),
    ],
)
def test_what_the_server_cannot_see_the_client_checks(
    points: Site, tmp_path: Path, exchange: dict[str, object], reason: str
) -> None:
    plan = secure_plan(
        rounds=1,
        weighting="examples" if "max_weight" in exchange else "uniform",
        exchange={"name": "secure", "threshold": 4, **exchange},
    )
    _, _, ledger, _ = one_round(points, plan, tmp_path)
    assert len(ledger.failed) == 6 and all(reason in words for words in ledger.failed.values())
    assert ledger.note == "0 clients answered 'fit', 4 are needed: nothing changes"


PRIVATE = {"name": "client_dp", "noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"aggregator": "median"}, "Median compares the clients' updates"),
        ({"aggregator": "krum"}, "Krum compares the clients' updates"),
        ({"norm_factor": 10}, "cannot be seen in a sum"),
        ({"uplink": "int8"}, "only a lossless codec"),
        ({"uplink": "topk", "stages": ["error_feedback"]}, "only a lossless codec"),
        ({"stages": [{"name": "error_feedback", "codec": "dense"}]}, "ErrorFeedback has work to do"),
        ({"stages": [PRIVATE], "delta": 1e-3}, "ClientDp has work to do where each update arrives"),
        ({"local": {"correction": "scaffold"}, "server": "scaffold"}, "leave SCAFFOLD out"),
        ({"exchange": {"name": "secure", "threshold": 3}}, "more than half of cohort = 6"),
        ({"exchange": {"name": "secure", "threshold": 7}}, "at most all"),
        ({"exchange": {"name": "secure", "threshold": 1}}, "threshold must be at least 2"),
        ({"exchange": {"name": "secure", "threshold": 4, "bits": 16}}, "bits must be 32 or 64"),
        ({"exchange": {"name": "secure", "threshold": 4, "limit": 1e9}}, "cannot hold 6 updates"),
        ({"weighting": "examples"}, "set exchange.max_weight"),
    ],
)
def test_what_needs_single_updates_is_refused_with_a_reason(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        secure_plan(**changes)


def test_local_privacy_goes_with_it(points: Site, tmp_path: Path) -> None:
    plan = secure_plan(stages=[{"name": "local_dp", "noise_multiplier": 0.1}], delta=1e-3, accountant="rdp", rounds=1)
    _, after, ledger, _ = one_round(points, plan, tmp_path)
    assert len(ledger.weights) == 6 and not equal(after.params, points.params()) and ledger.privacy is not None


@given(bits=st.sampled_from([32, 64]), clients=st.integers(2, 1000), largest=st.floats(1e-3, 1e6))
def test_the_sum_has_room_and_not_twice_as_much(bits: int, clients: int, largest: float) -> None:
    by = masking.shift(bits, clients, largest)
    assert clients * (largest * 2.0**by + 0.5) < 2 ** (bits - 1)
    assert clients * (largest * 2.0 ** (by + 1) + 0.5) > 2 ** (bits - 1) - 2


@pytest.mark.parametrize("bits", [32, 64])
def test_largest_updates_of_either_sign_come_back(bits: int) -> None:
    expected = {"a": torch.tensor([[8.0, -8.0]]), "b": torch.tensor(0.5)}
    updates = [Update(f"c{k}", expected, 7.0) for k in range(5)]
    by = masking.shift(bits, 5, 7 * 8.0)
    total = sum(masking.integers(update, bits, by) for update in updates[1:]) + masking.integers(updates[0], bits, by)
    got = masking.mean(total, by, layout(expected))
    assert equal(got.delta, expected) and got.weight == 35
    with pytest.raises(ValueError, match="add up to 0"):
        masking.mean(total - total, by, layout(expected))


def test_masks_are_the_key_stream_of_chacha20_with_all_256_bits_of_the_seed() -> None:
    """The first block is that of RFC 8439, appendix A.1, test vector 1."""
    assert masking.mask(bytes(32), 4, 32).astype("<u4").tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"
    assert masking.mask(bytes(32), 2, 64).astype("<u8").tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"
    seeds = [bytes(32), *((1 << bit).to_bytes(32, "big") for bit in range(256))]
    assert len({masking.mask(seed, 8, 32).tobytes() for seed in seeds}) == 257


def test_a_threshold_of_shares_tells_the_secret_and_fewer_do_not() -> None:
    secret = bytes(range(32))
    shares = dict(enumerate(sharing.split(secret, 3, 5)))
    assert all(len(share) == 32 for share in shares.values())
    for places in ((0, 1, 2), (4, 2, 0), (0, 1, 2, 3, 4)):
        assert sharing.joined({place: shares[place] for place in places}) == secret
    assert sharing.joined({0: shares[0], 1: shares[1]}) != secret
    assert secret[:16] not in b"".join(shares.values())


def test_a_pair_agrees_on_keys_that_differ_by_purpose_and_pair() -> None:
    a, b = bytes([1] * 32), bytes([2] * 32)
    one = sharing.agreed(a, sharing.public(b), "mask", ["x", "y"])
    assert one == sharing.agreed(b, sharing.public(a), "mask", ["y", "x"]) and len(one) == 32
    others = {
        sharing.agreed(a, sharing.public(b), purpose, pair) for purpose, pair in (("shares", "xy"), ("mask", "xz"))
    }
    assert len(others | {one}) == 3
    sealed = sharing.seal(one, bytes(64), "x", "y")
    assert len(sealed) == sharing.SEALED and sharing.unseal(one, sealed, "x", "y") == bytes(64)
    with pytest.raises(ValueError, match="were changed on their way"):
        sharing.unseal(one, sealed, "x", "z")
