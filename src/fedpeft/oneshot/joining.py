"""How owners come to a roster, and how one of them leaves it again without a second message."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import TYPE_CHECKING

from fedpeft.core.signatures import signature
from fedpeft.core.types import ClientId
from fedpeft.errors import RunError
from fedpeft.exchanges.secure.masked_files import MaskedFiles, masking_key
from fedpeft.exchanges.secure.secret_sharing import public
from fedpeft.oneshot import rosters
from fedpeft.oneshot.answers import expected_update
from fedpeft.oneshot.contribution import write_signed
from fedpeft.oneshot.invitation import FILE, Invitation, server_key
from fedpeft.oneshot.keys import check_name, require, write_private
from fedpeft.oneshot.seat import NoExamples, Seat, check_own_key, note_joined, take_seat
from fedpeft.runs.folder import write_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def join_owner(
    study: Invitation, client: ClientId, memory: Path, key: "Ed25519PrivateKey | None" = None
) -> rosters.Joined:
    """What an owner gives the server to be in the roster; the same each time.

    Raises:
      RunError: the study has its roster, needs none, or knows another key for the owner.
    """
    require()
    check_name(client)
    _check_open(study)
    check_own_key(study, client, key)
    store = note_joined(study, client, memory)
    own = public(masking_key(store, client)).hex()
    words = rosters.signed_words(study.terms, client, own)
    signed = bool(study.plan.exchange.signers) and key is not None
    told = signature(key.private_bytes_raw(), words) if signed and key else ""
    return rosters.Joined(study.terms.study, client, own, told)


def make_roster(study: Invitation, files: Sequence[Path], out: Path) -> Sequence[ClientId]:
    """Write the invitation again at `out` with its roster, and its server's key beside it; returns
    the owners.

    Raises:
      RunError: owners are too few, one joined twice, a key is not its owner's, or something is
        at `out`.
    """
    require()
    exchange = _check_open(study)
    if not server_key(study.path).is_file():
        raise RunError(f"{server_key(study.path)} is gone: only who invited can make the roster")
    if (out.exists() and (not out.is_dir() or any(out.iterdir()))) or server_key(out).exists():
        raise RunError(f"{out}, or its key, is there already: name a new or an empty folder")
    owners: dict[ClientId, rosters.Joined] = {}
    for file in files:
        one = rosters.read_joined(file)
        if one.client in owners:
            raise RunError(
                f"{file}: {one.client!r} joined twice: find out which file is its owner's, and "
                "leave out the other"
            )
        owners[one.client] = one
    rosters.check_owners(owners, study.terms, exchange)
    named = rosters.bind(study.terms, {client: one.key for client, one in owners.items()})
    copytree(study.path, out, ignore=ignore_patterns(FILE, ".lock"), dirs_exist_ok=True)
    write_private(server_key(out), server_key(study.path).read_bytes())
    write_json(out / rosters.FILE, rosters.roster_text(study.terms, owners))
    write_json(out / FILE, asdict(replace(study.terms, study=named)))  # last, as in `invite`
    return sorted(owners)


def withdraw(
    study: Invitation,
    client: ClientId,
    memory: Path,
    key: "Ed25519PrivateKey | None" = None,
    again: bool = False,
) -> bytes:
    """The file of an owner that will not train: it takes the owner's masks away from the sum and
    adds nothing to it. The owner can make no other file for the study then.

    Raises:
      RunError: the owner has no seat, or has made a file with an update.
    """
    require()
    seat = take_seat(memory, study, client, key)
    exchange = study.plan.exchange
    if not isinstance(seat, Seat) or not isinstance(exchange, MaskedFiles):
        raise RunError(
            f"the files of {study.path} are in the open: who will not take part sends nothing"
        )
    made = seat.find_made(NoExamples(), again)
    if made is not None:
        return made
    layout = expected_update(study, client)
    frame = exchange.nothing(layout, seat.roster, client, seat.store)
    return seat.keep(NoExamples(), write_signed(study.terms, client, frame, key)[1])


def _check_open(study: Invitation) -> MaskedFiles:
    """Raise RunError where owners cannot join."""
    exchange = study.plan.exchange
    if not isinstance(exchange, MaskedFiles):
        raise RunError(
            f"nobody joins {study.path}: its files are in the open, and an owner just contributes. "
            'For masked files invite with exchange = "secure"'
        )
    if study.roster is not None:
        raise RunError(
            f"{study.path} has its roster already, {', '.join(sorted(study.roster.keys))}: another "
            "owner needs a new one, made of the invitation that was joined"
        )
    return exchange
