"""Secure aggregation (Bonawitz et al., 2017, https://eprint.iacr.org/2017/281): the server learns the sum alone."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod

import numpy as np

from fedpeft.core.interfaces import Codec, Engine, Reception, Store
from fedpeft.core.secrets import Secret
from fedpeft.core.signing import public_line
from fedpeft.core.tensors import Layout, norm
from fedpeft.core.types import ClientId, Job, Update
from fedpeft.core.wire import frame, layout_of, pack, unframe, unpack
from fedpeft.exchanges.asking import Asking, Unrecovered, pieces, public_keys, readable, secrets_of
from fedpeft.exchanges.masking import Integers, carried, integers, mask, mean, read, shift
from fedpeft.exchanges.session import Session
from fedpeft.exchanges.sharing import SEALED, agreed, check_signed, public, require
from fedpeft.registry import build

MASKED = "masked"


@dataclass(frozen=True)
class Secure:
    """Four messages to each client and four back:

        fit      trains; gives two public keys
        shares   gets all keys; gives of two secrets a share for each client, sealed for it
        masked   gets who shared; gives q(w·Δ), w + PRG(own) ± PRG(agreed with each other client), modulo 2^bits
        unmask   gets who is alive; gives of those the shares of `own`, of those who are not the shares of their masks

    What is added up is exact: the mean is that of the rounded updates. A client that drops out costs its own update;
    while `threshold` clients answer, the sum of the others is recovered. The server is trusted to follow the protocol,
    not to close its eyes; up to `threshold` − 1 clients may tell it all they know. That it passes on keys unchanged is
    trusted too, unless `keys` says who signs: then clients take part with no others.

    Attributes:
      threshold: of clients that must answer each message; fewer learn nothing, and the round changes nothing.
      limit: the largest |entry| of an update; beyond it a client fails by name.
      max_norm: the longest update that a client sends, since the server cannot see how long it is.
      max_weight: the largest weight of a client: 1 with uniform weights.
      bits: k, 32 or 64, of an entry on the wire.
      keys: a line `ed25519:<hex> <client>`, as `fedpeft keygen` writes it, for every client; none in simulations.

    Raises:
      ValueError: a value out of range.
    """

    threshold: int = 6
    limit: float = 8.0
    max_norm: float = float("inf")
    max_weight: int = 1
    bits: int = 32
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.threshold < 2 or self.max_weight < 1 or not (self.limit > 0 and self.max_norm > 0):
            raise ValueError("threshold must be at least 2, max_weight at least 1, limit and max_norm positive")
        if self.bits not in (32, 64):
            raise ValueError(f"bits must be 32 or 64, got {self.bits}")
        if len(self.signers) < len(self.keys) or "" in self.signers or len({*self.signers.values()}) < len(self.keys):
            raise ValueError("keys must have a line for each client, a key of its own and its name behind it")

    @property
    def signers(self) -> Mapping[ClientId, str]:
        return {client: key for key, client in map(public_line, self.keys)}

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
            for client, (cipher, masks, *told) in session.roster.items():
                check_signed(job, client, bytes.fromhex(cipher + masks), "".join(told), self.signers)
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
        require()
        try:
            yield self._sum(Asking(engine, {job.client: job for job in jobs}, receive, self.threshold))
        except Unrecovered as error:
            receive.tell(f"{error}: nothing changes")

    def _sum(self, asking: Asking) -> Update:
        check = public_keys(asking.jobs, self.signers)
        roster = asking.ask("fit", {c: job.payload for c, job in asking.jobs.items()}, check)
        everyone = frame({"roster": {c: keys for c, (_, keys) in roster.items()}}, b"")
        sealed = asking.ask("shares", dict.fromkeys(roster, everyone), pieces(SEALED, len(roster)))
        peers = list(sealed)
        size = sum(prod(shape) for _, shape, _ in asking.receive.expected) + 1
        masked = asking.ask(
            "masked", dict.fromkeys(peers, frame({"peers": peers}, b"")), self._vector(size), size * self.bits // 8
        )
        alive = list(masked)
        places = {client: place for place, client in enumerate(roster)}
        letters = {c: frame({"alive": alive}, b"".join(sealed[p][places[c]] for p in peers)) for c in alive}
        told = secrets_of(asking, peers, places, asking.ask("unmask", letters, readable(peers)))
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
        roster: Mapping[ClientId, tuple[str, Sequence[str]]],
        alive: Sequence[ClientId],
    ) -> Integers:
        """The sum without a client's own mask, or without what those who are alive agreed on with one who is not."""
        own, keys = roster[peer]
        if (Secret(secret).commitment != own) if peer in alive else (public(secret).hex() != keys[1]):
            raise Unrecovered(f"the shares that were told for {peer!r} do not fit: somebody sent others")
        if peer in alive:
            return total - mask(secret, len(total), self.bits)
        for client in alive:
            common = agreed(secret, bytes.fromhex(roster[client][1][1]), "mask", [peer, client])
            total = _signed(total, mask(common, len(total), self.bits), client > peer)
        return total


def _plain(client: ClientId, packed: bytes) -> Update:
    return unpack(client, packed, _dense(), layout_of(unframe(packed, nested=True)[1]))


def _dense() -> Codec:
    """What loses nothing."""
    codec: Codec = build("codec", "dense")
    return codec


def _signed(total: Integers, masked: Integers, plus: bool) -> Integers:
    return total + masked if plus else total - masked
