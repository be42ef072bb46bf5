"""Fed-TREND: examples that the server makes of how models moved (Yuan et al., 2024,
arXiv:2411.15716).

The server looks for examples (X, Y) on which descent moves a model as training has moved it:

    min over X, Y of Σ ‖m ⊙ (w_end − w̃)‖²
    w̃ = w_start − η·∇L(w_start; X, Y), `inner_steps` times,

by Adam from normal noise. Those for the clients are fitted to what each client's model became
between two fits, with m = 1 for entries that moved in the same direction as between the two fits
before, and else 0; clients train on them beside their own. Those for the server are fitted to the
steps from one global model to the next one, and after each merge the server descends on them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedpeft.compute.objective import Objective
from fedpeft.compute.trajectories import MASK, Leg, Losses, Matching
from fedpeft.core.conversation import DELTA, PARAMS, Answer, Flow, changed_answers
from fedpeft.core.facts import Fact
from fedpeft.core.hooks import Inner
from fedpeft.core.outputs import evaluation_mode
from fedpeft.core.rounds import Bench, Round
from fedpeft.core.seeds import generator
from fedpeft.core.tensors import (
    Layout,
    add_prefix,
    join_prefixes,
    layout,
    move_to,
    split_prefixes,
)
from fedpeft.core.types import Batch, ClientId, State, Tensors
from fedpeft.errors import PlanError

OWNER, SHARED = "fed_trend", "shared_examples"
BEGUN, MODELS, ENDED, CHANGED, OWN = "begun", "models", "ended", "changed", "own"
"""Groups of the server's memory: the first model, by round the merged ones since the last fit, by
client what it was at its last fit and how it had changed until then, and the server's examples."""
ONE_MODEL = "fed_trend follows one model whose parameters all clients train, and {other} {what}: "
NO_MODEL: Mapping[Fact, str] = {
    fact: f"{ONE_MODEL}leave out one of them"
    for fact in (
        Fact.ASYNCHRONOUS,
        Fact.SEVERAL_MODELS,
        Fact.MERGES_BASE,
        Fact.PERSONAL,
        Fact.MIXED_TENSORS,
        Fact.MIXED_VIEWS,
        Fact.MIXED_RANKS,
        Fact.TURNS,
        Fact.QUANTIZED,
    )
}
"""Of which models the server cannot know how they moved."""


