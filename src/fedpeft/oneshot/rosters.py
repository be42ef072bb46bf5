"""The owners that hand in masked files: what each gives when it joins, and the roster of all.

    NAME.join    one line of JSON: the study, the owner, its public key, its signature of these
    roster.json  in an invitation: the study that owners joined, and those lines by owner

A study with a roster has another name than the invitation that its owners joined: a digest of that
invitation's terms and of all keys. Masks are bound to it, so that files made from different rosters
or terms do not add up to anything.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from secrets import token_bytes
from typing import Any

from fedpeft.core.signatures import PUBLIC, verify
from fedpeft.core.types import ClientId
from fedpeft.errors import RunError
from fedpeft.exchanges.secure.masked_files import MaskedFiles
from fedpeft.exchanges.secure.roster import Roster
from fedpeft.exchanges.secure.secret_sharing import agree_on_key
from fedpeft.oneshot.keys import check_name
from fedpeft.oneshot.terms import Terms
from fedpeft.storage.files import open_regular
from fedpeft.wire import bounded_json

JOIN, ROSTER, FILE = "fedpeft-join-1", "fedpeft-roster-1", "roster.json"
LONGEST = 1 << 20
"""Bytes that are read of a roster or of what an owner gave."""


@dataclass(frozen=True)
class Joined:
    """What an owner gives when it joins.

    Attributes:
      key: its public X25519 key for this study, in hex.
      signature: of `signed_words`, in hex; empty where the plan has no exchange.keys.
    """

    study: str
    client: ClientId
    key: str
    signature: str = ""
    format: str = JOIN

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True) + "\n"


def signed_words(terms: Terms, client: ClientId, key: str) -> bytes:
    """What an owner signs: that this key is its own, in the study and the plan that it joins."""
    words = ["fedpeft masked file: key", terms.study, terms.plan, client, key]
    return json.dumps(words).encode()


def bind(terms: Terms, keys: Mapping[ClientId, str]) -> str:
    """The name of the study that has these keys, of the terms that owners joined; 256 bits, as a
    server may look for two rosters with one name."""
    text = json.dumps([asdict(terms), dict(keys)], sort_keys=True)
    return blake2b(text.encode(), digest_size=32).hexdigest()


def read_joined(path: Path) -> Joined:
    """What an owner gave.

    Raises:
      RunError: the file holds something else.
    """
    values = _read(path)
    try:
        if values.pop("format") == JOIN:
            joined = Joined(**{key: str(value) for key, value in values.items()})
            check_name(joined.client)
            return joined
    except (KeyError, TypeError):
        pass
    raise RunError(f"{path} is not what `fedpeft join` writes: ask its owner for that file")


def check_owners(owners: Mapping[ClientId, Joined], terms: Terms, exchange: MaskedFiles) -> None:
    """Raise RunError where owners are too few, or a key is not its owner's.

    Args:
      terms: of the invitation that they joined.
    """
    if len(owners) < exchange.least:
        raise RunError(
            f"a roster of {len(owners)}: at least {exchange.least} owners must hand in a file, as "
            "few hide little (exchange.least): wait for more of them to join"
        )
    exchange.check_count(len(owners))
    shared: dict[str, ClientId] = {}
    for client, one in sorted(owners.items()):
        check_name(client)
        if one.study != terms.study:
            raise RunError(
                f"{client!r} joined another study: let it `fedpeft join` this invitation"
            )
        _check_key(client, one.key)
        if one.key in shared:
            raise RunError(
                f"{client!r} and {shared[one.key]!r} have one key: let one of them join again"
            )
        shared[one.key] = client
        signers = exchange.signers
        words = signed_words(terms, client, one.key)
        if signers and not verify(signers.get(client, ""), one.signature, words):
            raise RunError(
                f"the key that came as that of {client!r} is not signed by the one that the plan's "
                "exchange.keys has for it: whoever made it may be somebody else. Ask that owner"
            )


def _check_key(client: ClientId, key: str) -> None:
    try:
        raw = bytes.fromhex(key)
        if len(raw) == PUBLIC and raw.hex() == key:
            agree_on_key(
                token_bytes(PUBLIC), raw, "trial", [client]
            )  # with a bad one all would choke
            return
    except ValueError:
        pass
    raise RunError(f"the key of {client!r} is no public key: let it join again")


def roster_text(terms: Terms, owners: Mapping[ClientId, Joined]) -> dict[str, Any]:
    """The content of `roster.json`."""
    rows = {client: [one.key, one.signature] for client, one in sorted(owners.items())}
    return {"format": ROSTER, "study": terms.study, "owners": rows}


def read_roster(folder: Path, terms: Terms, exchange: object) -> Roster | None:
    """The roster of the invitation in `folder`; None while owners join, or without masks.

    Args:
      terms: as the invitation has them now, with the roster's study.

    Raises:
      RunError: it is not the one that the study's name says, or an owner's key is not its own.
    """
    path = folder / FILE
    if not isinstance(exchange, MaskedFiles) or not path.exists():
        return None
    values = _read(path)
    try:
        invited = replace(terms, study=str(values["study"]))
        owners = {
            client: Joined(invited.study, client, str(key), str(signature))
            for client, (key, signature) in values["owners"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RunError(f"{path} is damaged: ask the server for the invitation again") from None
    keys = {client: one.key for client, one in owners.items()}
    if values.get("format") != ROSTER or bind(invited, keys) != terms.study:
        raise RunError(
            f"{path} is not the roster of the study {terms.study[:16]}: one of them was changed; "
            "ask the server for the invitation again"
        )
    # Each owner checks for itself what the server had to check: a server may lie.
    check_owners(owners, invited, exchange)
    return Roster(terms.study, invited.study, keys)


def _read(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            content = file.read(LONGEST + 1)
        values = bounded_json.read(content) if len(content) <= LONGEST else None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise RunError(f"{path} is no such file: it holds other text than it should, or too much")
    return values
