"""The same work in many rounds and in one: the same batches, rates and dropout, so that only the
exchanges differ."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedpeft.core.conversation import Flow
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Inner
from fedpeft.core.rounds import Round
from fedpeft.core.seeds import fold, seed_torch
from fedpeft.core.tensors import norm
from fedpeft.core.types import ClientId, Context, Failure, Job, Reply, State, Tensors
from fedpeft.errors import RunError
from fedpeft.plan.calibration import round_seed, without_target
from fedpeft.plan.checks import refuse
from fedpeft.plan.plan import Plan
from fedpeft.rounds.client import ClientRound, Trained, Worker
from fedpeft.rounds.loop import Ledger, federate, start
from fedpeft.rounds.site import Site, threads
from fedpeft.routing.ranks import Ranks
from fedpeft.storage.client_memory import Nowhere


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
        """Mean of min(above, below) / (above + below) over the entries that anybody moves, from 0
        to ½."""
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
      states: the shared parameters before the first round, the head that `head_start` makes
        included, and after each.
      farthest: how far any iterate of any client, or any state, is from the start; Euclidean, of
        what is trained. Of a client of lower rank, from what it has of the start.
      signs: of the first round's updates.
    """

    states: list[Tensors]
    farthest: float = 0.0
    signs: Signs = field(default_factory=Signs)

    def see(self, params: Tensors) -> None:
        """A state, or what a client trains, which may be less: the rest of the last state stands
        beside it."""
        at = {name: params.get(name, self.states[-1][name]).cpu() for name in self.states[0]}
        moved = {name: at[name] - x[corner(at[name])] for name, x in self.states[0].items()}
        self.farthest = max(self.farthest, float(norm(moved)))

    def count(self, delta: Tensors) -> None:
        """An update's signs; entries that a client of lower rank has not do not move."""
        whole = {
            name: torch.zeros_like(self.states[0][name], device=x.device)
            for name, x in delta.items()
        }
        for name, x in delta.items():
            whole[name][corner(x)] = x
        self.signs.count(whole)


def corner(x: Tensor) -> tuple[slice, ...]:
    """Where a tensor cut to a rank lies in the whole one."""
    return tuple(slice(side) for side in x.shape)


@dataclass(frozen=True)
class Blocks:
    """An engine in this process; a job is the local work of `blocks` rounds, out of `rounds`,
    without an exchange.

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
        return (
            self.worker.close(opened, lambda: self._trained(opened))
            if isinstance(opened, ClientRound)
            else opened
        )

    def _trained(self, opened: ClientRound) -> Trained:
        site = self.worker.site
        contexts = [self._context(opened, number) for number in range(self.blocks)]
        local, on = site.plan.local, {n: x.to(site.device) for n, x in opened.start.items()}
        site.model.train()
        carry = local.begin(on, {}, contexts[0])
        for number, context in enumerate(contexts):
            dropout = fold(context.seed, "dropout") if number else opened.dropout
            with threads(site.plan.compute.threads), seed_torch(dropout):
                for batch in local.batches(site.data, on, context):
                    carry = local.step(carry, site.on_device(batch), opened.objective)
                    self.way.see(carry["params"])
                    self.tick()
        delta, memory, totals = local.finish(carry, on, {})
        if opened.job.round == 0:
            self.way.count(delta)
        return delta, memory, totals

    def _context(self, opened: ClientRound, number: int) -> Context:
        """The round that is `number` after the job's own, as the client would find it."""
        own, client = opened.context, opened.job.client
        if number == 0:  # its clock is the one that counts: for all the blocks
            return replace(own, rounds=self.rounds // self.blocks, steps=own.steps * self.blocks)
        at = own.round + number
        seed = fold(round_seed(self.worker.site.plan, at), "client", client)
        # A key of its own, as noise that comes twice could be taken away.
        secret = own.secret.at("block", number) if own.secret else None
        return replace(own, round=at, rounds=self.rounds, seed=seed, secret=secret)


NOT_COMPARABLE: Mapping[Fact, str] = {
    Fact.ASYNCHRONOUS: "asynchronous steps have no rounds to compare with one: leave out fedbuff",
    Fact.ONE_AT_A_TIME: "a chain's clients start from each other's results, so that no round of "
    "all is the same: leave it out",
    Fact.HANDS_OVER: "local.as_published hands momentum over once more in each round: leave it out",
    Fact.SUM_ONLY: "secure aggregation hides the updates, whose signs are counted: set exchange = "
    '"plain"',
    Fact.PERSONAL: "personal tensors are for clients that come back for the next round, and there "
    "is none: leave them out",
    Fact.REMEMBERS: "{other} makes clients keep something for the next round, and one round has "
    "none: leave out SCAFFOLD, error feedback or restart_schedule = false",
    Fact.OWN_LENGTH: '{other} {what}, and a diagnosis counts epochs: set local = "descent"',
}
"""Of what one round is not the same local work as several."""


def check_comparable(plan: Plan) -> None:
    """Raises PlanError for a plan of which one round is not the same local work as several."""
    refuse(plan, NOT_COMPARABLE)


def both_ways(
    site: Site, clients: Sequence[ClientId], rounds: int, tick: Callable[[], None] = lambda: None
) -> Mapping[str, Way]:
    """All of `clients` in each of `rounds` rounds, as "rounds", and in one round of the same local
    work, as "one".

    Raises:
      RunError: a client fails; what is left would not be the same work.
    """
    found, clients = {}, sorted(clients)
    for name, exchanges in (("rounds", rounds), ("one", 1)):
        plan = _alone(site.plan, site.data.clients, clients, exchanges)
        here = replace(site, plan=plan)
        begun = start(plan, here.params())
        way = Way([begun.flat])
        engine = Blocks(Worker(here, Nowhere()), clients, rounds, rounds // exchanges, way, tick)
        watching = Watching()
        watching.way = way
        watched = replace(plan, algorithms=(*plan.algorithms, watching))
        for state, ledger in federate(watched, engine, begun):
            _complete(state.round, ledger)
            way.states.append(state.flat)
            way.see(state.flat)
        found[name] = way
    return found


@dataclass
class Watching:
    """An innermost algorithm that sees with what the first round's training begins: a head from
    class means is then in it."""

    way: Way = field(init=False, repr=False)

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        if state.round == 0:
            self.way.states[0] = state.flat
        return (yield from inner(state, round))


def _alone(plan: Plan, every: Sequence[ClientId], clients: Sequence[ClientId], rounds: int) -> Plan:
    """The plan of these clients without the others, each with the rank that it has among all."""
    routing = plan.routing
    if plan.ranks:
        own = (plan.view(client, 0, every).rank for client in clients)
        ranks = Ranks(tuple(rank for rank in own if rank is not None))
        others = (one for one in routing if not isinstance(one, Ranks))
        routing = (*others, ranks)
    # what a private plan may spend in all is a matter of its own rounds, not of these
    return replace(without_target(plan), rounds=rounds, cohort=len(clients), routing=routing)


def _complete(round: int, ledger: Ledger) -> None:
    """Raises RunError where a client failed or nothing changed."""
    if ledger.failed or ledger.note:
        raise RunError(
            f"round {round}: {'; '.join(filter(None, [ledger.note, *ledger.failed.values()]))}"
        )
