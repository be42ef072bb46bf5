"""The server's side of a secure sum: what must come back to each message."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedpeft.core.conversation import Ask, Check, Message, accept
from fedpeft.core.rounds import Round
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId
from fedpeft.exchanges.secure.secret_sharing import KEY, agree_on_key, check_signed, join_shares


class Unrecovered(Exception):
    """The sum of a round stays hidden; it says why."""


@dataclass(frozen=True)
class Asking:
    """What the server needs to know to check the answers of a round."""

    run: str
    round: Round
    threshold: int
    signers: Mapping[ClientId, str]

    def enough(self, phase: str, found: Mapping[ClientId, Any]) -> None:
        """Raises Unrecovered where fewer clients answered than must."""
        if len(found) < self.threshold:
            raise Unrecovered(
                f"{len(found)} clients answered {phase!r}, {self.threshold} are needed"
            )

    def check_keys(self, client: ClientId, message: Message) -> None:
        """Raises ValueError for an answer without the commitment to a client's own mask, or whose
        two public keys are none, or are not signed where clients sign."""
        if not isinstance(message.values.get("own"), str):
            raise ValueError("no two public keys came")
        keys = bytes_of(message, "keys")
        for key in (keys[:KEY], keys[KEY:]):
            agree_on_key(
                os.urandom(KEY), key, "trial", [client]
            )  # with a bad key all others would choke
        signature = message.values.get("signature")
        check_signed(self.run, self.round.index, client, keys, signature, self.signers)


def bytes_message(values: Mapping[str, Any], **groups: bytes) -> Message:
    """A message of plain values and named bytes."""
    tensors = {
        name: {"bytes": torch.frombuffer(bytearray(content), dtype=torch.uint8)}
        for name, content in groups.items()
        if content
    }
    return Message(tensors, values)


def bytes_of(message: Message, group: str) -> bytes:
    """The inverse of `bytes_message`; nothing where the message has no such group.

    Raises:
      ValueError: the group holds something else.
    """
    tensors = message.tensors.get(group, {})
    if tensors and (list(tensors) != ["bytes"] or tensors["bytes"].dtype is not torch.uint8):
        raise ValueError(f"the message holds no bytes under {group!r}")
    return tensors["bytes"].numpy().tobytes() if tensors else b""


def bytes_layout(**sizes: int) -> dict[str, Layout]:
    """The layout of a message of so many bytes by name."""
    return {name: [("bytes", [size], "uint8")] for name, size in sizes.items() if size}


def public_keys(message: Message, signed: bool) -> tuple[str, list[str]]:
    """A client's commitment, and its two public keys in hex with the signature if clients sign."""
    keys = bytes_of(message, "keys")
    signature = [message.values["signature"]] if signed else []
    return message.values["own"], [keys[:KEY].hex(), keys[KEY:].hex(), *signature]


def secrets_of(
    asking: Asking,
    peers: Sequence[ClientId],
    places: Mapping[ClientId, int],
    opened: Mapping[ClientId, Mapping[ClientId, bytes]],
) -> dict[ClientId, bytes]:
    """Each peer's secret.

    Raises:
      Unrecovered: too few could read a peer's shares, which is that one's fault.
    """
    told = {}
    for peer in peers:
        known = {places[c]: shares[peer] for c, shares in opened.items() if peer in shares}
        if len(known) < asking.threshold:
            asking.round.refuse(peer, f"{len(known)} clients could read the shares that it sealed")
            raise Unrecovered(
                f"{len(known)} clients could read the shares of {peer!r}, {asking.threshold} are "
                "needed"
            )
        # Any so many tell it.
        told[peer] = join_shares(dict(list(known.items())[: asking.threshold]))
    return told


def pieces(body: bytes, size: int) -> list[bytes]:
    """Bytes cut into pieces of one size."""
    return [body[at : at + size] for at in range(0, len(body), size)]


def readable(message: Message, peers: Sequence[ClientId]) -> dict[ClientId, bytes]:
    """A share of each peer, without those that its reader could not read."""
    unread = message.values["unread"]
    each = zip(peers, pieces(bytes_of(message, "shares"), KEY), strict=True)
    return {peer: piece for peer, piece in each if peer not in unread}


def check_unread(client: ClientId, message: Message) -> None:
    """Raises ValueError for an answer that does not say what its reader could not read."""
    if not isinstance(message.values.get("unread"), list):
        raise ValueError("it does not say what it could not read")


def ask_all(
    phase: str,
    to: Mapping[ClientId, Message],
    expected: Mapping[str, Layout],
    check: Check = accept,
) -> Ask:
    """A question whose answers all have one layout."""
    return Ask(phase, to, lambda _: expected, check)
