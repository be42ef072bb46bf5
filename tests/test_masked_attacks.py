"""What a server that lies tries with masked files, and what it would learn if owners gave way."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contributions import PARTS, merge
from masked_studies import (
    OWNERS,
    WIDE,
    MaskedStudy,
    gathered,
    invited,
    joined,
    keyed,
    looks_uniform,
    own_updates,
)
from running import PLAN, fedpeft

from fedpeft.core.tensors import take_prefix
from fedpeft.errors import RunError
from fedpeft.exchanges.secure.masked_files import masking_key
from fedpeft.exchanges.secure.masks import add_mask, mask
from fedpeft.exchanges.secure.roster import Roster
from fedpeft.exchanges.secure.secret_sharing import agree_on_key, public
from fedpeft.oneshot.invitation import invite, read_invitation
from fedpeft.oneshot.joining import join_owner, make_roster, withdraw
from fedpeft.oneshot.rosters import Joined, bind, roster_text
from fedpeft.oneshot.rules import Rules
from fedpeft.oneshot.seat import Seat, join_folder, take_seat
from fedpeft.plan.reading import read_plan
from fedpeft.storage.files import load_tensors


def seat_of(study: MaskedStudy, owner: str) -> Seat:
    seat = take_seat(study.memory(owner), study.invitation, owner)
    assert isinstance(seat, Seat)
    return seat


def test_what_a_recovery_would_tell(tmp_path: Path) -> None:
    """The keys that all others share with an owner that "is missing" are the masks of its file,
    which a server may hold all the same: the reason why there is no such command."""
    made = gathered(tmp_path)
    victim, others = OWNERS[3], OWNERS[:3]
    numbers = made.integers(made.hand_in(victim))
    keys = seat_of(made, victim).roster.keys
    told = {
        other: agree_on_key(
            masking_key(seat_of(made, other).store, other),
            bytes.fromhex(keys[victim]),
            f"file {made.invitation.terms.study}",
            [other, victim],
        )
        for other in others
    }
    clear = made.plain(own_updates(made)[victim])
    for count, (other, key) in enumerate(told.items(), 1):
        numbers = add_mask(numbers, mask(key, len(numbers), 32), victim > other)
        assert (numbers == clear).all() == (count == len(others))


def test_two_sums_tell_by_what_they_differ_so_an_owner_is_asked(tmp_path: Path) -> None:
    """A server that says that c003 never delivered, and has the study done again without it."""
    made = gathered(tmp_path)
    for owner in OWNERS:
        made.hand_in(owner)
    merge(made.path, made.files, tmp_path / "merged", Rules())
    again = second_study(made, tmp_path / "again", OWNERS[:3])
    with pytest.raises(RunError, match=r"with c003\. A server that has both .* Give --again"):
        again.hand_in("c000")
    for owner in again.owners:
        again.hand_in(owner, again=True)
    merge(again.path, again.files, tmp_path / "less", Rules())
    before = made.invitation.state.params
    whole, less = (params(tmp_path / name) for name in ("merged", "less"))
    update = own_updates(made)["c003"].delta
    for name, x in update.items():
        told = 4 * (whole[name] - before[name]) - 3 * (less[name] - before[name])
        assert torch.allclose(told, x, atol=1e-5) and float(x.abs().max()) > 1e-2


def second_study(first: MaskedStudy, root: Path, owners: Any) -> MaskedStudy:
    """Another study of the same plan, whose owners are the same people with the same folders."""
    open_ = invited(root)
    for owner in owners:
        (root / owner).symlink_to(first.memory(owner))
    make_roster(read_invitation(open_, PARTS), joined(root, open_, owners), root / "study")
    return MaskedStudy(root, open_, root / "study", tuple(owners))


def params(folder: Path) -> dict[str, torch.Tensor]:
    return take_prefix("params", load_tensors(folder / "checkpoint" / "state.safetensors")[0])


def test_the_same_owners_again_need_no_word(tmp_path: Path) -> None:
    """Their second sum is of the same people: it differs from the first by nobody."""
    made = gathered(tmp_path)
    made.hand_in("c000")
    second_study(made, tmp_path / "again", OWNERS).hand_in("c000")


def test_who_withdraws_from_a_second_study_is_told_of_the_first(tmp_path: Path) -> None:
    made = gathered(tmp_path)
    made.hand_in("c003")
    again = second_study(made, tmp_path / "again", OWNERS)
    with pytest.raises(RunError, match=r"of the same owners .* Give --again"):
        withdraw(again.invitation, "c003", again.memory("c003"))
    assert withdraw(again.invitation, "c003", again.memory("c003"), again=True)
    # who never had an update in a sum has nothing to lose
    assert withdraw(again.invitation, "c002", again.memory("c002"))


def test_an_owner_makes_a_file_for_one_roster_of_an_invitation(tmp_path: Path) -> None:
    made = gathered(tmp_path)
    made.hand_in("c000")
    lines = [tmp_path / f"{owner}.join" for owner in OWNERS[:3]]
    make_roster(read_invitation(made.open, PARTS), lines, tmp_path / "other")
    other = replace(made, path=tmp_path / "other", owners=OWNERS[:3])
    with pytest.raises(RunError, match=r"another roster of this study, with c003\. Two sums"):
        other.hand_in("c000")
    with pytest.raises(RunError, match="another roster of this study"):
        withdraw(other.invitation, "c000", made.memory("c000"))


def test_owners_with_two_rosters_have_masks_that_stay(tmp_path: Path) -> None:
    """c000 and c001 have the roster of four, c002 and c003 one whose plan has another seed: the
    keys are the same, and the sum of their files tells nothing."""
    made = gathered(tmp_path, OWNERS, WIDE)
    twin = tmp_path / "twin"
    open_ = invited(twin, *WIDE, "seed=2")
    say(open_ / "invitation.json", study=read_invitation(made.open, PARTS).terms.study)
    lines = [tmp_path / f"{owner}.join" for owner in OWNERS]
    make_roster(read_invitation(open_, PARTS), lines, twin / "study")
    other = replace(made, path=twin / "study")
    assert other.invitation.roster and made.invitation.roster
    assert dict(other.invitation.roster.keys) == dict(made.invitation.roster.keys)
    total = reduce(
        np.add,
        [made.integers(made.hand_in(owner)) for owner in OWNERS[:2]]
        + [other.integers(other.hand_in(owner)) for owner in OWNERS[2:]],
    )
    assert looks_uniform(total)


def say(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def forge(made: MaskedStudy, change: Callable[[dict[str, Joined]], None]) -> None:
    """A roster of the server's own making, with the name that belongs to it."""
    terms = read_invitation(made.open, PARTS).terms
    rows = json.loads((made.path / "roster.json").read_text())["owners"]
    owners = {name: Joined(terms.study, name, *row) for name, row in rows.items()}
    change(owners)
    named = bind(terms, {name: one.key for name, one in owners.items()})
    (made.path / "roster.json").write_text(json.dumps(roster_text(terms, owners)))
    (made.path / "invitation.json").write_text(json.dumps(asdict(replace(terms, study=named))))


