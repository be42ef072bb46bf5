"""An owner's place in a sum of masked files: its key, and the one file that it ever makes.

    joined/<study>/secret         the root of its private key, mode 0600
    joined/<study>/<owner>/joined what it joined
    joined/<study>/<owner>/note   the roster that it makes its file for
    joined/<study>/<owner>/sent   that file, and which examples it is of

Two files under the same masks tell the difference of their updates, so there is one, whatever the
server says: asked again an owner hands in the same bytes. Sums of the same examples over two sets
of owners tell the difference of the sets, so a second study is pointed out.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedpeft.core.interfaces import Store
from fedpeft.core.signatures import public_of
from fedpeft.core.types import ClientId
from fedpeft.errors import RunError, WireError
from fedpeft.exchanges.secure.masked_files import masking_key
from fedpeft.exchanges.secure.roster import Roster
from fedpeft.exchanges.secure.secret_sharing import public
from fedpeft.oneshot.invitation import Invitation
from fedpeft.runs.folder import RunFolder, lock_run, read_json
from fedpeft.storage.client_memory import Folder, Nowhere
from fedpeft.storage.files import SECRET, private_folder, write_atomically
from fedpeft.wire.frames import frame, unframe

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

JOINED, SENT = "joined", "sent"
WITHDRAWN = ""
"""The examples of a file that adds nothing."""


@dataclass(frozen=True)
class Sent:
    """A file that an owner has made.

    Attributes:
      owners: of the roster; `base`: the study's frozen weights.
      examples: a digest of those that it is of, or `WITHDRAWN`.
    """

    study: str
    client: ClientId
    owners: Sequence[ClientId]
    base: str
    examples: str
    content: bytes

    def head(self) -> Mapping[str, Any]:
        return {key: x for key, x in vars(self).items() if key != "content"}


def join_folder(memory: Path, invited: str) -> Folder:
    """What an owner, or several in a trial, keep of the study that was joined under that name.

    Raises:
      RunError: the name, which a server chose, is none.
    """
    if not re.fullmatch("[0-9a-f]{32}", invited):
        raise RunError(f"{invited[:64]!a} is no name of a study: ask the server for its invitation")
    return Folder(memory / JOINED / invited)


def check_own_key(study: Invitation, client: ClientId, key: "Ed25519PrivateKey | None") -> None:
    """Raise RunError where the plan knows another key for this owner than `key`."""
    known = study.plan.exchange.signers.get(client)
    own = public_of(key.private_bytes_raw()) if key else None
    if study.plan.exchange.signers and (known is None or own != known):
        has = "has another" if known else "has none"
        raise RunError(
            f"{client!r} must sign with the key whose .pub is in the plan's exchange.keys, which "
            f"{has} for that name than what was given: --key FILE"
        )


class Examined(Protocol):
    """Someone with examples.

    Attributes:
      examples: a digest of them; see `Sent`.
    """

    @property
    def examples(self) -> str: ...


@dataclass(frozen=True)
class NoExamples:
    """The data of an owner that withdraws: there are none."""

    @property
    def examples(self) -> str:
        return WITHDRAWN


@dataclass(frozen=True)
class OpenPlace:
    """The place of an owner whose files are in the open: it makes as many as it likes."""

    store: Store = field(default_factory=Nowhere)

    def words(self) -> str:
        return ""

    def find_made(self, of: Examined, again: bool = False) -> bytes | None:
        return None

    def keep(self, of: Examined, content: bytes) -> bytes:
        return content


def note_joined(study: Invitation, client: ClientId, memory: Path) -> Folder:
    """Write down what an owner joins; returns what it keeps of the study."""
    store = join_folder(memory, study.terms.study)
    private_folder(store.path)
    terms = json.dumps(asdict(study.terms)).encode()
    write_atomically(private_folder(store.place(client)) / JOINED, terms, private=True)
    return store


def _check_not_masked_before(memory: Path, study: Invitation, client: ClientId) -> None:
    """Raise RunError where the owner has joined a study of masked files on the same base and made
    none yet: a server may have sent it another plan than it joined."""
    place = Folder(memory).place(client).name
    for file in sorted((memory / JOINED).glob(f"*/{place}/{JOINED}")):
        joined = read_json(file) or {}
        if joined.get("base") == study.terms.base and not file.with_name(SENT).exists():
            raise RunError(
                f"{client!r} joined the study {file.parent.parent.name} of masked files, and "
                f"{study.path} has a plan by which the server sees your update alone. Ask the "
                "server for the folder with the roster, or give --again if this is another study "
                "and you want it"
            )


def take_seat(
    memory: Path,
    study: Invitation,
    client: ClientId,
    key: "Ed25519PrivateKey | None" = None,
    again: bool = False,
) -> "Seat | OpenPlace":
    """The owner's seat in a study.

    Args:
      again: hand in a file in the open though the owner joined a study of masked ones.

    Raises:
      RunError: of masked files there is no roster, it lacks this owner or has another key for it,
        or the owner has made a file for another roster.
    """
    if not study.plan.exchange.sums:
        if not again:
            _check_not_masked_before(memory, study, client)
        return OpenPlace()
    if study.roster is None:
        raise RunError(
            f"{study.path} has no roster: give the server what `fedpeft join {study.path}` "
            "writes, and take the folder that it then sends"
        )
    seat = Seat(memory, study, study.roster, client)
    seat.check()
    check_own_key(study, client, key)
    # The exchange finds the roster here when it masks the update.
    seat.store.keep(client, study.roster.note())
    return seat


@dataclass(frozen=True)
class Seat:
    """An owner that has joined, and whose roster is complete.

    Attributes:
      memory: the folder of all studies of this user.
    """

    memory: Path
    study: Invitation
    roster: Roster
    client: ClientId

    @property
    def store(self) -> Folder:
        return join_folder(self.memory, self.roster.invited)

    @property
    def _file(self) -> Path:
        return self.store.place(self.client) / SENT

    def check(self) -> None:
        """Raise RunError where the roster has another key for this owner than its own, or it has
        made a file for another roster."""
        keys, store = self.roster.keys, self.store
        if self.client not in keys:
            raise RunError(
                f"{self.client!r} is not in the roster of this study: {', '.join(sorted(keys))}"
            )
        # Asked for, a secret that is missing would be made anew, and another key with it.
        if not (store.path / SECRET).is_file():
            raise RunError(
                f"{store.path / SECRET} is not there, from which the key of {self.client!r} came: "
                "name the folder that you joined with (--memory), or let the study begin again"
            )
        if public(masking_key(store, self.client)).hex() != keys[self.client]:
            raise RunError(
                f"the roster has another key for {self.client!r} than the one that it joined with: "
                "somebody else joined under that name. Hand in nothing, and ask the server"
            )
        before = self._before()
        if before is not None and before.study != self.roster.study:
            raise RunError(
                f"{self.client!r} has made its file for another roster of this study, "
                f"{_apart(before.owners, keys)}. Two sums of one update would tell what these "
                "sent: no second file is made"
            )

    def words(self) -> str:
        """The owners in the sum, for each to compare with what the others see."""
        owners, exchange = sorted(self.roster.keys), self.study.plan.exchange
        known = (
            "each by a key that the plan has"
            if exchange.signers
            else "as the server says: without exchange.keys it may have made them up, so ask each "
            "of them by another way whether it sees the same study"
        )
        return (
            f"masked for {len(owners)} owners, {known}: {', '.join(owners)}\n"
            f"study {self.roster.study}\n"
        )

    def find_made(self, of: Examined, again: bool = False) -> bytes | None:
        """The file that was made of these examples; None if there is none yet.

        Args:
          again: make one though another study has a file of the same examples.

        Raises:
          RunError: a file was made of other examples, or without `again` for other owners.
        """
        before, examples = self._before(), of.examples
        if before is None:
            if not again:
                self._check_other_studies(examples)
            return None
        if before.examples != examples:
            raise RunError(
                f"{self.client!r} has made its one file for this study, "
                f"{'which adds nothing' if before.examples == WITHDRAWN else 'of other examples'}. "
                "Two different files under one mask reveal their difference, which is your "
                f"update's: send the one that is in {self._file.parent}, with the examples it is "
                "of, or take part in a new study"
            )
        return before.content

    def keep(self, of: Examined, content: bytes) -> bytes:
        """Write the file down before it leaves; returns it, or the one that came first.

        Raises:
          RunError: one of other examples came first.
        """
        folder = private_folder(self._file.parent)
        with lock_run(RunFolder(folder)):
            # With the lock: another command of this owner may have made one since it was looked
            # for.
            made = self.find_made(of, again=True)
            if made is not None:
                return made
            owners, base = sorted(self.roster.keys), self.study.terms.base
            sent = Sent(self.roster.study, self.client, owners, base, of.examples, content)
            write_atomically(self._file, frame(sent.head(), content), private=True)
        return content

    def _before(self) -> Sent | None:
        return _read_sent(self._file)

    def _check_other_studies(self, examples: str) -> None:
        """Raise RunError for another study, on the same base, whose owners are others."""
        for file in sorted((self.memory / JOINED).glob(f"*/*/{SENT}")):
            other = _read_sent(file)
            if other is None or not self._is_told_apart(other, examples):
                continue
            raise RunError(
                f"the study {other.study[:16]} has a file of {other.client!r} on the same base, "
                f"{_apart(other.owners, self.roster.keys)}. A server that has both sums can take "
                "one from the other, and reads what is in only one of them, whatever it says of "
                "files that never came. Give --again if you trust it not to"
            )

    def _is_told_apart(self, other: Sent, examples: str) -> bool:
        """Whether the difference of the two sums is the update of few."""
        if other.base != self.study.terms.base:
            return False
        if examples == WITHDRAWN:  # then this owner's own, of which this sum is without
            return other.client == self.client and other.examples != WITHDRAWN
        return other.examples == examples and set(other.owners) != set(self.roster.keys)


def _read_sent(path: Path) -> Sent | None:
    if not path.is_file():
        return None
    try:
        head, content = unframe(path.read_bytes())
        return Sent(**head, content=content)
    except (WireError, TypeError):
        raise RunError(
            f"{path} is damaged: it says what was handed in, so nothing more is. Mend it, or take "
            "part in a new study"
        ) from None


def _apart(before: Iterable[ClientId], now: Iterable[ClientId]) -> str:
    """How an earlier roster differs from one."""
    gone, new = set(before) - set(now), set(now) - set(before)
    parts = [f"with {', '.join(sorted(gone))}"] if gone else []
    parts += [f"without {', '.join(sorted(new))}"] if new else []
    return " and ".join(parts) or "of the same owners with other keys or terms"
