"""The server's side of a secure sum: each message to the clients, and what must come back."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from fedpeft.core.interfaces import Engine, Reception
from fedpeft.core.signing import verified
from fedpeft.core.types import ClientId, Job
from fedpeft.core.wire import unframe
from fedpeft.errors import WireError
from fedpeft.exchanges.sharing import KEY, agreed, check_signed, joined

Answer = TypeVar("Answer")


class Unrecovered(Exception):
    """The sum of a round stays hidden; it says why."""


@dataclass(frozen=True)
class Asking:
    """A round's messages to its clients."""

    engine: Engine
    jobs: Mapping[ClientId, Job]
    receive: Reception
    threshold: int

    def ask(
        self,
        phase: str,
        letters: Mapping[ClientId, bytes],
        check: Callable[[ClientId, bytes], Answer],
        tensors: int = 0,
    ) -> dict[ClientId, Answer]:
        """The answers that are as they must be, in the order of the names.

        Raises:
          Unrecovered: too few are.
        """
        jobs = [replace(self.jobs[c], phase=phase, payload=letter) for c, letter in letters.items()]
        if phase != "fit":
            self.receive.sent(jobs)
        found: dict[ClientId, Answer] = {}
        for reply in self.engine.run(jobs):
            payload = self.receive.content(reply, tensors)
            try:
                if payload is not None:
                    found[reply.client] = check(reply.client, payload)
            except (ValueError, WireError) as error:
                self.receive.refuse(reply.client, f"{phase}: {error}")
        if len(found) < self.threshold:
            raise Unrecovered(
                f"{len(found)} clients answered {phase!r}, {self.threshold} are needed"
            )
        return found


def public_keys(
    jobs: Mapping[ClientId, Job], signers: Mapping[ClientId, str]
) -> Callable[[ClientId, bytes], tuple[str, list[str]]]:
    """A check for the commitment to a client's own mask, and its two public keys with the signature
    if clients sign."""

    def check(client: ClientId, payload: bytes) -> tuple[str, list[str]]:
        header, body = unframe(payload)
        if (
            len(body) != 2 * KEY
            or not isinstance(header, dict)
            or not isinstance(header.get("own"), str)
        ):
            raise ValueError("no two public keys came")
        for key in (body[:KEY], body[KEY:]):
            agreed(
                os.urandom(KEY), key, "trial", [client]
            )  # of a key of small order all others would choke
        check_signed(jobs[client], client, body, header.get("signature"), signers)
        return header["own"], [
            body[:KEY].hex(),
            body[KEY:].hex(),
            *([header["signature"]] if signers else []),
        ]

    return check


def story_signature(
    story: bytes, signers: Mapping[ClientId, str]
) -> Callable[[ClientId, bytes], str]:
    """A check for a client's signature of the story."""

    def check(client: ClientId, payload: bytes) -> str:
        header = unframe(payload)[0]
        told = header.get("signature") if isinstance(header, dict) else None
        if not verified(signers[client], told, story):
            raise ValueError("it did not sign what it was told")
        return str(told)

    return check


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
            asking.receive.refuse(
                peer, f"{len(known)} clients could read the shares that it sealed"
            )
            raise Unrecovered(
                f"{len(known)} clients could read the shares of {peer!r}, {asking.threshold} are "
                "needed"
            )
        told[peer] = joined(dict(list(known.items())[: asking.threshold]))
    return told


def pieces(size: int, count: int) -> Callable[[ClientId, bytes], list[bytes]]:
    """A check for so many pieces of such a size."""

    def check(client: ClientId, payload: bytes) -> list[bytes]:
        body = unframe(payload)[1]
        if len(body) != size * count:
            raise ValueError(f"{len(body)} bytes came, not {count} times {size}")
        return [body[at : at + size] for at in range(0, len(body), size)]

    return check


def readable(peers: Sequence[ClientId]) -> Callable[[ClientId, bytes], dict[ClientId, bytes]]:
    """A check for a share of each peer, without those that its reader could not read."""
    cut = pieces(KEY, len(peers))

    def check(client: ClientId, payload: bytes) -> dict[ClientId, bytes]:
        header = unframe(payload)[0]
        if not isinstance(header, dict) or not isinstance(header.get("unread"), list):
            raise ValueError("it does not say what it could not read")
        each = zip(peers, cut(client, payload), strict=True)
        return {peer: piece for peer, piece in each if peer not in header["unread"]}

    return check