@dataclass(frozen=True)
class FedTrend:
    """In each `every`-th round the server makes new examples for clients and for itself.

    The term "shared_examples" of local.terms is what clients learn from theirs by. A task's
    examples must be numbers that can be moved, as those of "forecast" are. The server remembers two
    copies of the model for each client that answered in a fit, and one for each round since the
    last.

    Attributes:
      every: rounds between two fits; the paper's L, which has 10.
      client_examples: how many go to clients; 0 for none. The paper has 5 to 40.
      server_examples: how many the server descends on; 0 for none.
      steps: of Adam in a fit; the paper has 300.
      lr: of Adam; the paper has 3e-4, by which an example goes 0.09 at most.
      rate: η, of the descent on the examples, in the fit and after a merge.
      inner_steps: of that descent, each on all examples.

    Raises:
      ValueError: a value out of range.
    """

    every: int = 10
    client_examples: int = 20
    server_examples: int = 20
    steps: int = 300
    lr: float = 0.01
    rate: float = 0.01
    inner_steps: int = 1

    def __post_init__(self) -> None:
        if min(self.every, self.steps, self.inner_steps) < 1:
            raise ValueError(
                "every, steps and inner_steps must be at least 1, got "
                f"{self.every}, {self.steps} and {self.inner_steps}"
            )
        if min(self.client_examples, self.server_examples) < 0 or not (
            self.client_examples or self.server_examples
        ):
            raise ValueError(
                "client_examples and server_examples must be at least 0, and not both 0, got "
                f"{self.client_examples} and {self.server_examples}"
            )
        if not (0 < self.lr < float("inf") and 0 < self.rate < float("inf")):
            raise ValueError(
                f"lr and rate must be positive and finite, got {self.lr} and {self.rate}"
            )

    @property
    def offers(self) -> frozenset[Fact]:
        shares = {Fact.SHARES_EXAMPLES} if self.client_examples else set()
        return frozenset({Fact.SERVER_MODEL, *shares})

    @property
    def forbids(self) -> Mapping[Fact, str]:
        if not self.client_examples:
            return NO_MODEL
        single = "fed_trend fits examples to the changes of single clients, and {other} {what}: "
        return {
            **NO_MODEL,
            Fact.SUM_ONLY: f'{single}set exchange = "plain", or client_examples = 0',
            Fact.SERVER_NOISE: f"{single}set client_examples = 0, or leave out one of them",
        }

    def check_plan(self, plan: Any) -> None:
        """Raises PlanError for a task whose examples cannot be moved."""
        _draw(plan.task, 1, torch.Generator())

    def shares_examples(self, task: Any) -> Mapping[str, Layout]:
        """The clients' examples, with a mask that is 0 before there are any."""
        if not self.client_examples:
            return {}
        return {SHARED: layout(_draw(task, self.client_examples, torch.Generator()))}

    def round(self, state: State, round: Round, inner: Inner) -> Flow:
        """The inner algorithm's round, a descent on the server's examples, and maybe a fit."""
        if round.bench is None:
            raise PlanError(
                "fed_trend computes with the model at the server, and this engine lies beside none"
            )
        fits = (state.round + 1) % self.every == 0
        ends: dict[ClientId, dict[str, Tensor]] = {}

        def note(answer: Answer) -> Answer:
            ends[answer.client] = _end_of(answer)
            return answer

        told = inner(state, round)
        if fits and self.client_examples:
            told = changed_answers(told, note)
        after = yield from told
        memory: dict[str, Tensors] = dict(split_prefixes(state.memory.get(OWNER, {})))
        if not memory:
            memory = {BEGUN: _copied(state.params), MODELS: _model_of(state)}
        if self.server_examples:
            memory[MODELS] = {**memory[MODELS], **_model_of(after)}
        with _calling(round.bench) as losses:
            server = _Server(self, round, losses, memory)
            params = server.refine(after.params)
            shared = {**after.shared, **server.fit(ends)} if fits else after.shared
        memories = {**after.memory, OWNER: join_prefixes(server.memory)}
        return replace(after, params=params, shared=shared, memory=memories)

    @property
    def matching(self) -> Matching:
        """How examples are fitted."""
        return Matching(self.steps, self.lr, self.rate, self.inner_steps)


