"""Secure aggregation (Bonawitz et al., 2017, https://eprint.iacr.org/2017/281): the server learns the sum alone."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import TypeVar

import numpy as np

from fedpeft.core.interfaces import Codec, Engine, Reception, Store
from fedpeft.core.secrets import Secret
from fedpeft.core.tensors import Layout, norm
from fedpeft.core.types import ClientId, Job, Update
from fedpeft.core.wire import frame, layout_of, pack, unframe, unpack
from fedpeft.errors import WireError
from fedpeft.exchanges.masking import Integers, carried, integers, mask, mean, read, shift
from fedpeft.exchanges.session import Session
from fedpeft.exchanges.sharing import KEY, SEALED, agreed, joined, public
from fedpeft.registry import build

Answer = TypeVar("Answer")
MASKED = "masked"


@dataclass(frozen=True)
class Secure:
    """Four messages to each client and four back:

        fit      trains; gives two public keys
        shares   gets all keys; gives of two secrets a share for each client, sealed for it
        masked   gets who shared; gives q(w·Δ), w + PRG(own) ± PRG(agreed with each other client), modulo 2^bits
        unmask   gets who is alive; gives of those the shares of `own`, of those who are not the shares of their masks

    What is added up is exact: the mean is that of the rounded updates. A client that drops out costs its own update;
    while `threshold` clients answer, the sum of the others is recovered. The server is trusted to follow the protocol
    and to pass on keys unchanged, not to close its eyes; up to `threshold` − 1 clients may tell it all they know.

    Attributes:
      threshold: of clients that must answer each message; fewer learn nothing, and the round changes nothing.
      limit: the largest |entry| of an update; beyond it a client fails by name.
      max_norm: the longest update that a client sends, since the server cannot see how long it is.
      max_weight: the largest weight of a client: 1 with uniform weights.
      bits: k, 32 or 64, of an entry on the wire.

    Raises:
      ValueError: a value out of range.
    """

    threshold: int = 6
    limit: float = 8.0
    max_norm: float = float("inf")
    max_weight: int = 1
    bits: int = 32

    def __post_init__(self) -> None:
        if self.threshold < 2 or self.max_weight < 1 or not (self.limit > 0 and self.max_norm > 0):
            raise ValueError("threshold must be at least 2, max_weight at least 1, limit and max_norm positive")
        if self.bits not in (32, 64):
            raise ValueError(f"bits must be 32 or 64, got {self.bits}")

    @property
    def sums(self) -> bool:
        return True

    def shift(self, clients: int) -> int:
        """f for so many clients."""
        return shift(self.bits, clients, self.max_weight * self.limit)

    def reply(self, job: Job, packed: bytes, store: Store) -> bytes:
        self._check(_plain(job.client, packed))
        return Session.begun(job, packed).kept(store).opening(store)

    def _check(self, update: Update) -> None:
        """What the server cannot see must be in order before it is hidden."""
        for name, x in update.delta.items():
            if not x.is_floating_point():
                raise ValueError(f"{name!r} holds {x.dtype}, which has no mean: it cannot be in a secure sum")
            if x.numel() and float(x.abs().max()) > self.limit:
                raise ValueError(f"{name!r} changed by {float(x.abs().max()):.3g}, exchange.limit is {self.limit:g}")
        if not norm(update.delta) <= self.max_norm:
            raise ValueError(f"the update is {float(norm(update.delta)):.3g} long, exchange.max_norm {self.max_norm:g}")
        if update.weight > self.max_weight:
            raise ValueError(f"its weight is {update.weight:g}, exchange.max_weight is {self.max_weight}")

    def answer(self, job: Job, store: Store) -> bytes:
        session, (header, body) = Session.at(job, store), unframe(job.payload)
        if job.phase == "shares":
            session = replace(session.once(job), roster=dict(header["roster"]))
            self._check_crowd(job, session.roster)
            return session.kept(store).shares(store, self.threshold)
        if job.phase == "masked":
            session = replace(session.once(job, after="shares"), peers=header["peers"])
            self._check_crowd(job, session.peers, session.roster)
            return pack(Update(job.client, {MASKED: carried(self._masked(session.kept(store), store))}), _dense())
        if job.phase == "unmask":
            session = replace(session.once(job, after="masked"), packed=b"")
            self._check_crowd(job, header["alive"], session.peers)
            return session.kept(store).opened(store, header["alive"], body)
        raise ValueError(f"asked for {job.phase!r}, which is no message of a secure sum")

    def _check_crowd(self, job: Job, crowd: Collection[ClientId], of: Collection[ClientId] = ()) -> None:
        """Among too few, or others than before, nobody is hidden."""
        if len(set(crowd)) < self.threshold or job.client not in crowd or (of and not set(crowd) <= set(of)):
            raise ValueError(f"asked for {job.phase!r} among {sorted(crowd)}, of whom {self.threshold} must take part")

    def _masked(self, session: Session, store: Store) -> Integers:
        keys, me = session.keys(store), session.client
        values = integers(_plain(me, session.packed), self.bits, self.shift(len(session.roster)))
        values = values + mask(keys.own, len(values), self.bits)
        for other in session.peers:
            if other != me:
                key = agreed(keys.mask, bytes.fromhex(session.roster[other][1]), "mask", [me, other])
                values = _signed(values, mask(key, len(values), self.bits), me < other)
        return values

    def collect(self, engine: Engine, jobs: Sequence[Job], receive: Reception) -> Iterator[Update]:
        try:
            yield self._sum(Asking(engine, {job.client: job for job in jobs}, receive, self.threshold))
        except Unrecovered as error:
            receive.tell(f"{error}: nothing changes")

    def _sum(self, asking: "Asking") -> Update:
        roster = asking.ask("fit", {c: job.payload for c, job in asking.jobs.items()}, _public)
        everyone = frame({"roster": {c: one[:2] for c, one in roster.items()}}, b"")
        sealed = asking.ask("shares", dict.fromkeys(roster, everyone), _pieces(SEALED, len(roster)))
        peers = list(sealed)
        size = sum(prod(shape) for _, shape, _ in asking.receive.expected) + 1
        masked = asking.ask(
            "masked", dict.fromkeys(peers, frame({"peers": peers}, b"")), self._vector(size), size * self.bits // 8
        )
        alive = list(masked)
        places = {client: place for place, client in enumerate(roster)}
        letters = {c: frame({"alive": alive}, b"".join(sealed[p][places[c]] for p in peers)) for c in alive}
        opened = asking.ask("unmask", letters, _pieces(KEY, len(peers)))
        told = {
            p: joined({places[c]: opened[c][k] for c in list(opened)[: self.threshold]}) for k, p in enumerate(peers)
        }
        total = reduce(np.add, masked.values())
        for peer, secret in told.items():
            total = self._without(total, peer, secret, roster, alive)
        try:
            update = mean(total, self.shift(len(roster)), asking.receive.expected)
        except ValueError as error:
            raise Unrecovered(str(error)) from None
        for client in alive:
            asking.receive.counted(client, update.weight / len(alive))
        return update

    def _vector(self, size: int) -> Callable[[ClientId, bytes], Integers]:
        expected: Layout = [(MASKED, [size], f"int{self.bits}")]
        return lambda client, payload: read(unpack(client, payload, _dense(), expected).delta[MASKED])

    def _without(
        self,
        total: Integers,
        peer: ClientId,
        secret: bytes,
        roster: Mapping[ClientId, Sequence[str]],
        alive: Sequence[ClientId],
    ) -> Integers:
        """The sum without a client's own mask, or without what those who are alive agreed on with one who is not."""
        _, key, own = roster[peer]
        if (Secret(secret).commitment != own) if peer in alive else (public(secret).hex() != key):
            raise Unrecovered(f"the shares that were told for {peer!r} do not fit: somebody sent others")
        if peer in alive:
            return total - mask(secret, len(total), self.bits)
        for client in alive:
            common = agreed(secret, bytes.fromhex(roster[client][1]), "mask", [peer, client])
            total = _signed(total, mask(common, len(total), self.bits), client > peer)
        return total


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
            raise Unrecovered(f"{len(found)} clients answered {phase!r}, {self.threshold} are needed")
        return found


