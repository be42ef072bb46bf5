"""The owners in a sum of masked files, their public keys, and the masks that follow from them.

Every pair of owners agrees on a key (X25519, HKDF-SHA-256) that is bound to the study, and the
study's name is a digest of the roster and of all that was invited with. So two owners that were
shown different rosters, plans or starting tensors have masks that never take each other away.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft.core.types import ClientId
from fedpeft.exchanges.secure.masks import Integers, add_mask, mask
from fedpeft.exchanges.secure.secret_sharing import agree_on_key

LEAST = 3
"""Owners of a roster: of a sum of two, each owner of one term knows the other."""


@dataclass(frozen=True)
class Roster:
    """The owners of a study, all of whom must hand in a file before anything is known.

    Attributes:
      study: what the masks are bound to.
      invited: the study's name when its owners joined, before it had a roster.
      keys: by owner its public X25519 key, in hex.
    """

    study: str
    invited: str
    keys: Mapping[ClientId, str]

    def note(self) -> bytes:
        """The bytes that an owner's store keeps."""
        return json.dumps([self.study, self.invited, dict(self.keys)], sort_keys=True).encode()

    @classmethod
    def of_note(cls, note: bytes) -> "Roster":
        """The inverse of `note`.

        Raises:
          ValueError: there is none.
        """
        if not note:
            raise ValueError(
                'exchange "masked_files" is for `fedpeft contribute` and an invitation that has '
                'its roster: for a run set exchange = "secure", which asks four times'
            )
        return cls(*json.loads(note))

    def masked(self, values: Integers, me: ClientId, private: bytes, bits: int) -> Integers:
        """values ± PRG(key agreed with each other owner), modulo 2^bits.

        Args:
          values: (entries,), unsigned.
          private: this owner's X25519 key.

        Raises:
          ValueError: another owner's key is none.
        """
        for other, key in self.keys.items():
            if other != me:
                pair = agree_on_key(private, bytes.fromhex(key), f"file {self.study}", [me, other])
                # Of a pair, the one whose name comes first adds the mask and the other takes it
                # away.
                values = add_mask(values, mask(pair, len(values), bits), me < other)
        return values