@dataclass
class _Server:
    """What the server does in one round.

    Attributes:
      memory: of the algorithm by group, as it becomes.
    """

    how: FedTrend
    round: Round
    losses: Losses
    memory: dict[str, Tensors]

    def refine(self, params: Tensors) -> Tensors:
        """The merged parameters after a descent on the server's examples, where there are some."""
        if OWN not in self.memory:
            return params
        moved = self.how.matching.descend(self.losses, params, self._moving(), self.memory[OWN])
        return {name: x.detach() for name, x in moved.items()}

    def fit(self, ends: Mapping[ClientId, Tensors]) -> dict[str, Tensors]:
        """Make new examples of what has been since the last fit; gives what is shared of them.

        Where nobody moved, the last examples stay.
        """
        shared: dict[str, Tensors] = {}
        if legs := _that_lead_somewhere(self._follow_clients(ends)):
            shared[SHARED] = self._make("clients", legs, self.how.client_examples)
        if legs := _that_lead_somewhere(self._follow_model()):
            self.memory[OWN] = self._make("server", legs, self.how.server_examples)
        return shared

    def _moving(self) -> list[str]:
        """The parameters that descent moves, and no statistics."""
        known = {name for name, _ in self.round.bench.model.named_parameters()}  # type: ignore[union-attr]
        return [name for name in self.memory[BEGUN] if name in known]

    def _make(self, whose: str, legs: Sequence[Leg], number: int) -> dict[str, Tensor]:
        draws = generator(self.round.seed, OWNER, whose)
        begun = _draw(self.round.plan.task, number, draws)
        found, left = self.how.matching.fit(self.losses, legs, begun, draws)
        self.round.report(f"{OWNER}_{whose}", {"ways": len(legs), "left": left})
        return found

    def _follow_clients(self, ends: Mapping[ClientId, Tensors]) -> Iterator[Leg]:
        """From what each client was at its last fit, or from the first model, to what it is now."""
        ended: dict[str, Tensors] = dict(split_prefixes(self.memory.get(ENDED, {})))
        changed: dict[str, Tensors] = dict(split_prefixes(self.memory.get(CHANGED, {})))
        for client in sorted(ends):
            start, end = ended.get(client, self.memory[BEGUN]), ends[client]
            change = {name: end[name] - start[name] for name in self._moving()}
            counts = {name: torch.ones_like(x) for name, x in change.items()}
            if before := changed.get(client):
                counts = {n: (x.sign() == before[n].sign()).to(x) for n, x in change.items()}
            ended[client], changed[client] = end, change
            yield Leg(start, end, counts)
        if ended:
            self.memory |= {ENDED: join_prefixes(ended), CHANGED: join_prefixes(changed)}

    def _follow_model(self) -> Iterator[Leg]:
        """From each merged model since the last fit to the next. The last one stays."""
        models = split_prefixes(self.memory.get(MODELS, {}))
        places = sorted(models)
        if not self.how.server_examples:
            return
        for place, following in pairwise(places):
            start, end = models[place], models[following]
            yield Leg(start, end, {name: torch.ones_like(start[name]) for name in self._moving()})
        self.memory[MODELS] = add_prefix(places[-1], models[places[-1]])


@contextmanager
def _calling(bench: Bench) -> Iterator[Losses]:
    """Inside, the losses of the server's model can be differentiated twice."""
    objective = Objective(bench.model, bench.task)
    device = str(next(iter(bench.model.parameters())).device)

    def losses(params: Tensors, batch: Batch) -> Tensor:
        return objective(move_to(params, device), move_to(batch, device)).cpu()

    # the other kernels of attention have no second derivative
    with evaluation_mode(bench.model), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        yield losses


def _model_of(state: State) -> dict[str, Tensor]:
    """A merged model as it lies in the memory, in the order of the rounds."""
    return add_prefix(f"{state.round:06d}", _copied(state.params))


def _copied(params: Tensors) -> dict[str, Tensor]:
    """Tensors of their own: a checkpoint takes none twice."""
    return {name: x.clone() for name, x in params.items()}


def _that_lead_somewhere(legs: Iterable[Leg]) -> list[Leg]:
    """Those by which an example can be judged."""
    return [leg for leg in list(legs) if float(leg.distance(leg.start)) > 0]


def _draw(task: Any, number: int, draws: torch.Generator) -> dict[str, Tensor]:
    """Examples of normal noise, by column, with a mask of 1.

    Raises:
      PlanError: the task has examples that are no numbers.
    """
    example: Batch = task.example() if hasattr(task, "example") else {}
    columns = {name: x for name, x in sorted(example.items()) if name != MASK}
    if not columns or not all(x.is_floating_point() for x in columns.values()):
        raise PlanError(
            f"fed_trend makes examples that are numbers, and those of {type(task).__name__} are "
            'not: take task.name = "forecast", or leave fed_trend out'
        )
    drawn = {n: torch.randn(number, *x.shape[1:], generator=draws) for n, x in columns.items()}
    return dict(sorted({**drawn, MASK: torch.ones(number)}.items()))


def _end_of(answer: Answer) -> dict[str, Tensor]:
    """What a client's model is after its training, as far as the server knows."""
    delta = answer.message.tensors.get(DELTA, {})
    start = answer.sent.tensors.get(PARAMS, {})
    return {name: x + delta[name] for name, x in start.items() if name in delta}