def _plain(client: ClientId, packed: bytes) -> Update:
    return unpack(client, packed, _dense(), layout_of(unframe(packed, nested=True)[1]))


def _dense() -> Codec:
    """What loses nothing."""
    codec: Codec = build("codec", "dense")
    return codec


def _signed(total: Integers, masked: Integers, plus: bool) -> Integers:
    return total + masked if plus else total - masked


def _public(client: ClientId, payload: bytes) -> tuple[str, str, str]:
    """Two public keys and the commitment to the client's own mask.

    Raises:
      ValueError: they are something else.
    """
    header, body = unframe(payload)
    if len(body) != 2 * KEY or not isinstance(header, dict) or not isinstance(header.get("own"), str):
        raise ValueError("no two public keys came")
    for key in (body[:KEY], body[KEY:]):
        agreed(os.urandom(KEY), key, "trial", [client])  # of a key of small order all others would choke
    return body[:KEY].hex(), body[KEY:].hex(), header["own"]


def _pieces(size: int, count: int) -> Callable[[ClientId, bytes], list[bytes]]:
    """A check for so many pieces of such a size."""

    def check(client: ClientId, payload: bytes) -> list[bytes]:
        body = unframe(payload)[1]
        if len(body) != size * count:
            raise ValueError(f"{len(body)} bytes came, not {count} times {size}")
        return [body[at : at + size] for at in range(0, len(body), size)]

    return check
