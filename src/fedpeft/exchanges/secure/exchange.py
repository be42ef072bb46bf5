"""Secure aggregation (Bonawitz et al., 2017, https://eprint.iacr.org/2017/281): the server learns
the sum alone."""

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import Any, ClassVar

import numpy as np

from fedpeft.core.conversation import DELTA, Answer, Ask, Message
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Handler
from fedpeft.core.interfaces import Store
from fedpeft.core.rounds import Round
from fedpeft.core.secrets import Secret
from fedpeft.core.signatures import public_line, signature, verify
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId, Job
from fedpeft.errors import PlanError, WireError
from fedpeft.exchanges.secure.client import Session
from fedpeft.exchanges.secure.hidden import (
    HIDDEN_FROM,
    check_bounds,
    check_hidden,
    check_lines,
    check_roster,
    check_weights,
    heard,
    lossless,
    read_plain,
    sealed_of,
)
from fedpeft.exchanges.secure.masks import (
    MASKED,
    Integers,
    add_mask,
    as_signed,
    check_room,
    integers,
    mask,
    mean,
    read,
    shift,
)
from fedpeft.exchanges.secure.secret_sharing import (
    KEY,
    SEALED,
    agree_on_key,
    check_signed,
    one_story,
    public,
    require,
)
from fedpeft.exchanges.secure.server import (
    Asking,
    Unrecovered,
    ask_all,
    bytes_layout,
    bytes_message,
    bytes_of,
    check_unread,
    pieces,
    public_keys,
    readable,
    secrets_of,
)
from fedpeft.wire.payloads import encode_answer, message_of


