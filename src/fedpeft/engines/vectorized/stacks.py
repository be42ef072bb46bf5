"""Clients in training side by side: who can take the next step together, and the stacks in which
they lie."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fedpeft.compute.device_memory import available, measure_activations, out_of_memory
from fedpeft.compute.vectorized import Divided, Draws, StackedObjective
from fedpeft.core.tensors import drop_prefixes
from fedpeft.core.types import Batch, Carry, Tensors
from fedpeft.rounds.client import ClientRound, Trained
from fedpeft.rounds.site import Site

SHARE = 0.5
"""Of the memory that is there, what a step may take."""
PEAK = 3.0
"""A step's peak over what its forward pass keeps: gradients come on top. Measured: 2.3 to 2.4."""
Kind = tuple[Any, ...]


@dataclass(eq=False)
class Trainee:
    """A client in the middle of its training.

    Attributes:
      stack, row: where its carry lies; the row is None while it lies alone.
      error: what went wrong with it alone.
    """

    opened: ClientRound
    shapes: Kind
    received: Tensors
    memory: Tensors
    batches: Iterator[Batch]
    dropout: torch.Generator
    stack: Carry = field(default_factory=dict)
    row: int | None = None
    batch: Batch = field(default_factory=dict)
    error: Exception | None = None

    @property
    def carry(self) -> Carry:
        row = self.row
        return self.stack if row is None else _map_carry(lambda x: x[row], self.stack)


@dataclass(frozen=True)
class Beginning:
    """How clients begin that received the same and remember nothing.

    Attributes:
      start: the tensors that came.
      place: the round, the number of rounds, and the client's number of steps.
    """

    start: Tensors
    place: tuple[int, int, int]
    received: Tensors
    carry: Carry

    def fits(self, start: Tensors, place: tuple[int, int, int]) -> bool:
        """Whether another client begins so."""
        # By identity: the worker gives all who received the same bytes the same tensors.
        return start is self.start and place == self.place


@dataclass(eq=False)
class Stacks:
    """Takes clients through their steps, each with its own batches in its own order.

    In each turn every client that is not done takes one step. Those whose batches have the same
    shapes take it together; short batches are filled up with rows that do not count, to at most
    twice their length. So a client that is done leaves its stack, and nothing of it moves any more.

    Attributes:
      limits: by kind of batch, how many clients may take a step at once; measured once, halved
        where it was too many.
      why: what a stack could not do, the last time.
      last: how the last client began, if others may begin alike.
    """

    site: Site
    limits: dict[Kind, int] = field(default_factory=dict)
    why: str = ""
    last: "Beginning | None" = None

    def begin(self, opened: ClientRound) -> Trainee:
        """A client before its first step."""
        local, site, context = self.site.plan.local, self.site, opened.context
        memory = {n: x.to(site.device) for n, x in opened.own.items()}
        received, carry = self._begin(opened, memory)
        batches = iter(local.batches(site.data, opened.start, context))
        dropout = torch.Generator(site.device).manual_seed(opened.dropout)
        shapes = tuple(x.shape for x in received.values())
        return Trainee(opened, shapes, received, memory, batches, dropout, carry)

    def _begin(self, opened: ClientRound, memory: Tensors) -> tuple[Tensors, Carry]:
        """What a client received, on the device, and what it carries into its first step; one
        object for clients that begin alike."""
        local, context = self.site.plan.local, opened.context
        alike = not memory and getattr(local, "begins_alike", False)
        place = (context.round, context.rounds, context.steps)
        if alike and self.last is not None and self.last.fits(opened.start, place):
            return self.last.received, self.last.carry
        received = {n: x.to(self.site.device) for n, x in opened.start.items()}
        carry = local.begin(received, memory, context)
        self.last = Beginning(opened.start, place, received, carry) if alike else None
        return received, carry

    def train(self, trainees: Sequence[Trainee]) -> list[Trainee]:
        """Take all to their ends; those whom a stack could not hold come back, to be trained from
        their beginning."""
        self.site.model.train()
        active, left = list(trainees), []
        while active:
            active, out = self.turn(active)
            left += out
        return left

    def turn(self, trainees: Sequence[Trainee]) -> tuple[list[Trainee], list[Trainee]]:
        """One step of each: those who took it, and those who could not in a stack; who is done is
        in neither."""
        active = [one for one in trainees if self.fetch(one)]
        if active and len(active) < len(trainees):
            # Or one would hold the whole of its last stack.
            for one in set(trainees).difference(active):
                one.stack, one.row = _map_carry(Tensor.clone, one.carry), None
        kinds: dict[tuple[Kind, int], list[Trainee]] = {}
        for one in active:  # who hold other tensors beside, take other steps
            kinds.setdefault(
                ((*_kind(one.batch), one.shapes), id(one.opened.objective)), []
            ).append(one)
        out = {one for (kind, _), group in kinds.items() for one in self._step(kind, group)}
        return [one for one in active if one not in out], [one for one in active if one in out]

    def finish(self, one: Trainee) -> Trained:
        """What came of it."""
        if one.error is not None:
            raise one.error
        return self.site.plan.local.finish(one.carry, one.received, one.memory)

    def together(self, trainees: Sequence[Trainee]) -> dict[Trainee, Trained]:
        """What came of those who took their last step in one stack, without a call for each; of
        others nothing.

        Only of clients that began alike and remember nothing, so that their part is the stack.
        """
        first = trainees[0] if trainees else None
        if first is None or first.row is None or self.site.plan.local_shares:
            return {}
        alike = [
            one
            for one in trainees
            if one.stack is first.stack
            and not (one.memory or one.error)
            and all(x is first.received.get(name) for name, x in one.received.items())
        ]
        finish = self.site.plan.local.finish
        try:
            delta, memory, totals = vmap(lambda carry: finish(carry, first.received, {}))(
                first.stack
            )
        except Exception:
            # Of a part that a user wrote, which goes wrong for each as well, or works for each
            # alone.
            return {}
        return {
            one: (_row(delta, one.row), _row(memory, one.row), _row(totals, one.row))
            for one in alike
        }

    def fetch(self, one: Trainee) -> bool:
        """Draw the batch of its next step, if there is one."""
        try:
            batch = next(one.batches, None)
        # A task that a user wrote may raise anything, and it is this client's.
        except Exception as error:
            one.error, batch = error, None
        if batch is not None:
            one.batch = self.site.on_device(batch)
        return batch is not None

    def _step(self, kind: Kind, group: Sequence[Trainee]) -> list[Trainee]:
        """One step of a group, in as many parts as memory asks for; who could not take it comes
        back."""
        waiting, out = [list(group)], []
        while waiting:
            part = waiting.pop()
            before = [one.dropout.get_state() for one in part]
            try:
                together = self._together(kind, part[0])
                waiting += [part[together:]] if len(part) > together else []
                part = part[:together]
                self._advance(part)
                continue
            except Divided as divided:
                waiting += divided.parts(part)
            except Exception as error:
                if out_of_memory(error) and len(part) > 1:
                    self.limits[kind] = len(part) // 2
                    waiting.append(part)
                else:
                    self.why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                    out += part
            # A step that is taken again must draw the dropout that it would have drawn the first
            # time.
            for one, state in zip(part, before, strict=False):
                one.dropout.set_state(state)
        return out

    def _together(self, kind: Kind, one: Trainee) -> int:
        """How many may take a step of this kind at once."""
        if kind not in self.limits:
            params = drop_prefixes(self.site.plan.local_shares, one.received)
            row = measure_activations(
                one.opened.objective, self.site.model, params, one.batch
            ) / len(one.batch["mask"])
            carry = sum(x.nbytes for group in one.carry.values() for x in group.values())
            each = PEAK * row * 2 ** kind[0] + 3 * carry
            self.limits[kind] = max(1, int(SHARE * available(self.site.device) / each))
        return self.limits[kind]

    def _advance(self, part: Sequence[Trainee]) -> None:
        rows = [one.batch["mask"].shape[0] for one in part]
        batch = _stack_batches([one.batch for one in part], max(rows))
        losses = StackedObjective(
            part[0].opened.objective, Draws([one.dropout for one in part], rows, max(rows))
        )
        # `Draws` has each client's own dropout. Any other random number would be drawn for all at
        # once or in another order than alone, so it is an error and ends the stack.
        step = self.site.plan.local.step
        with torch.no_grad():
            stack = vmap(lambda carry, mine: step(carry, mine, losses), randomness="error")(
                _gather(part), batch
            )
        for row, one in enumerate(part):
            one.stack, one.row, one.batch = stack, row, {}


