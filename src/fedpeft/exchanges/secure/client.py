"""A client's side of a secure sum: what it keeps between the messages of a round, and what it
answers to each.

A session begins when the client has trained, with keys that are new each time, also where the same
round is done again. In it each message is answered once, or again in the same words: who told one
server both shares of a client, in answer to two claims of who is alive, would unmask it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from fedpeft.core.conversation import Message
from fedpeft.core.interfaces import Store
from fedpeft.core.secrets import Secret
from fedpeft.core.signatures import signature
from fedpeft.core.types import ClientId, Job
from fedpeft.errors import WireError
from fedpeft.exchanges.secure.secret_sharing import (
    KEY,
    SEALED,
    Keys,
    agree_on_key,
    one_story,
    own_keys,
    public,
    seal,
    split,
    unseal,
)
from fedpeft.exchanges.secure.server import bytes_message
from fedpeft.wire.frames import frame, unframe


@dataclass(frozen=True)
class Session:
    """What a client keeps; keys are derived from its own secret when they are needed.

    Attributes:
      name: drawn afresh for each session.
      packed: the update, as the client would send it in the open; empty once it is masked for good.
      asked: by phase, a digest of what was asked.
      roster: by client its two public keys and, where clients sign, its signature; in the order of
        the names.
      peers: those with whom the update was masked.
    """

    run: str
    round: int
    client: ClientId
    name: str
    packed: bytes
    asked: Mapping[str, str]
    roster: Mapping[ClientId, Sequence[str]]
    peers: Sequence[ClientId]

    @classmethod
    def begun(cls, job: Job, packed: bytes) -> "Session":
        return cls(job.run, job.round, job.client, os.urandom(16).hex(), packed, {}, {}, ())

    @classmethod
    def at(cls, job: Job, store: Store) -> "Session":
        """The session that the job belongs to.

        Raises:
          WireError: there is none.
        """
        note = store.note(job.client)
        kept, packed = unframe(note) if note else ({}, b"")
        if (kept.get("run"), kept.get("round"), kept.get("client")) != (
            job.run,
            job.round,
            job.client,
        ):
            raise WireError(
                f"asked for {job.phase!r} in round {job.round}, in which this client has not "
                "trained"
            )
        return cls(**kept, packed=packed)

    def kept(self, store: Store) -> "Session":
        values: dict[str, Any] = {
            key: value for key, value in vars(self).items() if key != "packed"
        }
        store.keep(self.client, frame(values, self.packed))
        return self

    def once(self, job: Job, after: str = "") -> "Session":
        """The same, having been asked that.

        Raises:
          WireError: it was asked something else before, or not yet what comes first.
        """
        digest = blake2b(job.payload, digest_size=16).hexdigest()
        if after and after not in self.asked:
            raise WireError(f"asked for {job.phase!r} before {after!r}")
        if self.asked.get(job.phase, digest) != digest:
            raise WireError(
                f"asked twice for {job.phase!r}, in two versions: to answer both could unmask an "
                "update"
            )
        return replace(self, asked={**self.asked, job.phase: digest})

    def keys(self, store: Store) -> Keys:
        return Keys.of(store.secret(self.client).at("secure", self.run, self.round, self.name))

    def opening(self, store: Store) -> Message:
        """Public keys, by what the client's own mask is known again, and if it signs a signature of
        the keys."""
        keys, signer = self.keys(store), store.signer(self.client)
        opened = public(keys.cipher) + public(keys.mask)
        head: dict[str, Any] = {"own": Secret(keys.own).commitment}
        if signer:
            head["signature"] = signature(
                signer, own_keys(self.run, self.round, self.client, opened)
            )
        return bytes_message(head, keys=opened)

    def enrolled(self, roster: Mapping[ClientId, Sequence[str]], store: Store) -> "Session":
        """The same with its roster.

        Raises:
          WireError: the roster has other keys for this client than those that it gave.
        """
        keys = self.keys(store)
        if list(roster[self.client][:2]) != [public(keys.cipher).hex(), public(keys.mask).hex()]:
            raise WireError("the keys that came as this client's own are not those that it gave")
        return replace(self, roster=roster)

    def story(self, alive: Sequence[ClientId]) -> bytes:
        return one_story(self.run, self.round, self.roster, self.peers, alive)

    def shares(self, store: Store, threshold: int) -> Message:
        """A share of each of the two secrets for each client, sealed for it."""
        keys, names = self.keys(store), list(self.roster)
        each = zip(
            split(keys.own, threshold, len(names)),
            split(keys.mask, threshold, len(names)),
            strict=True,
        )
        sealed = []
        for name, (own, masks) in zip(names, each, strict=True):
            key = agree_on_key(
                keys.cipher, bytes.fromhex(self.roster[name][0]), "shares", [self.client, name]
            )
            sealed.append(seal(key, own + masks, self.client, name))
        return bytes_message({}, sealed=b"".join(sealed))

    def opened(self, store: Store, alive: Sequence[ClientId], sealed: bytes) -> Message:
        """One share of each peer and never both: that of its own mask if it is alive, else that of
        the masks it agreed on.

        What cannot be read is named: one client that seals nonsense must not keep all others from
          answering.
        """
        keys, found, unread = self.keys(store), [], []
        for place, name in enumerate(self.peers):
            key = agree_on_key(
                keys.cipher, bytes.fromhex(self.roster[name][0]), "shares", [self.client, name]
            )
            try:
                pair = unseal(key, sealed[place * SEALED : (place + 1) * SEALED], name, self.client)
            except ValueError:
                unread.append(name)
                # Shares are told by their places, so that this one is filled; `unread` says that it
                # is none.
                pair = bytes(2 * KEY)
            found.append(pair[:KEY] if name in alive else pair[KEY:])
        return bytes_message({"unread": unread}, shares=b"".join(found))
