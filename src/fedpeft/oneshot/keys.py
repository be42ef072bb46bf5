"""Keys: who signed a file (Ed25519, RFC 8032), and who alone may open it.

Sealing is a Diffie-Hellman exchange between a key made for the one file and the server's (X25519,
RFC 7748), HKDF-SHA256 (RFC 5869) over what comes of it, and ChaCha20-Poly1305 (RFC 8439). The key
of each file is another, so one nonce will do.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedpeft.core import signatures as signing
from fedpeft.core.client_names import ALLOWED, find_problem
from fedpeft.core.client_names import LONGEST as LONGEST_NAME
from fedpeft.core.signatures import KIND, PUBLIC, public_line
from fedpeft.errors import RunError, explain_install
from fedpeft.storage.files import PRIVATE, new_file, open_regular, write_atomically
from fedpeft.storage.text_files import text_of
from fedpeft.wire.frames import Body

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

CONTEXT = b"fedpeft-contribution-1"
NONCE = bytes(12)
LONGEST = 1 << 20
"""Bytes that are read of a file of keys."""


class SealError(Exception):
    """It was sealed for somebody else, or changed since."""


def require() -> None:
    """Raises RunError where `cryptography` is not installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise RunError(
            f"contribution files are signed and sealed: {explain_install('oneshot')}"
        ) from None


def write_private(path: Path, content: bytes) -> None:
    """A new file that only its owner may read, whole or not at all.

    Raises:
      RunError: something is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        with new_file(part, PRIVATE) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)  # which, unlike a rename, puts nothing in the place of a key
    except FileExistsError:
        raise RunError(
            f"{path} is there already: a key that is overwritten is lost; name another place"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _raw(key: "Ed25519PrivateKey | X25519PrivateKey") -> bytes:
    return key.private_bytes_raw()


def _read_raw(path: Path) -> bytes:
    """A private key. What the file holds is never shown: a message may end in a log."""
    text = _text(path, "key")
    try:
        raw = bytes.fromhex(text.strip())
    except ValueError:
        raise RunError(
            f"{path} is no private key: such a file holds 64 hexadecimal digits and nothing else"
        ) from None
    if len(raw) != 32:
        raise RunError(f"{path} is no private key: it has {len(raw)} bytes, not 32")
    return raw


def _text(path: Path, what: str) -> str:
    try:
        with open_regular(path) as file:
            return text_of(file.read(LONGEST))
    except UnicodeDecodeError:
        raise RunError(f"the {what} {path} cannot be read: it holds no text") from None
    except OSError as error:
        raise RunError(f"the {what} {path} cannot be read: {error.strerror or error}") from None


def make_signing_key(name: str, folder: Path) -> tuple[Path, Path]:
    """`NAME.key`, for its owner only, and `NAME.pub`, a line for the server's list of those it
    trusts."""
    require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    check_name(name)
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    write_private(private, _raw(key).hex().encode() + b"\n")
    write_atomically(public, f"{KIND}{key.public_key().public_bytes_raw().hex()} {name}\n".encode())
    return private, public


def signing_key(path: Path) -> "Ed25519PrivateKey":
    """The key in a file of `make_signing_key`.

    Raises:
      RunError: it cannot be read.
    """
    require()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(_read_raw(path))


def sealing_key(path: Path) -> "X25519PrivateKey":
    """The server's private key.

    Raises:
      RunError: it cannot be read.
    """
    require()
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(_read_raw(path))


def make_sealing_key(path: Path) -> str:
    """A new private key for a server; returns the public one."""
    require()
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    key = X25519PrivateKey.generate()
    write_private(path, _raw(key).hex().encode() + b"\n")
    return key.public_key().public_bytes_raw().hex()


def check_name(name: str) -> None:
    """Raises RunError for a bad name of a client, or of files that are called after
    it."""
    if problem := find_problem(name):
        raise RunError(f"{name[:LONGEST_NAME]!a} is no name for a client: {problem}; {ALLOWED}")


@dataclass(frozen=True)
class Trust:
    """The keys whose signatures count; where `keys` is empty, unsigned files count too.

    Attributes:
      keys: by public key, in hex, the client that signs with it.
    """

    keys: Mapping[str, str] = field(default_factory=dict)

    def or_plan_keys(self, signers: Mapping[str, str]) -> "Trust":
        """The keys that a plan has for its clients, by name, where it has some; else these."""
        return Trust({key: client for client, key in signers.items()}) if signers else self

    @classmethod
    def read(cls, paths: Sequence[Path]) -> "Trust":
        """Reads files with a line `ed25519:<hex> <client>` for each key, as `make_signing_key`
        writes them.

        Raises:
          RunError: a file cannot be read, or a line is something else.
        """
        keys: dict[str, str] = {}
        for path in paths:
            lines = _text(path, "list of keys").splitlines()
            for number, line in enumerate(filter(str.strip, lines), 1):
                try:
                    key, name = public_line(line)
                    if name:
                        check_name(name)
                except (ValueError, RunError) as error:
                    raise RunError(f"{path}, line {number}: {error}") from None
                keys[key] = name
            if not keys:
                raise RunError(
                    f"{path} holds no key: a line is `ed25519:<hex> <client>`, as in the .pub of "
                    "`keygen`"
                )
        return cls(keys)


def sign(key: "Ed25519PrivateKey", head: bytes, body: bytes) -> str:
    """The signature over both, in hex."""
    return key.sign(_signed_bytes(head, body)).hex()


def is_signed(public: str, signature: str, head: bytes, body: Body) -> bool:
    """Whether the owner of the key signed both."""
    return signing.verify(public, signature, _signed_bytes(head, body))


def _signed_bytes(head: bytes, body: Body) -> bytes:
    # With its length, so that no end of the head can be passed off as the beginning of the body.
    return b"".join([CONTEXT, len(head).to_bytes(8, "little"), head, body])


def seal(public: str, head: bytes, body: bytes) -> bytes:
    """`body` for the owner of the public key only, bound to `head`: the file's own public key, then
    what is sealed."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    own = X25519PrivateKey.generate()
    theirs = X25519PublicKey.from_public_bytes(bytes.fromhex(public))
    sender = own.public_key().public_bytes_raw()
    key = _derive_key(own.exchange(theirs), sender, theirs)
    return sender + ChaCha20Poly1305(key).encrypt(NONCE, body, head)


def unseal(private: "X25519PrivateKey", head: bytes, sealed: Body) -> bytes:
    """The inverse of `seal`.

    Raises:
      SealError: it is not what was sealed with `head` for this key.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    sender = bytes(sealed[:PUBLIC])
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(sender))
        key = _derive_key(shared, sender, private.public_key())
        return ChaCha20Poly1305(key).decrypt(NONCE, sealed[PUBLIC:], head)
    # A ValueError is of a public key by which no secret would come out, as those of low order.
    except (InvalidTag, ValueError):
        raise SealError from None


def _derive_key(shared: bytes, sender: bytes, receiver: "X25519PublicKey") -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, salt=sender + receiver.public_bytes_raw(), info=CONTEXT).derive(
        shared
    )
