"""A secure sum of one message: every owner of a roster hands in one masked file (the first half of
Bonawitz et al., 2017, https://eprint.iacr.org/2017/281, section 4.0.1; without its recovery)."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import Any, ClassVar

import numpy as np

from fedpeft.core.conversation import DELTA, Answer, Ask, Expected, Message
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Store
from fedpeft.core.rounds import Round
from fedpeft.core.signatures import public_line
from fedpeft.core.tensors import Layout
from fedpeft.core.types import ClientId
from fedpeft.errors import PlanError
from fedpeft.exchanges.secure import hidden
from fedpeft.exchanges.secure.masks import (
    MASKED,
    Integers,
    as_signed,
    check_room,
    integers,
    mean,
    read,
    shift,
)
from fedpeft.exchanges.secure.roster import LEAST, Roster
from fedpeft.wire.payloads import encode_answer, message_of


@dataclass(frozen=True)
class MaskedFiles:
    """Each owner sends q(w·Δ), w ± PRG(agreed with each other owner), modulo 2^bits, once.

    The sum of all files of the roster is that of the updates; of fewer files it is noise. A file
    that is missing is not made up for: whoever can take a missing owner's masks away can take them
    away from its file too, if it did send one (docs/security.md). An owner that will not train
    sends a file that adds nothing.

    Attributes:
      least: of owners in a roster, and with uniform weights of updates in a sum.
      limit: the largest |entry| of an update; beyond it an owner sends nothing.
      max_norm: the longest update that an owner sends.
      max_weight: the largest weight of an owner: 1 with uniform weights.
      bits: k, 32 or 64, of an entry in a file.
      keys: a line `ed25519:<hex> <owner>`, as `fedpeft keygen` writes it, for every owner; without
        them owners trust the server for who the others are.

    Raises:
      ValueError: a value out of range.
    """

    least: int = LEAST
    limit: float = 8.0
    max_norm: float = float("inf")
    max_weight: int = 1
    bits: int = 32
    keys: tuple[str, ...] = ()
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.SUM_ONLY})
    forbids: ClassVar[Mapping[Fact, str]] = hidden.HIDDEN_FROM

    def __post_init__(self) -> None:
        if self.least < LEAST:
            raise ValueError(
                f"least must be at least {LEAST}, got {self.least}: an owner that knows one of two "
                "terms knows the other from their sum"
            )
        hidden.check_bounds(self.limit, self.max_norm, self.max_weight, self.bits)
        hidden.check_lines(self.keys)

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for weights too large, or a bound that nobody can apply."""
        hidden.check_weights(plan, self.max_weight)
        self.check_count(max(plan.cohort, self.least))

    def check_run(self) -> None:
        """Raises PlanError, as clients that are asked over a connection have no roster."""
        raise PlanError(
            'exchange = "masked_files" is of files that owners hand in: `fedpeft invite`. For a '
            'run set exchange = "secure", which asks each client four times'
        )

    def check_count(self, owners: int) -> None:
        """Raises PlanError where the sum of so many owners could overflow."""
        check_room(self.bits, owners, self.limit, self.max_weight)

    @property
    def signers(self) -> Mapping[ClientId, str]:
        return {client: key for key, client in map(public_line, self.keys)}

    @property
    def sums(self) -> bool:
        return True

    def seal(self, client: Any, packed: bytes) -> bytes:
        """The file's content: the masked update.

        Raises:
          ValueError: the client's store has no roster, or the update is out of bounds.
        """
        me, store = client.job.client, client.store
        roster = Roster.of_note(store.note(me))
        update = hidden.read_plain(me, packed)
        hidden.check_hidden(update, self.limit, self.max_norm, self.max_weight)
        by = shift(self.bits, len(roster.keys), self.max_weight * self.limit)
        return self._encoded(integers(update, self.bits, by), roster, me, store)

    def nothing(self, layout: Layout, roster: Roster, me: ClientId, store: Store) -> bytes:
        """The content of a file that adds no update and no weight to the sum."""
        values = np.zeros(_entries(layout), f"u{self.bits // 8}")
        return self._encoded(values, roster, me, store)

    def _encoded(self, values: Integers, roster: Roster, me: ClientId, store: Store) -> bytes:
        masked = roster.masked(values, me, masking_key(store, me), self.bits)
        message = Message({MASKED: {MASKED: as_signed(masked)}}, {"clients": len(roster.keys)})
        return encode_answer(message, hidden.lossless())

    def expected(self, layout: Layout) -> Expected:
        """The layout of a masked file, of the update's."""
        return {MASKED: [(MASKED, [_entries(layout)], f"int{self.bits}")]}

    def collect(self, ask: Ask, round: Round) -> Generator[Ask, Iterator[Answer], Iterator[Answer]]:
        """The sum of the updates as one answer; none where a file of the roster is missing."""
        layout = next(iter(ask.expects(client)[DELTA] for client in ask.to), [])
        expected = self.expected(layout)
        # A masked sum shows neither how long it is nor what it counts.
        masked = replace(ask, expects=lambda _: expected, length=None, weight=None, updates=False)
        answers = list((yield masked))
        try:
            return iter([self._sum(answers, layout, round.plan.weighting == "uniform")])
        except ValueError as error:
            round.report("note", str(error))
            return iter(())

    def _sum(self, answers: Sequence[Answer], layout: Layout, uniform: bool) -> Answer:
        owners = [answer.message.values.get("clients") for answer in answers]
        if set(owners) != {len(answers)} or len(answers) < self.least:
            raise ValueError(
                f"{len(answers)} files came of rosters of {sorted(set(map(str, owners)))} owners: "
                "without all files of one roster the sum is noise"
            )
        total = reduce(np.add, (read(a.message.tensors[MASKED][MASKED]) for a in answers))
        by = shift(self.bits, len(answers), self.max_weight * self.limit)
        update = mean(total, by, layout)
        if uniform and not self.least <= update.weight <= len(answers):
            raise ValueError(
                f"the files add up to {update.weight:g} updates, and exchange.least is "
                f"{self.least} of {len(answers)}: too many owners withdrew, or a file is not what "
                "it says"
            )
        return Answer("", message_of(update), members=tuple(a.client for a in answers))


def masking_key(store: Store, owner: ClientId) -> bytes:
    """An owner's X25519 key of the one study that the store is of."""
    return store.secret(owner).at("masked file").root


def _entries(layout: Layout) -> int:
    """All entries of an update, and its weight."""
    return sum(prod(shape) for _, shape, _ in layout) + 1
