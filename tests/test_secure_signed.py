"""Keys that clients sign: a server that lies about who they are gets nothing."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from rounds import on
from secure_rounds import Losing, one_round, opened, question, secure_plan, updates_in_the_open

from fedpeft.core.interfaces import Engine
from fedpeft.core.signatures import KIND, public_line, public_of, signature, verify
from fedpeft.core.tensors import equal
from fedpeft.core.types import Failure, Job, Reply
from fedpeft.deploy.terms import check_signer
from fedpeft.errors import PlanError, RunError
from fedpeft.exchanges.secure.secret_sharing import public
from fedpeft.oneshot.keys import make_signing_key
from fedpeft.plan.plan import Plan
from fedpeft.rounds.loop import Ledger, federate, start
from fedpeft.rounds.site import Site
from fedpeft.runs.execute import open_engine
from fedpeft.runs.folder import RunFolder
from fedpeft.storage.client_memory import Folder

CLIENTS = [f"c{k:03}" for k in range(24)]
PRIVATE = {name: blake2b(name.encode(), digest_size=32).digest() for name in CLIENTS}
LINES = [f"{KIND}{public_of(key)} {name}" for name, key in PRIVATE.items()]
SIGNED = {"exchange": {"name": "secure", "threshold": 4, "keys": LINES}, "rounds": 1}


def signed_round(
    site: Site, folder: Path, keys: dict[str, bytes], wrap: Callable[[Engine], Engine]
) -> Ledger:
    plan = secure_plan(**SIGNED)
    engine = wrap(on(site, plan, Folder(folder, keys)))
    return next(federate(plan, engine, start(plan, site.params())))[1]


def invited(site: Site) -> list[str]:
    plan = secure_plan(**SIGNED)
    return sorted(updates_in_the_open(site, plan, start(plan, site.params())))


def test_signed_sums_are_the_sums_of_those_who_do_not_sign(points: Site, tmp_path: Path) -> None:
    plan = secure_plan(**SIGNED)
    _, plain, _, _ = one_round(points, secure_plan(rounds=1), tmp_path / "plain")
    engine = on(points, plan, Folder(tmp_path / "signed", PRIVATE))
    after, ledger = next(federate(plan, engine, start(plan, points.params())))
    assert not ledger.failed and not ledger.note and equal(after.params, plain.params)


@pytest.mark.parametrize("key", [None, PRIVATE["c000"]], ids=["no key", "another's"])
def test_who_does_not_sign_as_the_plan_says_is_named_and_the_others_go_on(
    points: Site, tmp_path: Path, key: bytes | None
) -> None:
    victim = invited(points)[2]
    keys = {name: own for name, own in {**PRIVATE, victim: key}.items() if own}
    ledger = signed_round(points, tmp_path, keys, lambda engine: engine)
    assert (
        list(ledger.failed) == [victim]
        and f"'{victim}' are not signed by the one" in ledger.failed[victim]
    )
    assert len(ledger.weights) == 5 and victim not in ledger.weights


Roster = dict[str, list[str]]


@dataclass(frozen=True)
class Lying:
    """A server that tells clients something else, on the way of an honest one's messages in a
    phase."""

    inner: Engine
    bend: Callable[[Job, Any], object]
    phase: str = "shares"
    told: str = "roster"
    jobs: list[Job] = field(default_factory=list)

    @property
    def clients(self) -> Sequence[str]:
        return self.inner.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for job in jobs:
            if job.phase == self.phase:
                message = opened(job.payload)
                bent = {**message.values, self.told: self.bend(job, message.values[self.told])}
                job = replace(job, payload=question(replace(message, values=bent)))
            self.jobs.append(job)
            yield from self.inner.run([job])


OWN = public(bytes(range(32))).hex()


def _stands_between(job: Job, roster: Roster) -> Roster:
    return {
        name: keys if name == job.client else [OWN, OWN, *keys[2:]] for name, keys in roster.items()
    }


def _signs_itself(job: Job, roster: Roster) -> Roster:
    told = signature(bytes(32), b"anything")
    return {name: keys if name == job.client else [OWN, OWN, told] for name, keys in roster.items()}


def _invents_clients(job: Job, roster: Roster) -> Roster:
    return {
        job.client: roster[job.client],
        **{f"x{k}": [OWN, OWN, roster[job.client][2]] for k in range(5)},
    }


def _gives_names_to_others_keys(job: Job, roster: Roster) -> Roster:
    first = next(iter(roster))
    return {name: keys if name == job.client else roster[first] for name, keys in roster.items()}


@pytest.mark.parametrize(
    "bend", [_stands_between, _signs_itself, _invents_clients, _gives_names_to_others_keys]
)
def test_a_server_that_lies_about_keys_gets_no_masked_update(
    points: Site, tmp_path: Path, bend: Callable[[Job, Roster], Roster]
) -> None:
    ledger = signed_round(points, tmp_path, PRIVATE, lambda engine: Lying(engine, bend))
    assert not ledger.weights
    assert ledger.note.startswith("0 clients answered 'shares', 4 are needed; ")
    assert all(
        "are not signed by the one that the plan has for it" in why
        for why in ledger.failed.values()
    )


@pytest.mark.parametrize(
    ("phase", "told", "bend", "reason"),
    [
        (
            "shares",
            "roster",
            lambda job, all_: {**all_, "x": all_[job.client], "y": all_[job.client]},
            "4 to 7 clients",
        ),
        (
            "masked",
            "peers",
            lambda job, all_: [n for n in all_ for _ in (0, 1) if n != job.client] + [job.client],
            "once",
        ),
        ("masked", "peers", lambda job, all_: [job.client] * 4, "this one too, each once"),
        ("masked", "peers", lambda job, all_: "".join(all_), "each once"),
        (
            "unmask",
            "alive",
            lambda job, all_: all_[:-1],
            "signed the story of this round that came here",
        ),
        ("unmask", "alive", lambda job, all_: [n for n in all_ if n != job.client], "this one too"),
        (
            "unmask",
            "signatures",
            lambda job, all_: dict(list(all_.items())[:3]),
            "3 clients signed the story",
        ),
        (
            "unmask",
            "signatures",
            lambda job, all_: dict.fromkeys(all_, all_[job.client]),
            "1 clients signed the story",
        ),
        ("unmask", "signatures", lambda job, all_: list(all_), "0 clients signed the story"),
    ],
)
def test_a_server_that_tells_clients_different_things_learns_nothing(
    points: Site,
    tmp_path: Path,
    phase: str,
    told: str,
    bend: Callable[[Job, Any], object],
    reason: str,
) -> None:
    """A crowd that counts names twice, two stories about who is alive, signatures of something
    else."""
    ledger = signed_round(
        points, tmp_path, PRIVATE, lambda engine: Lying(engine, bend, phase, told)
    )
    assert not ledger.weights and f" clients answered '{phase}', 4 are needed; " in ledger.note
    assert len(ledger.failed) == 6 and any(reason in why for why in ledger.failed.values())


def test_without_a_story_nobody_helps_to_unmask(points: Site, tmp_path: Path) -> None:
    plan = secure_plan(**SIGNED)
    engine = Losing(on(points, plan, Folder(tmp_path, PRIVATE)), lost={"story": CLIENTS})
    _, ledger = next(federate(plan, engine, start(plan, points.params())))
    assert ledger.note.startswith("0 clients answered 'story', 4 are needed; ")
    job = next(job for job in engine.jobs if job.phase == "story")
    [reply] = engine.inner.run([replace(job, phase="unmask")])
    assert isinstance(reply, Failure) and "asked for 'unmask' before 'story'" in reply.reason


def test_who_does_not_sign_the_story_is_in_the_sum_all_the_same(
    points: Site, tmp_path: Path
) -> None:
    plan = secure_plan(**SIGNED)
    _, plain, _, _ = one_round(points, secure_plan(rounds=1), tmp_path / "plain")
    lost = invited(points)[:2]
    engine = Losing(on(points, plan, Folder(tmp_path / "signed", PRIVATE)), lost={"story": lost})
    after, ledger = next(federate(plan, engine, start(plan, points.params())))
    assert equal(after.params, plain.params) and len(ledger.weights) == 6
    assert all(f"{name} counts, but did not answer all" in ledger.note for name in lost)


def test_a_client_knows_its_own_keys_of_this_session(points: Site, tmp_path: Path) -> None:
    """Those of an earlier one are signed as well as these."""
    plan = secure_plan(**SIGNED)
    first = Lying(on(points, plan, Folder(tmp_path, PRIVATE)), lambda job, roster: roster)
    next(federate(plan, first, start(plan, points.params())))
    asked = next(job.payload for job in first.jobs if job.phase == "shares")
    before = opened(asked).values["roster"]
    bend = lambda job, roster: {**roster, job.client: before[job.client]}
    ledger = signed_round(points, tmp_path, PRIVATE, lambda engine: Lying(engine, bend))
    assert (
        all("are not those that it gave" in why for why in ledger.failed.values())
        and len(ledger.failed) == 6
    )


def test_without_signatures_the_lie_is_believed_until_the_end(points: Site, tmp_path: Path) -> None:
    """Every client masks its update with keys that the server has, and only the shares that it
    cannot read stop it."""
    plan = secure_plan(rounds=1)
    engine = Lying(on(points, plan, Folder(tmp_path)), _stands_between)
    _, ledger = next(federate(plan, engine, start(plan, points.params())))
    assert "could read the shares of" in ledger.note and len(ledger.failed) == 1


def test_a_signature_is_of_one_message_by_one_key() -> None:
    told = signature(PRIVATE["c000"], b"message")
    assert verify(public_of(PRIVATE["c000"]), told, b"message")
    for key, signed, message in (
        ("c001", told, b"message"),
        ("c000", told, b"another"),
        ("c000", told[:-2], b"message"),
        ("c000", told.upper(), b"message"),
        ("c000", None, b"message"),
    ):
        assert not verify(public_of(PRIVATE[key]), signed, message)
    assert not verify("", told, b"message")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["ed25519:12 c000"], "this is no public key"),
        ([LINES[0].split()[0]], "a key of its own and its name behind it"),
        ([LINES[0], LINES[0]], "a key of its own"),
        ([LINES[0], LINES[1].replace("c001", "c000")], "a line for each client"),
        ([LINES[0], LINES[0].replace("c000", "c001")], "a key of its own"),
    ],
)
def test_keys_that_are_none_are_refused(keys: list[str], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        secure_plan(exchange={"name": "secure", "threshold": 4, "keys": keys})


def _refused(plan: Plan, name: str, key: bytes | None, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        check_signer(plan, name, key)


def test_a_node_has_the_key_that_the_plan_knows(points: Site, tmp_path: Path) -> None:
    plan = secure_plan(**SIGNED)
    check_signer(plan, "c000", PRIVATE["c000"])
    check_signer(secure_plan(), "c000", None)
    _refused(plan, "c000", None, "give the node its own key")
    _refused(plan, "c000", PRIVATE["c001"], "has another key for 'c000'")
    _refused(plan, "stranger", PRIVATE["c001"], "has no key for 'stranger'")
    _refused(secure_plan(), "c000", PRIVATE["c000"], "has no key for 'c000'")
    with pytest.raises(PlanError, match=r"only one of them has .*hospital-b"):
        secure_plan(**{**SIGNED, "nodes": [*CLIENTS, "hospital-b"]})
    with pytest.raises(PlanError, match="a simulation has none"):
        open_engine(RunFolder(tmp_path), replace(points, plan=plan))


def test_the_lines_are_those_of_keygen(tmp_path: Path) -> None:
    private, told = make_signing_key("hospital-a", tmp_path)
    key, name = public_line(told.read_text())
    assert name == "hospital-a" and key == public_of(bytes.fromhex(private.read_text()))
    with pytest.raises(RunError, match="is there already"):
        make_signing_key("hospital-a", tmp_path)