def _kind(batch: Batch) -> Kind:
    """What batches have in common that can be stacked: their shapes; of their lengths, the next
    power of two."""
    rows = batch["mask"].shape[0]
    if all(x.ndim and x.shape[0] == rows for x in batch.values()):
        return (rows - 1).bit_length(), *((name, x.shape[1:], x.dtype) for name, x in batch.items())
    return rows.bit_length(), *((name, x.shape, x.dtype) for name, x in batch.items())


def _stack_batches(batches: Sequence[Batch], rows: int) -> Batch:
    """The batches stacked; a short one repeats its last row, with a mask of 0."""

    def fill(name: str, x: Tensor) -> Tensor:
        if not x.ndim or x.shape[0] == rows:
            return x
        more = (
            x.new_zeros(rows - len(x))
            if name == "mask"
            else x[-1:].expand(rows - len(x), *x.shape[1:])
        )
        return torch.cat([x, more])

    return {
        name: torch.stack([fill(name, batch[name]) for batch in batches]) for name in batches[0]
    }


def _gather(part: Sequence[Trainee]) -> Carry:
    """The carries as one stack, which is there already where nobody left or came."""
    first, rows = part[0].stack, [one.row for one in part]
    if all(one.stack is first for one in part):
        count = len(part)
        if not any(row is not None for row in rows):  # they begin alike
            return _map_carry(lambda x: x.expand(count, *x.shape).contiguous(), first)
        if rows == list(range(count)) and count == _count_rows(first):
            return first
    carries = [one.carry for one in part]
    return {
        group: {name: torch.stack([carry[group][name] for carry in carries]) for name in tensors}
        for group, tensors in first.items()
    }


def _count_rows(stack: Carry) -> int:
    """How many clients lie in a stack."""
    return next(len(x) for group in stack.values() for x in group.values())


def _row(stack: Tensors, row: int | None) -> Tensors:
    return {name: x[row] for name, x in stack.items()}


def _map_carry(change: Callable[[Tensor], Tensor], carry: Mapping[str, Tensors]) -> Carry:
    return {
        group: {name: change(x) for name, x in tensors.items()} for group, tensors in carry.items()
    }
