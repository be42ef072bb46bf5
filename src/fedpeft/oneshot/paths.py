"""The same work in many rounds and in one: the same batches, rates and dropout, so that only the exchanges differ."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedpeft.client import Opened, Trained, Worker
from fedpeft.core.seeds import fold, seeded
from fedpeft.core.stores import Nowhere
from fedpeft.core.tensors import norm, sub
from fedpeft.core.types import ClientId, Context, Failure, Job, Reply, Tensors
from fedpeft.errors import RunError
from fedpeft.loop import federate, start
from fedpeft.privacy import round_seed
from fedpeft.site import Site, threads


@dataclass
class Signs:
    """How often each entry of some updates is above and below zero."""

    updates: int = 0
    above: dict[str, Tensor] = field(default_factory=dict)
    below: dict[str, Tensor] = field(default_factory=dict)

    def count(self, delta: Tensors) -> None:
        self.updates += 1
        for name, x in delta.items():
            for kept, seen in ((self.above, x > 0), (self.below, x < 0)):
                kept[name] = kept.get(name, 0) + seen.cpu().short()

    def conflict(self) -> float:
        """Mean of min(above, below) / (above + below) over the entries that anybody moves, from 0 to ½."""
        shares = []
        for name, above in self.above.items():
            moved = above + self.below[name]
            fewer = torch.minimum(above, self.below[name])[moved > 0]
            shares.append(fewer.double() / moved[moved > 0])
        every = torch.cat(shares)
        return float(every.mean()) if len(every) else 0.0


@dataclass
class Way:
    """What was seen on one of the two ways.

    Attributes:
      states: the shared parameters before the first round and after each.
      farthest: how far any iterate of any client, or any state, is from the start; Euclidean, of what is trained.
      signs: of the first round's updates.
    """

    states: list[Tensors]
    farthest: float = 0.0
    signs: Signs = field(default_factory=Signs)

    def see(self, params: Tensors) -> None:
        origin = self.states[0]
        self.farthest = max(self.farthest, float(norm(sub({n: params[n].cpu() for n in origin}, origin))))


@dataclass(frozen=True)
class Blocks:
    """An engine in this process; a job is the local work of `blocks` rounds, out of `rounds`, without an exchange.

    With one block it is what `Worker` does, to the bit.
    """

    worker: Worker
    clients: Sequence[ClientId]
    rounds: int
    blocks: int
    way: Way
    tick: Callable[[], None]

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        yield from map(self._answer, jobs)

    def _answer(self, job: Job) -> Reply | Failure:
        opened = self.worker.open(job)
        return self.worker.close(opened, lambda: self._trained(opened)) if isinstance(opened, Opened) else opened

    def _trained(self, opened: Opened) -> Trained:
        site, contexts = self.worker.site, [self._context(opened, number) for number in range(self.blocks)]
        local, on = site.plan.local, {n: x.to(site.device) for n, x in opened.start.items()}
        site.model.train()
        carry = local.begin(on, {}, contexts[0])
        for number, context in enumerate(contexts):
            dropout = fold(context.seed, "dropout") if number else opened.dropout
            with threads(site.plan.threads), seeded(dropout):
                for batch in local.batches(site.data, on, context):
                    carry = local.step(carry, site.on_device(batch), opened.objective)
                    self.way.see(carry["params"])
                    self.tick()
        delta, memory, totals = local.finish(carry, on, {})
        if opened.job.round == 0:
            self.way.signs.count(delta)
        return delta, memory, totals

    def _context(self, opened: Opened, number: int) -> Context:
        """The round that is `number` after the job's own, as the client would find it."""
        own, client = opened.context, opened.job.client
        if number == 0:  # its clock is the one that counts: for all the blocks
            return replace(own, rounds=self.rounds // self.blocks, steps=own.steps * self.blocks)
        at = own.round + number
        seed = fold(round_seed(self.worker.site.plan, at), "client", client)
        secret = own.secret.at("block", number) if own.secret else None
        return replace(own, round=at, rounds=self.rounds, seed=seed, secret=secret)


def both_ways(
    site: Site, clients: Sequence[ClientId], rounds: int, tick: Callable[[], None] = lambda: None
) -> Mapping[str, Way]:
    """All of `clients` in each of `rounds` rounds, as "rounds", and in one round of the same local work, as "one".

    Raises:
      RunError: a client fails; what is left would not be the same work.
    """
    found = {}
    for name, exchanges in (("rounds", rounds), ("one", 1)):
        # what a private plan may spend in all is a matter of its own rounds, not of these
        plan = replace(site.plan, rounds=exchanges, cohort=len(clients), target_epsilon=None)
        here = replace(site, plan=plan)
        first = start(plan, here.params())
        way = Way([first.params])
        engine = Blocks(Worker(here, Nowhere()), sorted(clients), rounds, rounds // exchanges, way, tick)
        for state, ledger in federate(plan, engine, first):
            if ledger.failed or ledger.note:
                raise RunError(
                    f"round {state.round}: {'; '.join(filter(None, [ledger.note, *ledger.failed.values()]))}"
                )
            way.states.append(state.params)
            way.see(state.params)
        found[name] = way
    return found
