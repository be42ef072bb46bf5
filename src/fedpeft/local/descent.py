"""A client's training: epochs of mini-batch descent from what it received (arXiv:1602.05629,
ClientUpdate).

An optimizer, a correction and terms of the loss are its parts, so FedProx with AdamW is a matter of
two keys.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil, pi
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedpeft.compute.objective import PRECISIONS
from fedpeft.core.facts import Fact
from fedpeft.core.interfaces import Added, Augment, Correction, Data, LossFn, Optimizer, Term
from fedpeft.core.outputs import CARRIED
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import (
    add_prefix,
    drop_prefixes,
    map_tensors,
    move_to,
    sub,
    take_prefix,
    zeros_like,
)
from fedpeft.core.types import Batch, Carry, Context, Event, Tensors
from fedpeft.errors import unknown
from fedpeft.registry import part, parts, unwritten

SCHEDULES = ("constant", "linear", "cosine")
KEPT = "optimizer"
"""The prefix in a client's memory of what its optimizer remembers."""
RECEIVED, PREVIOUS = "received", "previous"
"""The models that a term may compare with; a client's memory has the second one under its name."""
OWN = (KEPT, PREVIOUS)
"""What in a client's memory is not its correction's."""
PROBE = "probe"
"""A number whose gradient is always 1. The way it goes is what a correction divides by to tell the
mean gradient from a delta: K·η for K plain steps, and rightly more with momentum, where the plain
sum of rates would make SCAFFOLD's control variates up to 1 / (1 − μ) times too large. Only a
correction that shares something is told; others get NaN."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """`epochs` passes in batches of `batch_size`; the optimizer is fresh for each client and round,
    unless `restart_schedule` says otherwise.

    Attributes:
      epochs: passes over the client's examples in a round.
      batch_size: examples of a step; the last one of a pass may have fewer.
      lr: the rate at its highest, in units of the optimizer.
      schedule: how it falls over the whole run, step by step: "constant", "linear" or "cosine".
      warmup: the share of the run's steps over which it rises from 0.
      steps: the number of batches in a round, the same for all clients; 0 counts by `epochs`. They
        are the first ones of as many passes as are needed, each in an order of its own, so that a
        client with few examples begins again and one with many sees only some of them.
      floor: the share of `lr` at which a "linear" or "cosine" schedule ends.
      restart_schedule: true lets `schedule` and `warmup` run over each round, so that T rounds have
        T decays as in the published code of arXiv:2412.04650; false lets them run over the whole
        run, and each client keep what its optimizer remembers. Left out: over the whole run, with a
        fresh optimizer. In one round all three are the same.
      clip_norm: the largest Euclidean norm of a step's gradient, all tensors as one vector;
        infinity for none.
      clip_value: the largest that an entry of a step's gradient is in size; infinity for none. It
        comes before `clip_norm`, and no tensor makes the step of another shorter.
      as_published: a mistake of FedPEFT's published code (arXiv:2210.01708), for comparison with
        it: momentum goes over from each client to the next and from round to round. In one process
        only; a resume begins the run again.
      group_by_length: texts of about the same length make a batch, which spares the tokens that
        fill up short ones. Which texts meet is then less random, so results change. Text alone has
        a length.
      optimizer: what takes the steps.
      correction: what changes a gradient before its step, e.g. FedProx or SCAFFOLD.
      terms: what is added to the loss of each example, e.g. "distillation"; the loss that a client
        tells has them in it.
      augments: what changes the batches that are trained on, in this order, e.g. "mixup".
      precision: of the pass: "float32", "bfloat16", or "float16" with a fixed loss scale. What is
        trained is float32.

    Raises:
      ValueError: a value out of range.
    """

    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.01
    schedule: str = "constant"
    warmup: float = 0.0
    clip_norm: float = float("inf")
    precision: str = "float32"
    as_published: bool = False
    restart_schedule: bool | None = None
    group_by_length: bool = False
    steps: int = unwritten(0)
    floor: float = unwritten(0.0)
    clip_value: float = unwritten(float("inf"))
    optimizer: Optimizer = part("optimizer", "sgd")
    correction: Correction = part("correction", "none")
    terms: tuple[Term, ...] = parts("term", unwritten=True)
    augments: tuple[Augment, ...] = parts("augment", unwritten=True)
    # `begin` looks at nothing of the context but its rounds and steps
    begins_alike: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_length(self.epochs, self.batch_size, self.steps)
        _check_rate(self.lr, self.schedule, self.warmup, self.floor)
        _check_clipping(self.clip_norm, self.clip_value)
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, PRECISIONS))
        if self.as_published and self.restart_schedule is False:
            raise ValueError(
                "a client keeps its own momentum, or takes the last one's (as_published): choose "
                "one"
            )
        _check_terms(self.added)

    @property
    def added(self) -> tuple[Term, ...]:
        """The terms that count."""
        return tuple(term for term in self.terms if term.weight)

    @property
    def compares(self) -> frozenset[str]:
        """The models that the terms compare with."""
        return frozenset(name for term in self.added for name in term.compares)

    @property
    def remembers(self) -> bool:
        """Whether a client keeps what its optimizer remembers, or the model that it ended with."""
        return self.restart_schedule is False or PREVIOUS in self.compares

    @property
    def spans_rounds(self) -> bool:
        """Whether the rate depends on how many rounds there are."""
        return not self.restart_schedule and (self.schedule != "constant" or self.warmup > 0)

    @property
    def offers(self) -> frozenset[Fact]:
        return frozenset({Fact.HANDS_OVER}) if self.as_published else frozenset()

    @property
    def forbids(self) -> Mapping[Fact, str]:
        if not self.as_published:
            return {}
        words = (
            "local.as_published hands momentum from client to client, one after another, and this "
            'engine has no such order: set engine = "inprocess"'
        )
        return {Fact.MANY_PROCESSES: words}

    @property
    def event(self) -> Event | None:
        return None

    @property
    def passes(self) -> float:
        """By `steps` it depends on the client, and one pass stands for it."""
        return self.epochs

    def steps_for(self, size: int) -> int:
        return self.steps or self.epochs * ceil(size / self.batch_size)

    def batches(self, data: Data, received: Tensors, context: Context) -> Iterable[Batch]:
        draws = generator(context.seed, "batches")
        passes = self.epochs
        if self.steps:
            passes = ceil(self.steps / ceil(context.size / self.batch_size))
        found = data.batches(context.client, self.batch_size, passes, draws, self.group_by_length)
        some = islice(found, self.steps) if self.steps else found
        if not self.augments:
            return some
        return changed(self.augments, some, generator(context.seed, "augments"))

    def begin(self, received: Tensors, memory: Tensors, context: Context) -> Carry:
        params, shared = self._split(received)
        device = next(iter(params.values())).device
        rounds = (0, 1) if self.restart_schedule else (context.round, context.rounds)
        at, end = (number * context.steps for number in rounds)
        clock = {"at": at, "end": end}
        if PREVIOUS in self.compares:
            clock["left"] = context.rounds - 1 - context.round
        probe: Tensors = {PROBE: torch.zeros((), device=device)} if self.correction.share else {}
        return {
            "params": params,
            "buffers": {},
            "optimizer": take_prefix(KEPT, memory) or self.optimizer.init(params),
            "held": self.correction.begin(params, shared, drop_prefixes(OWN, memory)),
            **self._models(params, memory),
            CARRIED: self._first_carried(device),
            "clock": {
                name: torch.full((), float(value), device=device) for name, value in clock.items()
            },
            "totals": {name: torch.zeros((), device=device) for name in ("loss", "examples")},
            "probe": probe,
            "probe_optimizer": self.optimizer.init(probe) if probe else {},
        }

    def step(self, carry: Carry, batch: Batch, losses: LossFn) -> Carry:
        params, clock, totals = carry["params"], carry["clock"], carry["totals"]
        carried = carry[CARRIED]
        if self.terms and self.added:
            added = Added(self.added, {name: carry[name] for name in sorted(self.compares)})
            beside = add_prefix(CARRIED, carried)
            gradient, each, buffers = losses.gradient({**params, **beside}, batch, added)
            carried = self._carry(carried, take_prefix(CARRIED, gradient))
            gradient = drop_prefixes((CARRIED,), gradient)
        else:
            gradient, each, buffers = losses.gradient(params, batch)
        trained: Tensors = {name: params[name] for name in gradient}
        gradient = self._clip(self.correction.apply(gradient, trained, carry["held"]))
        lr = self._rate(clock["at"], clock["end"])
        trained, memory = self.optimizer.step(trained, carry["optimizer"], gradient, lr)
        probe, probe_memory = carry["probe"], carry["probe_optimizer"]
        if probe:
            probe, probe_memory = self.optimizer.step(
                probe, probe_memory, map_tensors(torch.ones_like, probe), lr
            )
        return {
            **carry,
            "params": {**params, **trained, **buffers},
            "buffers": buffers,
            CARRIED: carried,
            "optimizer": memory,
            "clock": {**clock, "at": clock["at"] + 1},
            "totals": {
                "loss": totals["loss"] + (each * batch["mask"]).sum(),
                "examples": totals["examples"] + batch["mask"].sum(),
            },
            "probe": probe,
            "probe_optimizer": probe_memory,
        }

    def finish(
        self, carry: Carry, received: Tensors, memory: Tensors
    ) -> tuple[Tensors, Tensors, Tensors]:
        params, shared = self._split(received)
        delta = sub(carry["params"], params)
        # a buffer has no gradient to correct, so of what a correction shares, its part stays as it
        # is
        learned = {name: x for name, x in delta.items() if name not in carry["buffers"]}
        path = -carry["probe"][PROBE] if carry["probe"] else torch.full((), float("nan"))
        change, memory = self.correction.finish(learned, shared, drop_prefixes(OWN, memory), path)
        # After the last round nobody needs it.
        if self.restart_schedule is False and carry["clock"]["at"] < carry["clock"]["end"]:
            memory = {**memory, **add_prefix(KEPT, carry["optimizer"])}
        if PREVIOUS in self.compares and carry["clock"]["left"] > 0:
            memory = {**memory, **add_prefix(PREVIOUS, carry["params"])}
        delta = {**delta, **add_prefix(self.correction.share, change)}
        still = zeros_like({name: x for name, x in received.items() if name not in delta})
        return {**delta, **still}, memory, carry["totals"]

    def _split(self, received: Tensors) -> tuple[Tensors, Tensors]:
        """What a client receives: the parameters, and what its correction shares."""
        share = self.correction.share
        return (
            (drop_prefixes((share,), received), take_prefix(share, received))
            if share
            else (received, {})
        )

    def _models(self, params: Tensors, memory: Tensors) -> dict[str, Tensors]:
        """The parameters of the models that the terms compare with."""
        mine = {name: x for name, x in take_prefix(PREVIOUS, memory).items() if name in params}
        models = {RECEIVED: params, PREVIOUS: {**params, **mine}}
        return {name: x for name, x in models.items() if name in self.compares}

    def _first_carried(self, device: torch.device) -> Tensors:
        """What terms remember before the first step."""
        found: dict[str, Tensor] = {}
        for term in _carrying(self.added):
            found |= move_to(term.first_carried(), str(device))
        return found

    def _carry(self, carried: Tensors, noted: Tensors) -> Tensors:
        """What terms remember after a step."""
        after: dict[str, Tensor] = {}
        for term in _carrying(self.added):
            mine = term.first_carried().keys()
            before, new = ({name: x[name] for name in mine} for x in (carried, noted))
            after |= term.carry(before, new)
        return after

    def _clip(self, gradient: Tensors) -> Tensors:
        if self.clip_value != float("inf"):
            most = self.clip_value
            gradient = map_tensors(lambda g: g.clamp(-most, most), gradient)
        if self.clip_norm == float("inf"):
            return gradient
        length = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt()
        factor = (self.clip_norm / length.clamp_min(1e-12)).clamp_max(1.0)
        # the squares of 1e20 are infinite in float32, and the gradient would be multiplied by zero
        each = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradient.values()]
        far = (self.clip_norm / torch.stack(each).square().sum().sqrt()).clamp_max(1.0)
        factor = torch.where(length.isfinite(), factor, far.to(factor.dtype))
        return map_tensors(lambda g: g * factor, gradient)

    def _rate(self, at: Tensor, end: Tensor) -> Tensor:
        lr = torch.full_like(at, self.lr)
        if self.schedule != "constant":
            done = at / end
            left = ((done - self.warmup) / (1 - self.warmup)).clamp(0, 1)
            share = (1 - left) if self.schedule == "linear" else 0.5 * (1 + torch.cos(pi * left))
            lr = lr * (self.floor + (1 - self.floor) * share if self.floor else share)
        return lr * ((at + 1) / (self.warmup * end)).clamp_max(1.0) if self.warmup else lr


def _check_length(epochs: int, batch_size: int, steps: int) -> None:
    """Raises ValueError for a round of no length, or of two."""
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}")
    if steps < 0:
        raise ValueError(f"steps must be at least 1, or 0 to count by epochs, got {steps}")
    if steps and epochs != 1:
        raise ValueError(
            f"steps = {steps} and epochs = {epochs} both say how long a round is: leave out one"
        )


def _check_clipping(clip_norm: float, clip_value: float) -> None:
    """Raises ValueError for limits that leave nothing."""
    for key, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
        if not limit > 0:
            raise ValueError(f"{key} must be positive, got {limit}")


def _check_terms(terms: Sequence[Term]) -> None:
    """Raises ValueError for terms that want features of several heads, or remember the same."""
    if len({term.head for term in terms if term.head}) > 1:
        raise ValueError("terms must agree on the head that their features come into")
    names = [name for term in _carrying(terms) for name in term.first_carried()]
    if len(set(names)) < len(names):
        raise ValueError(
            f"two terms remember {max(names, key=names.count)} from step to step: leave one of "
            "them out"
        )


def _carrying(terms: Sequence[Term]) -> list[Any]:
    """Those that remember something from step to step."""
    return [term for term in terms if hasattr(term, "carry")]


def _check_rate(lr: float, schedule: str, warmup: float, floor: float) -> None:
    """Raises ValueError for a rate that is none, or a course of it that is none."""
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if schedule not in SCHEDULES:
        raise ValueError(unknown("schedule", schedule, SCHEDULES))
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of the run and must be in [0, 1), got {warmup}")
    if not 0 <= floor < 1:
        raise ValueError(f"floor is a share of lr and must be in [0, 1), got {floor}")
    if floor and schedule == "constant":
        raise ValueError(
            f"floor = {floor} is where a schedule ends, and a constant one does not fall: leave it "
            'out, or set schedule = "cosine" or "linear"'
        )


def changed(
    augments: Sequence[Augment], batches: Iterable[Batch], draws: torch.Generator
) -> Iterator[Batch]:
    """The batches, each changed by all augments in their order."""
    for batch in batches:
        for augment in augments:
            batch = augment.change(batch, draws)
        yield batch
