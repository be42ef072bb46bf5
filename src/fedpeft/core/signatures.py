"""Signatures by which a client is known (Ed25519, RFC 8032), and public keys as people hand them
on."""

from contextlib import suppress

KIND = "ed25519:"
PUBLIC = 32  # bytes of a public key


def public_line(text: str) -> tuple[str, str]:
    """The public key in hex and the client of a line `ed25519:<hex> <client>`; the client may be
    left out.

    Raises:
      ValueError: it is something else.
    """
    key, _, name = text.strip().partition(" ")
    digits = key.removeprefix(KIND)
    with suppress(ValueError):
        if key.startswith(KIND) and len(bytes.fromhex(digits)) == PUBLIC:
            # Written in one way, so that equal keys are equal texts.
            return bytes.fromhex(digits).hex(), name.strip()
    # what came is not shown: it may be a private key
    raise ValueError(
        f"this is no public key: a line is `{KIND}<hex> <client>`, as in the .pub of `keygen`; the "
        ".key beside it is the private one, which nobody else may read"
    )


def public_of(private: bytes) -> str:
    """The public key of 32 private bytes, in hex."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def signature(private: bytes, message: bytes) -> str:
    """In hex, by the owner of 32 private bytes."""
    # `cryptography` is an extra, so it is imported where something is signed and nowhere above.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private).sign(message).hex()


def verify(public: str, signed: object, message: bytes) -> bool:
    """Whether the owner of the public key signed the message, and it is written in the one way that
    is ours."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        plain = bytes.fromhex(str(signed))
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(plain, message)
    except (InvalidSignature, ValueError):
        return False
    # Upper case would be a second spelling of one signature, and so a second file with one content.
    return plain.hex() == signed