EVIL = bytes([7]) * 32


def evil_key_for(owner: str) -> Callable[[dict[str, Joined]], None]:
    def change(owners: dict[str, Joined]) -> None:
        owners[owner] = replace(owners[owner], key=public(EVIL).hex())

    return change


def test_a_key_that_the_server_made_for_another_owner_is_refused_by_name(tmp_path: Path) -> None:
    made = keyed(tmp_path)
    forge(made, evil_key_for("c002"))
    with pytest.raises(RunError, match="as that of 'c002' is not signed by the one that the plan"):
        made.hand_in("c000")
    assert not list(made.memory("c000").glob("joined/*/*/sent"))


def test_a_name_that_the_plan_does_not_have_is_refused(tmp_path: Path) -> None:
    made = keyed(tmp_path)

    def invent(owners: dict[str, Joined]) -> None:
        owners["c009"] = replace(owners["c000"], client="c009", key=public(EVIL).hex())

    forge(made, invent)
    with pytest.raises(RunError, match="as that of 'c009' is not signed"):
        made.hand_in("c000")


def test_an_owner_knows_its_own_key_without_signatures(tmp_path: Path) -> None:
    made = gathered(tmp_path)
    forge(made, evil_key_for("c000"))
    with pytest.raises(RunError, match="the roster has another key for 'c000'"):
        made.hand_in("c000")


def test_without_keys_in_the_plan_invented_owners_are_believed(tmp_path: Path) -> None:
    """The limit that docs/security.md tells: the server made all others, and reads the one."""
    made = gathered(tmp_path)
    private = {owner: bytes([number]) * 32 for number, owner in enumerate(OWNERS[1:], 1)}

    def invent(owners: dict[str, Joined]) -> None:
        for owner, key in private.items():
            owners[owner] = replace(owners[owner], key=public(key).hex())

    forge(made, invent)
    numbers = made.integers(made.hand_in("c000"))
    study = made.invitation.terms.study
    keys = made.invitation.roster.keys if made.invitation.roster else {}
    for other, key in private.items():
        pair = agree_on_key(key, bytes.fromhex(keys["c000"]), f"file {study}", ["c000", other])
        numbers = add_mask(numbers, mask(pair, len(numbers), 32), other < "c000")
    assert (numbers == made.plain(own_updates(made)["c000"])).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda owners: [owners.pop(name) for name in OWNERS[2:]], "a roster of 2: at least 3"),
        (
            lambda owners: owners.update(c001=replace(owners["c001"], key=owners["c000"].key)),
            "'c001' and 'c000' have one key",
        ),
        (
            lambda owners: owners.update(c001=replace(owners["c001"], key="0" * 64)),
            "the key of 'c001' is no public key",
        ),
        (
            lambda owners: owners.update(
                c001=replace(owners["c001"], key=owners["c001"].key.upper())
            ),
            "the key of 'c001' is no public key",
        ),
        (lambda owners: owners.pop("c000"), "'c000' is not in the roster"),
    ],
    ids=["two", "one key", "low order", "upper case", "not here"],
)
def test_rosters_that_no_owner_takes(change: Any, reason: str, tmp_path: Path) -> None:
    made = gathered(tmp_path)
    forge(made, change)
    with pytest.raises(RunError, match=reason):
        made.hand_in("c000")