@dataclass(frozen=True)
class Secure:
    """Four messages to each client and four back, or five:

        fit      trains; gives two public keys
        shares   gets all keys; gives of two secrets a share for each client, sealed for it
        masked   gets who shared; gives q(w·Δ), w + PRG(own) ± PRG(agreed with each other client),
                 modulo 2^bits
        story    only with `keys`: gets who is alive; signs that and all that it was told before
        unmask   gets who is alive, and with `keys` `threshold` signatures of the same story; gives
                 of those who are alive the shares of `own`, of those who are not the shares of
                 their masks

    What is added up is exact: the mean is that of the rounded updates. A client that drops out
    costs its own update; while `threshold` clients answer, the sum of the others is recovered. The
    server is trusted to follow the protocol, not to close its eyes; up to `threshold` − 1 clients
    may tell it all they know. With `keys` it may also tell clients different things; of a crowd of
    n fewer than 2·threshold − n may then tell it what they know.

    Attributes:
      threshold: of clients that must answer each message; fewer learn nothing, and the round
        changes nothing.
      limit: the largest |entry| of an update; beyond it a client fails by name.
      max_norm: the longest update that a client sends, since the server cannot see how long it is.
      max_weight: the largest weight of a client: 1 with uniform weights.
      bits: k, 32 or 64, of an entry on the wire.
      keys: a line `ed25519:<hex> <client>`, as `fedpeft keygen` writes it, for every client; none
        in simulations.

    Raises:
      ValueError: a value out of range.
    """

    threshold: int = 6
    limit: float = 8.0
    max_norm: float = float("inf")
    max_weight: int = 1
    bits: int = 32
    keys: tuple[str, ...] = ()
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SUM_ONLY})
    forbids: ClassVar[Mapping[Fact, str]] = HIDDEN_FROM

    def __post_init__(self) -> None:
        if self.threshold < 2:
            raise ValueError("threshold must be at least 2")
        check_bounds(self.limit, self.max_norm, self.max_weight, self.bits)
        check_lines(self.keys)

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for a threshold that two crowds have, keys that are not the nodes',
        weights too large, or a bound that nobody can apply."""
        check_weights(plan, self.max_weight)
        if not plan.cohort < 2 * self.threshold <= 2 * plan.cohort:
            raise PlanError(
                f"exchange.threshold = {self.threshold} must be more than half of cohort = "
                f"{plan.cohort}, so that no two groups of clients can tell both secrets of "
                "another, and at most all; two thirds are usual"
            )
        odd = set(plan.nodes.names or ()) ^ set(self.signers)
        if plan.nodes.names and self.signers and odd:
            raise PlanError(
                "nodes and exchange.keys must name the same clients; only one of them has "
                f"{sorted(odd)}"
            )
        check_room(self.bits, plan.cohort, self.limit, self.max_weight)

    @property
    def signers(self) -> Mapping[ClientId, str]:
        return {client: key for key, client in map(public_line, self.keys)}

    @property
    def sums(self) -> bool:
        return True

    def shift(self, clients: int) -> int:
        """f for so many clients."""
        return shift(self.bits, clients, self.max_weight * self.limit)

    @property
    def remembers_clients(self) -> bool:
        """Clients keep an update until it is masked."""
        return True

    def handlers(self) -> Mapping[str, Handler]:
        """The client's side of every message after the first."""
        phases = {"shares": self._shares, "masked": self._mask, "unmask": self._unmask}
        return {**phases, "story": self._sign} if self.signers else phases

    def receives(self, phase: str, layout: Mapping[str, Layout]) -> Mapping[str, Layout] | None:
        """Each message is checked where it is answered."""
        return None

    def seal(self, client: Any, packed: bytes) -> bytes:
        """The first answer: instead of the update, which waits here, two public keys."""
        job, store = client.job, client.store
        update = read_plain(job.client, packed)
        check_hidden(update, self.limit, self.max_norm, self.max_weight)
        opening = Session.begun(job, packed).kept(store).opening(store)
        return encode_answer(opening, lossless())

    def _shares(self, client: Any, message: Message) -> Message:
        job, store = client.job, client.store
        roster = heard(job.phase, message)["roster"]
        session = Session.at(job, store).once(job)
        self._crowd(job, roster)
        check_roster(roster)
        for name, (cipher, masks, *told) in roster.items():
            keys = bytes.fromhex(cipher + masks)
            check_signed(job.run, job.round, name, keys, "".join(told), self.signers)
        return session.enrolled(roster, store).kept(store).shares(store, self.threshold)

    def _mask(self, client: Any, message: Message) -> Message:
        job, store = client.job, client.store
        session = Session.at(job, store).once(job, after="shares")
        peers = self._crowd(job, heard(job.phase, message)["peers"], session.roster)
        session = replace(session, peers=peers).kept(store)
        return Message({MASKED: {MASKED: as_signed(self._masked(session, store))}})

    def _sign(self, client: Any, message: Message) -> Message:
        job, store = client.job, client.store
        session = Session.at(job, store).once(job, after="masked")
        story = session.story(self._crowd(job, heard(job.phase, message)["alive"], session.peers))
        session.kept(store)
        return Message({}, {"signature": signature(store.signer(job.client) or b"", story)})

    def _unmask(self, client: Any, message: Message) -> Message:
        job, store, values = client.job, client.store, heard(client.job.phase, message)
        session = Session.at(job, store).once(job, after="story" if self.signers else "masked")
        alive = self._crowd(job, values["alive"], session.peers)
        self._check_story(session.story(alive), values.get("signatures"), alive)
        sealed = sealed_of(message, len(session.peers))
        return replace(session, packed=b"").kept(store).opened(store, alive, sealed)

    def _crowd(self, job: Job, crowd: object, of: Collection[ClientId] = ()) -> list[ClientId]:
        """The names in it.

        Raises:
          WireError: too few or others than before, among whom nobody is hidden; as many as make
            two crowds; or a name more than once, which would take a mask off again.
        """
        names = (
            [name for name in crowd if isinstance(name, str)]
            if isinstance(crowd, list | dict)
            else []
        )
        most = 2 * self.threshold - 1
        if (
            not self.threshold <= len(names) <= most
            or len(set(names)) < len(names)
            or job.client not in names
        ):
            raise WireError(
                f"asked for {job.phase!r} among {names[:most]}: {self.threshold} to {most} clients "
                "must take part, "
                "this one too, each once"
            )
        if of and not set(names) <= set(of):
            raise WireError(
                f"asked for {job.phase!r} among {sorted(set(names) - set(of))}, who did not take "
                "part before"
            )
        return names

    def _check_story(self, story: bytes, signatures: object, alive: Collection[ClientId]) -> None:
        """Raises WireError where clients sign and fewer than `threshold` signed what this one was
        told.

        A crowd has less than twice as many, so that no other story about the same keys has as many
        signatures.
        """
        if not self.signers:
            return
        told = signatures if isinstance(signatures, dict) else {}
        good = [
            c for c in alive if c in self.signers and verify(self.signers[c], told.get(c), story)
        ]
        if len(good) < self.threshold:
            raise WireError(
                f"{len(good)} clients signed the story of this round that came here, "
                f"{self.threshold} must"
            )

    def _masked(self, session: Session, store: Store) -> Integers:
        keys, me = session.keys(store), session.client
        values = integers(
            read_plain(me, session.packed), self.bits, self.shift(len(session.roster))
        )
        values = values + mask(keys.own, len(values), self.bits)
        for other in session.peers:
            if other != me:
                key = agree_on_key(
                    keys.mask, bytes.fromhex(session.roster[other][1]), "mask", [me, other]
                )
                values = add_mask(values, mask(key, len(values), self.bits), me < other)
        return values

    def collect(self, ask: Ask, round: Round) -> Generator[Ask, Iterator[Answer], Iterator[Answer]]:
        """The sum of the updates as one answer; none where it stays hidden."""
        require()
        try:
            return iter([(yield from self._sum(ask, round))])
        except Unrecovered as error:
            round.report("note", str(error))
            return iter(())

    def _sum(self, ask: Ask, round: Round) -> Generator[Ask, Iterator[Answer], Answer]:
        asking = Asking(round.run, round, self.threshold, self.signers)
        layout = next(iter(ask.expects(client)[DELTA] for client in ask.to), [])
        roster = yield from self._roster(ask, asking)
        everyone = Message({}, {"roster": {c: keys for c, (_, keys) in roster.items()}})
        answers = yield ask_all(
            "shares", dict.fromkeys(roster, everyone), bytes_layout(sealed=SEALED * len(roster))
        )
        sealed = {a.client: pieces(bytes_of(a.message, "sealed"), SEALED) for a in answers}
        asking.enough("shares", sealed)
        masked = yield from self._masked_updates(list(sealed), layout, asking)
        alive = list(masked)
        public_of = {c: keys for c, (_, keys) in roster.items()}
        head = yield from self._agreed(asking, public_of, list(sealed), alive)
        told = yield from self._secrets(asking, head, roster, sealed, alive)
        total = reduce(np.add, masked.values())
        for peer, secret in told.items():
            total = self._without(total, peer, secret, roster, alive)
        try:
            update = mean(total, self.shift(len(roster)), layout)
        except ValueError as error:
            raise Unrecovered(str(error)) from None
        return Answer("", message_of(update), members=tuple(alive))

    def _roster(
        self, ask: Ask, asking: Asking
    ) -> Generator[Ask, Iterator[Answer], dict[ClientId, tuple[str, list[str]]]]:
        """By client that has trained, its commitment and its public keys."""
        keys = replace(
            ask,
            expects=lambda _: bytes_layout(keys=2 * KEY),
            check=asking.check_keys,
            length=None,
            weight=None,
            updates=False,
        )
        signed = bool(self.signers)
        answers = yield keys
        roster = {a.client: public_keys(a.message, signed) for a in answers}
        asking.enough("fit", roster)
        return roster

    def _masked_updates(
        self, peers: Sequence[ClientId], layout: Layout, asking: Asking
    ) -> Generator[Ask, Iterator[Answer], dict[ClientId, Integers]]:
        size = sum(prod(shape) for _, shape, _ in layout) + 1
        expected: dict[str, Layout] = {MASKED: [(MASKED, [size], f"int{self.bits}")]}
        question = dict.fromkeys(peers, Message({}, {"peers": list(peers)}))
        answers = yield ask_all("masked", question, expected)
        masked = {a.client: read(a.message.tensors[MASKED][MASKED]) for a in answers}
        asking.enough("masked", masked)
        return masked

    def _agreed(
        self,
        asking: Asking,
        roster: Mapping[ClientId, Sequence[str]],
        peers: Sequence[ClientId],
        alive: Sequence[ClientId],
    ) -> Generator[Ask, Iterator[Answer], dict[str, Any]]:
        """What clients must be told before they unmask; where they sign, with who signed it."""
        head: dict[str, Any] = {"alive": list(alive)}
        if not self.signers:
            return head
        story = one_story(asking.run, asking.round.index, roster, peers, alive)

        def check(client: ClientId, message: Message) -> None:
            if not verify(self.signers[client], message.values.get("signature"), story):
                raise ValueError("it did not sign what it was told")

        answers = yield ask_all("story", dict.fromkeys(alive, Message({}, head)), {}, check)
        signatures = {a.client: str(a.message.values["signature"]) for a in answers}
        asking.enough("story", signatures)
        return {**head, "signatures": signatures}

    def _secrets(
        self,
        asking: Asking,
        head: Mapping[str, Any],
        roster: Mapping[ClientId, Any],
        sealed: Mapping[ClientId, Sequence[bytes]],
        alive: Sequence[ClientId],
    ) -> Generator[Ask, Iterator[Answer], dict[ClientId, bytes]]:
        """Each peer's secret, joined from the shares that those who are alive opened."""
        peers = list(sealed)
        places = {client: place for place, client in enumerate(roster)}
        question = {
            c: bytes_message(head, sealed=b"".join(sealed[p][places[c]] for p in peers))
            for c in head.get("signatures", alive)
        }
        expected = bytes_layout(shares=KEY * len(peers))
        answers = yield ask_all("unmask", question, expected, check_unread)
        opened = {a.client: readable(a.message, peers) for a in answers}
        asking.enough("unmask", opened)
        return secrets_of(asking, peers, places, opened)

    def _without(
        self,
        total: Integers,
        peer: ClientId,
        secret: bytes,
        roster: Mapping[ClientId, tuple[str, Sequence[str]]],
        alive: Sequence[ClientId],
    ) -> Integers:
        """The sum without a client's own mask, or without what those who are alive agreed on with
        one who is not."""
        own, keys = roster[peer]
        if (
            (Secret(secret).commitment != own)
            if peer in alive
            else (public(secret).hex() != keys[1])
        ):
            raise Unrecovered(
                f"the shares that were told for {peer!r} do not fit: somebody sent others"
            )
        if peer in alive:
            return total - mask(secret, len(total), self.bits)
        for client in alive:
            common = agree_on_key(
                secret, bytes.fromhex(roster[client][1][1]), "mask", [peer, client]
            )
            total = add_mask(total, mask(common, len(total), self.bits), client > peer)
        return total
