"""A rehearsal: the whole conversation of a plan, with the real server, the real clients, codecs and
checks, in which local training alone is left out. What it sends is counted, not computed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch import Tensor

from fedpeft.core.interfaces import Coding, Store
from fedpeft.core.seeds import generator
from fedpeft.core.types import ClientId, Failure, Job, Reply, Tensors
from fedpeft.core.views import View
from fedpeft.errors import PlanError
from fedpeft.plan.plan import Plan
from fedpeft.registry import describe
from fedpeft.rounds.client import ClientRound, Trained, Worker
from fedpeft.rounds.ledger import Ledger
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site
from fedpeft.storage.client_memory import Folder

WORK = 2e8
"""Numbers sent in a rehearsal at most; the rounds beyond cost as those before."""
LEAST_ROUNDS = 3
SECONDS = 20.0
"""How long is rehearsed at most, beyond the least number of rounds."""
STEP = 1e-3
"""The standard deviation of the changes that stand in for training."""


@dataclass(frozen=True)
class Traffic:
    """What a plan sends.

    Attributes:
      rounds: by round and client the bytes down and up, of the rounds that were rehearsed.
      planned: the number of rounds of the plan; of a plan of none there is one conversation.
      up_headers: of `rounds` in all, the part of what goes up that is frames and headers.
      varies: by direction, the codec whose sizes depend on the numbers.
      answers: the answers in the rehearsed rounds, in whose headers a loss is written out.
      privacy: what the run has cost after its last round; None where nothing is private.
      notes: what befell the rehearsal.
    """

    rounds: Sequence[Mapping[ClientId, tuple[int, int]]]
    planned: int
    up_headers: int
    varies: Mapping[str, str]
    answers: int
    notes: Sequence[str] = ()

    @property
    def whole(self) -> bool:
        """Whether every round was rehearsed."""
        return len(self.rounds) == self.planned

    def total(self, direction: int) -> float:
        """Bytes of all rounds; those that were not rehearsed count as the mean of those that were,
        the first one left out."""
        known = [sum(pair[direction] for pair in one.values()) for one in self.rounds]
        later = known[1:] or known
        return sum(known) + (self.planned - len(known)) * sum(later) / len(later)

    def each(self, direction: int) -> list[int]:
        """The different sizes that a client sends or receives in a round, ascending."""
        return sorted({pair[direction] for one in self.rounds for pair in one.values()})

    def mean(self, direction: int) -> float:
        """Bytes of one client in one round, on average."""
        sizes = [pair[direction] for one in self.rounds for pair in one.values()]
        return sum(sizes) / len(sizes)


@dataclass(frozen=True, eq=False)
class Untrained:
    """An engine whose clients do all but train: in the place of what they would learn they send
    random changes of the same shapes."""

    site: Site
    store: Store
    worker: Worker

    @property
    def clients(self) -> Sequence[ClientId]:
        return self.site.data.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for job in jobs:
            opened = self.worker.open(job)
            if isinstance(opened, ClientRound):
                yield self.worker.close(opened, _Untaught(self.worker.at(job.round), opened))
            else:
                yield opened


@dataclass(frozen=True)
class _Untaught:
    """What a client would have learnt, made up."""

    worker: Worker
    opened: ClientRound

    def __call__(self) -> Trained:
        plan, context = self.worker.site.plan, self.opened.context
        local = plan.local
        received, own = self.opened.start, self.opened.own
        carry = local.begin(received, own, context)
        delta, memory, totals = local.finish(carry, received, own)
        draws = generator(context.seed, "forecast")
        seen = float(context.size * local.passes)
        loss = seen * log(max(2, len(self.worker.site.classes)))
        told = {name: torch.tensor({"loss": loss}.get(name, seen)) for name in totals}
        return _changed(delta, draws), _changed(memory, draws), told


def _changed(like: Tensors, draws: torch.Generator) -> dict[str, Tensor]:
    return {name: _change(x, draws) for name, x in like.items()}


def _change(x: Tensor, draws: torch.Generator) -> Tensor:
    if not x.is_floating_point():
        return torch.zeros_like(x)
    return (torch.randn(x.shape, generator=draws) * STEP).abs().to(x.dtype)


def rehearse(site: Site, seconds: float = SECONDS) -> Traffic:
    """Count what a plan sends, round by round, with the model's frozen part as shapes alone or with
    numbers.

    Raises:
      PlanError: a client fails, as it does where it computes something with a model that has no
        numbers.
    """
    plan = site.plan
    rounds: list[dict[ClientId, tuple[int, int]]] = []
    headers, answers, notes, began = 0, 0, _note_choices(plan), perf_counter()
    with TemporaryDirectory() as folder:
        engine = _engine(site, Path(folder))
        for ledger in islice(_ledgers(plan, engine), _affordable(site)):
            rounds.append({c: (ledger.down[c], ledger.up.get(c, 0)) for c in ledger.down})
            headers += ledger.up_headers
            answers += sum(size > 0 for size in ledger.up.values())
            for client, why in _failures(ledger).items():
                raise PlanError(f"round {ledger.round + 1}, client {client!r}: {why}")
            if ledger.note and ledger.note not in notes:
                notes.append(ledger.note)
            if len(rounds) >= LEAST_ROUNDS and perf_counter() - began > seconds:
                break
    return Traffic(rounds, max(1, plan.rounds), headers, _varying(site), answers, notes)


def _note_choices(plan: Plan) -> list[str]:
    if not plan.hooks("leave_out"):
        return []
    return ["what a client leaves out depends on what it learns: the bytes up are about so"]


def _failures(ledger: Ledger) -> dict[ClientId, str]:
    """By client why it did not answer; of an evaluation, its report tells it."""
    found = dict(ledger.failed)
    for told in ledger.reports.values():
        failed = told.get("failed") if isinstance(told, Mapping) else None
        found |= failed if isinstance(failed, Mapping) else {}
    return found


def _engine(site: Site, folder: Path) -> Untrained:
    store = Folder(folder)
    return Untrained(site, store, Worker(site, store))


def _ledgers(plan: Plan, engine: Untrained) -> Iterator[Ledger]:
    for _, ledger in federate(plan, engine, start(plan, engine.site.params())):
        yield ledger


def _affordable(site: Site) -> int:
    """How many rounds are rehearsed."""
    numbers = sum(x.numel() for x in site.params().values())
    each = max(1, numbers * min(site.plan.cohort, len(site.data.clients)))
    return min(max(1, site.plan.rounds), max(LEAST_ROUNDS, int(WORK / each)))


def _varying(site: Site) -> dict[str, str]:
    """By direction the codec whose sizes depend on the numbers, found by sending different ones."""
    plan, some = site.plan, site.params()
    client = site.data.clients[0]
    sent = plan.view(client, 0, site.data.clients).select(some)
    trained = View.trained(plan.view(client, 0, site.data.clients), sent)
    found = {}
    for way, codec, tensors in (("down", plan.downlink, sent), ("up", plan.uplink, trained)):
        draws = generator(plan.seed, "forecast", way)
        numbers = [_changed(tensors, draws) for _ in range(2)]
        numbers.append({name: torch.zeros_like(x) for name, x in tensors.items()})
        if len({len(codec.encode(one, Coding(way))) for one in numbers}) > 1:
            found[way] = str(describe("codec", codec)["name"])
    return found