def test_a_roster_that_was_changed_on_its_way(tmp_path: Path) -> None:
    made = gathered(tmp_path)
    path = made.path / "roster.json"
    values = json.loads(path.read_text())
    values["owners"]["c001"][0] = public(EVIL).hex()
    for text, reason in (
        (json.dumps(values), "is not the roster of the study"),
        (json.dumps({**values, "owners": [1]}), "is damaged"),
        (json.dumps({**values, "owners": {"c000": ["x"]}}), "is damaged"),
        ("[" * 10_000, "is no such file"),
        (" " * (1 << 21), "is no such file"),
    ):
        path.write_text(text)
        with pytest.raises(RunError, match=reason):
            read_invitation(made.path, PARTS)
    path.unlink()
    with pytest.raises(RunError, match="has no roster: give the server what `fedpeft join"):
        made.hand_in("c000")


def test_lines_that_are_no_owner_s(tmp_path: Path) -> None:
    made = keyed(tmp_path)
    study = read_invitation(made.open, PARTS)
    lines = [tmp_path / f"{owner}.join" for owner in OWNERS]
    good = lines[0].read_text()
    stolen = json.loads(lines[1].read_text())["signature"]
    for spoilt, reason in (
        ({"study": "0" * 32}, "'c000' joined another study"),
        ({"signature": stolen}, "as that of 'c000' is not signed"),
        ({"signature": ""}, "as that of 'c000' is not signed"),
        ({"client": "c001"}, "'c001' joined twice"),
        ({"client": "../x"}, "is no name for a client"),
        ({"format": "x"}, "is not what `fedpeft join` writes"),
        ({"more": 1}, "is not what `fedpeft join` writes"),
    ):
        say(lines[0], **spoilt)
        with pytest.raises(RunError, match=reason):
            make_roster(study, lines, tmp_path / "new")
        assert not (tmp_path / "new").exists() and not (tmp_path / "new.key").exists()
        lines[0].write_text(good)
    with pytest.raises(RunError, match=r"'c000' must sign with the key whose \.pub"):
        join_owner(study, "c000", tmp_path / "c000")


def test_a_server_s_name_of_a_study_is_no_path(tmp_path: Path) -> None:
    for name in ("../../x", "", "A" * 32, "0" * 31, "/tmp/" + "0" * 27):
        with pytest.raises(RunError, match="is no name of a study"):
            join_folder(tmp_path, name)
    open_ = invited(tmp_path)
    say(open_ / "invitation.json", study="../../../escaped")
    with pytest.raises(RunError, match="is no name of a study"):
        join_owner(read_invitation(open_, PARTS), "c000", tmp_path / "a" / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"open", "open.key"}


def test_another_plan_than_was_joined_does_not_take_the_masks_away(tmp_path: Path) -> None:
    """The server sends an owner that joined a plan by which it sees the update alone."""
    made = gathered(tmp_path)
    invite(read_plan(PLAN, ["rounds=1", "cohort=4"]), tmp_path / "bare")
    flags = ("--memory", made.memory("c000"), "-o", tmp_path / "out")
    told = fedpeft("contribute", "--yes", tmp_path / "bare", "--client", 0, *flags)
    assert told.exit_code == 2 and "by which the server sees your update alone" in told.stderr
    assert not (tmp_path / "out").exists()
    assert fedpeft("contribute", "--yes", tmp_path / "bare", "--client", 1, *flags).exit_code == 0
    made.hand_in("c000")
    last = (*flags[:-1], tmp_path / "last")
    assert fedpeft("contribute", "--yes", tmp_path / "bare", "--client", 0, *last).exit_code == 0


def test_a_lost_or_other_secret_makes_no_file(tmp_path: Path) -> None:
    made = gathered(tmp_path)
    with pytest.raises(RunError, match="is not there, from which the key of 'c000' came"):
        take_seat(tmp_path / "elsewhere", made.invitation, "c000")
    made.hand_in("c000")
    [sent] = made.memory("c000").glob("joined/*/*/sent")
    sent.write_bytes(sent.read_bytes()[:-1])
    with pytest.raises(RunError, match="is damaged: it says what was handed in"):
        made.hand_in("c000")


def test_a_roster_is_kept_as_it_is_told() -> None:
    roster = Roster("a", "b", {"c": "d"})
    assert Roster.of_note(roster.note()) == roster
    with pytest.raises(ValueError, match="is for `fedpeft contribute`"):
        Roster.of_note(b"")
