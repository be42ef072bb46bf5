"""Keys that two clients agree on, and secrets of which a threshold of clients can tell what it is
(Shamir, 1979)."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from fedpeft.core.secrets import Secret
from fedpeft.core.signatures import verify
from fedpeft.core.types import ClientId
from fedpeft.errors import PlanError, explain_install

KEY = 32
_HALF = 16  # bytes that `Crypto.Protocol.SecretSharing` shares at once, in GF(2^128)
_NONCE, _TAG = 12, 16
SEALED = _NONCE + 2 * KEY + _TAG
"""Bytes of a sealed pair of shares."""


@dataclass(frozen=True)
class Keys:
    """A client's secrets of one session, all from one root that its system made.

    Attributes:
      cipher: the private key by which shares are sealed.
      mask: the private key by which masks are agreed on; shared among all, for those who drop out.
      own: what the client's own mask is drawn from; shared among all, for those who do not.
    """

    cipher: bytes
    mask: bytes
    own: bytes

    @classmethod
    def of(cls, root: Secret) -> "Keys":
        return cls(*(root.at(name).root for name in ("cipher", "mask", "own")))


def require() -> None:
    """Raises PlanError without the libraries that this is made of."""
    if find_spec("cryptography") is None or find_spec("Crypto") is None:
        raise PlanError(
            f"secure aggregation needs cryptography and pycryptodome: {explain_install('secure')}"
        )


def public(private: bytes) -> bytes:
    """The public key of a private X25519 key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def own_keys(run: str, round: int, client: ClientId, keys: bytes) -> bytes:
    """What a client signs first: that these two public keys are its own, in this round of this
    run."""
    return json.dumps(["fedpeft secure sum: keys", run, round, client]).encode() + keys


def one_story(
    run: str,
    round: int,
    roster: Mapping[ClientId, Sequence[str]],
    peers: Sequence[ClientId],
    alive: Sequence[ClientId],
) -> bytes:
    """What a client signs before it helps to unmask: who began with which keys, who shared, and who
    is alive."""
    story = ["fedpeft secure sum: story", run, round, dict(roster), list(peers), list(alive)]
    return json.dumps(story, sort_keys=True).encode()


def check_signed(
    run: str,
    round: int,
    client: ClientId,
    keys: bytes,
    told: object,
    signers: Mapping[ClientId, str],
) -> None:
    """Raises ValueError where clients sign and these two public keys are not signed by the client's
    own."""
    said = own_keys(run, round, client, keys)
    if signers and not verify(signers.get(client, ""), told, said):
        raise ValueError(
            f"the keys that came as those of {client!r} are not signed by the one that the plan "
            "has for it"
        )


def agree_on_key(private: bytes, other: bytes, purpose: str, pair: Sequence[ClientId]) -> bytes:
    """A key of 256 bits that both of a pair can tell and nobody else: X25519 and HKDF-SHA-256.

    Raises:
      ValueError: `other` is no public key.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    shared = X25519PrivateKey.from_private_bytes(private).exchange(
        X25519PublicKey.from_public_bytes(other)
    )
    # Sorted, so that both come to one key; with a purpose, so that no key serves for shares and
    # masks.
    info = json.dumps(["fedpeft secure sum", purpose, sorted(pair)]).encode()
    return HKDF(SHA256(), KEY, salt=None, info=info).derive(shared)


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """`count` shares, of which any `threshold` tell a secret of 32 bytes, and fewer nothing."""
    from Crypto.Protocol.SecretSharing import Shamir

    halves = (Shamir.split(threshold, count, secret[at : at + _HALF], False) for at in (0, _HALF))
    return [low + high for (_, low), (_, high) in zip(*halves, strict=True)]


def join_shares(shares: Mapping[int, bytes]) -> bytes:
    """The secret that as many shares as the threshold tell, by their places from 0."""
    from Crypto.Protocol.SecretSharing import Shamir

    return b"".join(
        Shamir.combine(
            # Shares are counted from 1, since the secret itself lies at 0.
            [(place + 1, share[at : at + _HALF]) for place, share in shares.items()],
            False,
        )
        for at in (0, _HALF)
    )


def seal(key: bytes, content: bytes, sender: ClientId, to: ClientId) -> bytes:
    """Only who has the key can read it, and tell that it is from this sender to that client."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce = os.urandom(_NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, content, json.dumps([sender, to]).encode())


def unseal(key: bytes, sealed: bytes, sender: ClientId, to: ClientId) -> bytes:
    """The inverse of `seal`.

    Raises:
      ValueError: it was changed, or is of or for somebody else.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(
            sealed[:_NONCE], sealed[_NONCE:], json.dumps([sender, to]).encode()
        )
    except InvalidTag:
        raise ValueError(
            f"the shares that {sender!r} sealed for {to!r} were changed on their way"
        ) from None
