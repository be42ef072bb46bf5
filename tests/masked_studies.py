"""Studies of masked files: owners that join, their roster and their files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contributions import PARTS
from contributions import study as open_study
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from running import PLAN

from fedpeft.core.tensors import layout
from fedpeft.core.types import Update
from fedpeft.exchanges.secure.masked_files import MaskedFiles
from fedpeft.exchanges.secure.masks import MASKED, Integers, integers, read, shift
from fedpeft.oneshot.contribute import contribute, from_partition
from fedpeft.oneshot.contribution import Contribution, read_contribution
from fedpeft.oneshot.invitation import Invitation, invite, read_invitation, server_key
from fedpeft.oneshot.joining import join_owner, make_roster
from fedpeft.oneshot.keys import Trust, make_signing_key, sealing_key, signing_key
from fedpeft.oneshot.seat import take_seat
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.wire.payloads import decode_answer

SECURE = "exchange={name='secure',threshold=3}"
MASKING = ("rounds=1", "cohort=4", "local.epochs=3", "weighting=uniform", SECURE)
OWNERS = ("c000", "c001", "c002", "c003")

WIDE = ("data={name='parts:Blobs',features=400}", "task={name='parts:Points',features=400}")
"""1203 numbers and the weight, for a statistic."""


def masking_plan(*settings: str) -> Plan:
    return read_plan(PLAN, [*MASKING, *settings])


@dataclass(frozen=True)
class MaskedStudy:
    """An invitation with its roster, and what each owner keeps and hands in.

    Attributes:
      root: the folder of all of it; each owner's own is `root/NAME`.
      open: the invitation that was joined.
    """

    root: Path
    open: Path
    path: Path
    owners: Sequence[str]

    @property
    def invitation(self) -> Invitation:
        return read_invitation(self.path, PARTS)

    @property
    def exchange(self) -> MaskedFiles:
        exchange = self.invitation.plan.exchange
        assert isinstance(exchange, MaskedFiles)
        return exchange

    def memory(self, owner: str) -> Path:
        return self.root / owner

    def file(self, owner: str) -> Path:
        return self.root / f"{owner}.safetensors"

    @property
    def files(self) -> list[Path]:
        return [self.file(owner) for owner in self.owners]

    def hand_in(self, owner: str, again: bool = False) -> Path:
        """What `fedpeft contribute` does, in Python."""
        study, number = self.invitation, OWNERS.index(owner)
        key = self.signing_key(owner)
        who = from_partition(study, number)
        seat = take_seat(self.memory(owner), study, owner, key)
        made = seat.find_made(who, again)
        if made is None:
            _, content = contribute(study, who, key, lambda: None, seat.store)
            made = seat.keep(who, content)
        self.file(owner).write_bytes(made)
        return self.file(owner)

    def signing_key(self, owner: str) -> Ed25519PrivateKey | None:
        path = self.root / f"{owner}.key"
        return signing_key(path) if path.exists() else None

    def read(self, file: Path) -> Contribution:
        key = sealing_key(server_key(self.path))
        return read_contribution(file, self.invitation, key, Trust())

    def integers(self, file: Path) -> Integers:
        """The masked numbers of a file."""
        expected = self.exchange.expected(layout(self.invitation.state.params))
        frame = self.read(file).frame
        message = decode_answer(frame, self.invitation.plan.lossless, expected)
        return read(message.tensors[MASKED][MASKED])

    def plain(self, update: Update) -> Integers:
        """An update's numbers before they are masked."""
        exchange = self.exchange
        by = shift(exchange.bits, len(self.owners), exchange.max_weight * exchange.limit)
        return integers(update, exchange.bits, by)


def invited(root: Path, *settings: str) -> Path:
    path = root / "open"
    invite(masking_plan(*settings), path)
    return path


def joined(root: Path, open_: Path, owners: Sequence[str]) -> list[Path]:
    """What each owner gives, with its own folder and its key where there is one."""
    files, study = [], read_invitation(open_, PARTS)
    for owner in owners:
        key = root / f"{owner}.key"
        one = join_owner(study, owner, root / owner, signing_key(key) if key.exists() else None)
        files.append(root / f"{owner}.join")
        files[-1].write_text(one.text())
    return files


def gathered(
    root: Path, owners: Sequence[str] = OWNERS, settings: Sequence[str] = ()
) -> MaskedStudy:
    """A study with its roster, before anybody trains."""
    open_ = invited(root, *settings)
    make_roster(read_invitation(open_, PARTS), joined(root, open_, owners), root / "study")
    return MaskedStudy(root, open_, root / "study", tuple(owners))


def keyed(root: Path, owners: Sequence[str] = OWNERS) -> MaskedStudy:
    """The same where the plan has the owners' keys."""
    for owner in owners:
        make_signing_key(owner, root)
    lines = [(root / f"{owner}.pub").read_text().strip() for owner in owners]
    return gathered(root, owners, [f"exchange={{name='secure',threshold=3,keys={lines}}}"])


def masked_study(root: Path, owners: Sequence[str] = OWNERS, *settings: str) -> MaskedStudy:
    made = gathered(root, owners, settings)
    for owner in owners:
        made.hand_in(owner)
    return made


def own_updates(study: MaskedStudy, *settings: str) -> Mapping[str, Update]:
    """What each owner would send in the open: the files of the same plan without masks."""
    made = open_study(study.root / "plain", "weighting=uniform", *settings)
    return {owner: made.update(made.files[OWNERS.index(owner)]) for owner in study.owners}


def looks_uniform(numbers: Integers) -> bool:
    """Whether ones are half of each place's bits and the size of the signed numbers is half of the
    largest, each within five standard errors."""
    places = np.unpackbits(numbers.astype("<u4").view(np.uint8).reshape(-1, 4), axis=1).mean(axis=0)
    size = np.abs(numbers.view(np.int32) / 2.0**31).mean()
    root = np.sqrt(len(numbers))
    return bool(
        np.abs(places - 0.5).max() < 5 * 0.5 / root and abs(size - 0.5) < 5 * 12**-0.5 / root
    )
