"""What secure aggregation refuses: harmed messages, two versions of a question, plans that need
single updates."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rounds import Recording, on, points_plan
from secure_rounds import (
    Losing,
    answer,
    one_round,
    opened,
    question,
    secure_plan,
    stepped,
    updates_in_the_open,
)

from fedpeft.core.conversation import Message
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Job
from fedpeft.errors import PlanError
from fedpeft.exchanges.secure import secret_sharing as sharing
from fedpeft.exchanges.secure.server import bytes_message
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Folder
from fedpeft.wire.frames import frame


def changed(payload: bytes) -> bytes:
    """Another body, framed as an honest one."""
    message = opened(payload)
    [(name, group)] = message.tensors.items()
    body = group["bytes"].clone()
    body[0] ^= 1
    return answer(Message({name: {"bytes": body}}, message.values))


def said(values: dict[str, object], **groups: bytes) -> Callable[[bytes], bytes]:
    """An answer with something else in it."""
    return lambda payload: answer(bytes_message(values, **groups))


@pytest.mark.parametrize(
    ("phase", "harm", "reason"),
    [
        ("fit", said({"own": "x"}, keys=bytes(64)), "fit: "),
        ("fit", said({}, keys=bytes(64)), "no two public keys came"),
        ("fit", lambda p: frame({"own": "x"}, bytes(64)), "corrupt or truncated"),
        ("shares", said({}, sealed=b"short"), r"([5], 'uint8'); the plan sends ([552], 'uint8')"),
        ("masked", lambda p: p[:-1], "corrupt or truncated"),
        ("masked", lambda p: b"", "shorter than a frame"),
        ("unmask", lambda p: p[5:], "corrupt or truncated"),
        ("unmask", said({}, shares=bytes(6 * 32)), "does not say what it could not read"),
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
    assert equal(
        after.params,
        stepped(before, [trained[c] for c in counted], plan, 5 if phase == "fit" else 6),
    )
    assert reason in (
        ledger.note if phase == "unmask" else ledger.failed[bad]
    ) and after.refusals == {bad: 1}


@pytest.mark.parametrize("gone", [False, True], ids=["alive", "gone"])
def test_a_wrong_share_is_found_out_and_the_round_fails_by_name(
    points: Site, tmp_path: Path, gone: bool
) -> None:
    plan = secure_plan(rounds=1)
    clients = sorted(updates_in_the_open(points, plan, start(plan, points.params())))
    lost = {"masked": clients[:1]} if gone else {}
    before, after, ledger, _ = one_round(
        points, plan, tmp_path, lost=lost, harm={("unmask", clients[1]): changed}
    )
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
    nonsense: Callable[[bytes], bytes] = said({}, sealed=bytes(6 * sharing.SEALED))
    before, after, ledger, _ = one_round(points, plan, tmp_path, harm={("shares", bad): nonsense})
    assert (
        equal(after.params, before.params)
        and after.refusals == {bad: 1}
        and list(ledger.failed) == [bad]
    )
    assert ledger.note.startswith(f"0 clients could read the shares of '{bad}', 4 are needed; ")
    assert ledger.note.endswith("nothing changes")


def asked(
    points: Site, folder: Path, change: Callable[[Mapping[str, Any]], dict[str, Any]], phase: str
) -> list[str]:
    """What the clients of a finished round say when they are asked once more, in changed words."""
    plan = secure_plan(rounds=1)
    _, _, _, engine = one_round(points, plan, folder)
    replies = []
    for job in [job for job in engine.jobs if job.phase == phase]:
        message = opened(job.payload)
        other = replace(message, values=change(message.values))
        [reply] = on(points, plan, Folder(folder)).run([replace(job, payload=question(other))])
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
    points: Site, tmp_path: Path, phase: str, change: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> None:
    reasons = asked(points, tmp_path, change, phase)
    assert len(reasons) == 6 and all(
        f"asked twice for '{phase}', in two versions" in reason for reason in reasons
    )


def first_asked(points: Site, folder: Path, phase: str, content: Mapping[str, object]) -> str:
    """What a client that has trained says to this message, as the first."""
    plan = secure_plan(rounds=1)
    engine = on(points, plan, Folder(folder))
    recording = Recording(engine)
    lost = Losing(recording, lost={"shares": points.data.clients})
    next(federate(plan, lost, start(plan, points.params())))
    asked = question(Message({}, content))
    [reply] = engine.run([replace(recording.jobs[0], phase=phase, payload=asked)])
    assert isinstance(reply, Failure)
    return reply.reason


def test_a_client_hides_only_in_a_crowd_and_answers_in_order(points: Site, tmp_path: Path) -> None:
    few = {"roster": {f"x{k}": ["", ""] for k in range(6)}}
    assert "4 to 7 clients must take part" in first_asked(points, tmp_path / "a", "shares", few)
    assert "asked for 'masked' before 'shares'" in first_asked(
        points, tmp_path / "b", "masked", {"peers": []}
    )
    assert "asked for 'unmask' before 'masked'" in first_asked(
        points, tmp_path / "c", "unmask", {"alive": []}
    )
    words = first_asked(points, tmp_path / "d", "tell me all", {})
    assert "no message called 'tell me all'" in words and "no other is answered" in words
    empty = question(Message({}, {"peers": []}))
    job = Job("r", 9, points.data.clients[0], "masked", 0, None, empty)
    [reply] = on(points, secure_plan(), Folder(tmp_path / "e")).run([job])
    assert isinstance(reply, Failure) and "in which this client has not trained" in reply.reason
    [reply] = on(points, points_plan()).run([job])
    assert isinstance(reply, Failure) and "Known: fit." in reply.reason


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
    assert ledger.note.startswith("0 clients answered 'fit', 4 are needed; ")
    assert ledger.note.endswith("nothing changes")


PRIVATE = {"name": "client_dp", "noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"aggregator": "median"}, "Median compares the clients' updates"),
        ({"aggregator": "krum"}, "Krum compares the clients' updates"),
        ({"norm_factor": 10}, "cannot be seen in a sum"),
        ({"uplink": "int8"}, "only a lossless codec"),
        ({"uplink": "topk", "stages": ["error_feedback"]}, "sends later what a codec drops"),
        (
            {"stages": [{"name": "error_feedback", "codec": "dense"}]},
            "a secure sum drops nothing: leave it out",
        ),
        ({"stages": [PRIVATE], "delta": 1e-3}, "ClientDp has work to do where each update arrives"),
        ({"local": {"correction": "scaffold"}}, "leave SCAFFOLD out"),
        ({"exchange": {"name": "secure", "threshold": 3}}, "more than half of cohort = 6"),
        ({"exchange": {"name": "secure", "threshold": 7}}, "at most all"),
        ({"exchange": {"name": "secure", "threshold": 1}}, "threshold must be at least 2"),
        ({"exchange": {"name": "secure", "threshold": 4, "bits": 16}}, "bits must be 32 or 64"),
        ({"exchange": {"name": "secure", "threshold": 4, "limit": 1e9}}, "cannot hold 6 updates"),
        (
            {"exchange": {"name": "secure", "threshold": 4, "max_weight": 2_000_000_000}},
            "cannot hold the sum of 6 weights",
        ),
        ({"weighting": "examples"}, "set exchange.max_weight"),
    ],
)
def test_what_needs_single_updates_is_refused_with_a_reason(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(PlanError, match=reason):
        secure_plan(**changes)


def test_local_privacy_goes_with_it(points: Site, tmp_path: Path) -> None:
    plan = secure_plan(
        stages=[{"name": "local_dp", "noise_multiplier": 0.1}],
        delta=1e-3,
        accountant="rdp",
        rounds=1,
    )
    _, after, ledger, _ = one_round(points, plan, tmp_path)
    assert (
        len(ledger.weights) == 6
        and not equal(after.params, points.params())
        and ledger.privacy is not None
    )
