"""An experiment, complete and frozen: everything a round needs to know, and nothing that
changes."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

import tomli_w
from torch import Tensor, nn

from fedpeft.core.conversation import Expected
from fedpeft.core.hooks import (
    Algorithm,
    Evaluation,
    Exchange,
    Handler,
    Measures,
    Metric,
    Routing,
    ServerStep,
    SharesBack,
)
from fedpeft.core.interfaces import (
    Aggregator,
    Attack,
    Codec,
    Local,
    Method,
    Partition,
    Sampler,
    ServerOptimizer,
    Source,
    Stage,
    Task,
)
from fedpeft.core.low_rank import EXACT
from fedpeft.core.tensors import Layout, zeros_of
from fedpeft.core.types import ClientId, Examples, State, Tensors
from fedpeft.core.views import EVERYTHING, View
from fedpeft.errors import PlanError
from fedpeft.plan.checks import check_fit
from fedpeft.plan.models import build_model, load_examples
from fedpeft.plan.phases import Phase, Schedule
from fedpeft.plan.tables import AdmissionRules, Compute, Nodes, Privacy
from fedpeft.plan.values import (
    check_budget,
    check_codecs,
    check_order,
    check_values,
    private_part,
    quantizes,
)
from fedpeft.registry import (
    build,
    part,
    parts,
    settings_of,
    table,
    tables,
    unwritten,
    unwritten_parts,
)

SCHEMA = 2
"""The version of the plan's keys; version 1 is converted where a plan is read."""
NORM_FACTOR = 100.0
"""Beyond what honest clients with a hundred times the usual examples come to."""
UNNAMED = ("name", "engine")
"""Keys that do not change what is computed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is learned from whom, how, and for how long.

    Attributes:
      name: of the run, for its folder and its tables; it changes no number.
      task, data, partition: what is learned, from which examples, and who holds which of them.
      method: which tensors are trained.
      local: how a client trains.
      sampler: which clients take part in a round.
      algorithms: what wraps a round of federated averaging, outermost first.
      routing: what each client receives, trains and keeps; the views of all are intersected.
      server_steps: what the server does after its optimizer's step, in order.
      exchange: how updates reach the server: each in the open, or their sum alone.
      aggregator: how the cohort's updates become one.
      server: the server's optimizer, which takes a step along it.
      stages: what an update passes on its way, e.g. error feedback or noise.
      uplink, downlink: the codecs of what clients send and receive.
      rounds: how many.
      attacks: what some clients do to the others, in simulations only.
      cohort: clients per round.
      weighting: what a client counts in the mean: its number of "examples", or "uniform". "batches"
        is the number rounded up to a multiple of `local.batch_size`, a mistake of FedPEFT's
        published code, to compare with it.
      classes: label names; empty for the data's own. Needed where the server holds no data.
      evaluate_every: rounds between evaluations; the last round is always evaluated.
      seed: what every random stream that is not secret comes from.
      engine: where clients train; results are the same in all except for rounding.
      evaluate_at: where models are measured: at the "server", on common held-out examples, and at
        the "owners", on the clients' own.
      metrics: what is measured beside the task's own metrics.
      select: the metric by which the best round's parameters are kept beside the last ones; empty
        for none.
      patience: a run ends after so many evaluations without a better one; 0 for never.
      privacy, admission, compute, nodes: tables; see `plan.tables`.
      phase, schedule: what changes from round to round; see `plan.phases`.
      schema: the version of these keys.

    Raises:
      ValueError: a value out of range.
      PlanError: parts that do not fit together.
    """

    name: str = "run"
    task: Task = part("task", "image-classification")
    data: Source = part("data", "digits")
    partition: Partition = part("partition", "dirichlet")
    evaluate_at: tuple[Evaluation, ...] = unwritten_parts("evaluation", "server")
    metrics: tuple[Metric, ...] = parts("metric", unwritten=True)
    method: Method = part("method", "lora")
    local: Local = part("local", "descent")
    sampler: Sampler = part("sampler", "uniform")
    algorithms: tuple[Algorithm, ...] = parts("algorithm")
    routing: tuple[Routing, ...] = parts("routing")
    exchange: Exchange = part("exchange", "plain")
    aggregator: Aggregator = part("aggregator", "mean")
    server: ServerOptimizer = part("server", "average")
    server_steps: tuple[ServerStep, ...] = parts("server_step")
    stages: tuple[Stage, ...] = parts("stage")
    attacks: tuple[Attack, ...] = parts("attack")
    uplink: Codec = part("codec", "dense")
    downlink: Codec = part("codec", "dense")
    rounds: int = 10
    cohort: int = 8
    weighting: str = "examples"
    seed: int = 1
    evaluate_every: int = 1
    classes: tuple[str, ...] = ()
    engine: str = "inprocess"
    privacy: Privacy = table(Privacy)
    admission: AdmissionRules = table(AdmissionRules)
    compute: Compute = table(Compute)
    nodes: Nodes = table(Nodes)
    select: str = unwritten("")
    patience: int = unwritten(0)
    phase: tuple[Phase, ...] = tables(Phase)
    schedule: tuple[Schedule, ...] = tables(Schedule)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_values(self)
        check_codecs(self)
        check_order(self.stages)
        check_fit(self)
        for check in self.hooks("check_plan"):
            check(self)
        check_budget(self.private_part.event if self.private_part else None, self.privacy)
        # For its error alone: a plan in which two parts answer one message is none.
        self.handlers()

    @property
    def private_part(self) -> Any:
        """The part of the local training, the stages or the algorithms that adds noise, or None."""
        return private_part([self.local, *self.stages, *self.algorithms])

    @property
    def norm_bound(self) -> float:
        """How many times as long as is usual an update may be."""
        if self.admission.norm_factor is not None:
            return self.admission.norm_factor
        event = self.private_part.event if self.private_part else None
        # The lengths in a sum are hidden. Where the server clips and adds noise, they are bounded,
        # and whether one client is let in must not depend on the others.
        return float("inf") if self.exchange.sums or (event and event.central) else NORM_FACTOR

    @property
    def hides_clients(self) -> bool:
        """Whether the server's step must not tell who answered."""
        return any(stage.event is not None and stage.event.central for stage in self.stages)

    @property
    def sharing(self) -> tuple[SharesBack, ...]:
        """The parts whose shared tensors change on the clients."""
        # By this method and not by `share`, which other parts have as a number.
        return tuple(one for one in self.parts if hasattr(one, "merge_share"))

    @property
    def local_shares(self) -> tuple[str, ...]:
        """Groups that travel in both directions beside the method's tensors."""
        return tuple(one.share for one in self.sharing)

    @property
    def lossless(self) -> Codec:
        """The codec of answers that are no updates; see `plan.coding.answer_codec`."""
        codec: Codec = build("codec", "dense")
        return codec

    @property
    def run(self) -> str:
        """What a client tells this experiment from others by."""
        return f"{self.name}-{self.fingerprint}"

    @property
    def sets_apart(self) -> float:
        """The share of each client's examples on which it does not train, for its algorithms."""
        return max(self.hooks("sets_apart"), default=0.0)

    @property
    def personal(self) -> tuple[str, ...]:
        """Patterns of trained tensors that never travel."""
        return tuple(p for one in self.routing for p in getattr(one, "patterns", ()))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the clients' low-rank factors, assigned in turn; empty for the method's."""
        return tuple(rank for one in self.routing for rank in getattr(one, "ranks", ()))

    @property
    def asynchronous(self) -> bool:
        """Whether the server takes steps without waiting for rounds."""
        return any(self.hooks("asynchronous"))

    @property
    def changes(self) -> bool:
        """Whether the plan is another in other rounds; `plan.reading.plan_at` gives each."""
        return bool(self.phase or self.schedule)

    @property
    def measured_here(self) -> bool:
        """Whether the server measures models on its own held-out examples."""
        return any(getattr(one, "at_server", False) for one in self.evaluate_at)

    @property
    def asking(self) -> tuple[Measures, ...]:
        """The parts that ask clients how a round's model does."""
        return tuple(one for one in self.evaluate_at if isinstance(one, Measures))

    @property
    def counts_classes(self) -> bool:
        """Whether clients are asked to count examples by class."""
        return bool(self.asking) and bool(getattr(self.task, "tells_classes", False))

    @property
    def metrics_read(self) -> frozenset[str]:
        """What the plan's metrics read beside the confusion matrix."""
        return frozenset(name for metric in self.metrics for name in metric.reads)

    def is_evaluated(self, done: int) -> bool:
        """Whether the model after so many rounds is measured."""
        return done % self.evaluate_every == 0 or done == self.rounds

    @cached_property
    def parts(self) -> tuple[Any, ...]:
        """All parts of the plan and the parts in them, in the order of the plan's keys."""
        return tuple(_parts_in(self))  # kept, as each answer that arrives asks for them

    def hooks(self, name: str) -> list[Any]:
        """What of that name the plan's parts have, in their order; see `core.hooks`."""
        return [getattr(one, name) for one in self.parts if hasattr(one, name)]

    def handlers(self) -> dict[str, Handler]:
        """The client's side of the conversation: by phase, what answers a message beside "fit".

        Raises:
          PlanError: two parts answer one phase.
        """
        found: dict[str, Handler] = {}
        for handlers in self.hooks("handlers"):
            for phase, handler in handlers().items():
                if phase in found or phase == "fit":
                    raise PlanError(
                        f"two parts of this plan answer the message {phase!r}: leave out one of "
                        "them, or give its message another name"
                    )
                found[phase] = handler
        return found

    def view(self, client: ClientId, round: int, clients: Sequence[ClientId]) -> View:
        """What a client sees in a round: what the views of all parts let through."""
        return intersect(self.hooks("view"), client, round, clients)

    def known_clients(self, here: Sequence[ClientId]) -> Sequence[ClientId]:
        """All clients of the federation, of which a process may have only some."""
        return sorted(self.nodes.names) if self.nodes.names else here

    def shares(self, params: Tensors) -> dict[str, Layout]:
        """By owner the layout of what travels down beside the parameters."""
        found: dict[str, Layout] = {}
        if any(self.hooks("merges_base")):
            found[EXACT] = []  # as many ranks as were merged; each layer is checked by its shape
        return found | self._shared_by_parts(params)

    def _shared_by_parts(self, params: Tensors) -> dict[str, Layout]:
        """By owner the layout of what parts share."""
        found: dict[str, Layout] = {}
        for own in self.hooks("shares"):
            found |= own(params)
        for examples in self.hooks("shares_examples"):
            found |= examples(self.task)
        return found

    def receives(self, phase: str, fit: Expected) -> Mapping[str, Layout] | None:
        """What a client may be sent in a phase; None for anything, where the handler checks it."""
        for one in self.parts:
            if hasattr(one, "handlers") and phase in one.handlers() and hasattr(one, "receives"):
                allowed: Mapping[str, Layout] | None = one.receives(phase, fit)
                return allowed
        return fit

    def optional_groups(self, update: Layout) -> list[Collection[str]]:
        """Groups of an update's tensors, each of which a client may leave out as a whole."""
        names = [name for name, _, _ in update]
        return [group for groups in self.hooks("may_leave_out") for group in groups(names)]

    def first_state(self, params: Tensors) -> State:
        """The state before the first round, of the parameters that travel; all that is shared
        beside them is zero."""
        memory = self.server.init(params)
        expected = self._shared_by_parts(params)
        shared = {owner: zeros_of(layout) for owner, layout in expected.items()}
        return State(0, dict(params), shared, {"server": memory} if memory else {})

    def personal_of(self, params: Tensors) -> dict[str, Tensor]:
        """The trained tensors that stay with the clients."""
        return View(keeps=self.personal).kept(params) if self.personal else {}

    def examples(self) -> Examples:
        """The data's examples; those of which the task learns nothing are left out, and told."""
        return load_examples(self.data, self.task)

    def model(self, classes: Sequence[str]) -> nn.Module:
        """The same weights on the server and on every client, frozen ones included."""
        return build_model(self, classes)

    @property
    def unquantized(self) -> "Plan":
        """The same with the base's weights as they are saved."""
        task: Any = self.task
        return replace(self, task=replace(task, quantize=None)) if quantizes(task) else self

    @property
    def of_one_rank(self) -> "Plan":
        """The same with the method's rank for all clients."""
        kept = tuple(one for one in self.routing if not hasattr(one, "ranks"))
        return replace(self, routing=kept)

    @property
    def fingerprint(self) -> str:
        """A name for this experiment: equal plans have equal ones, whatever the engine and its
        patience."""
        settings = {key: x for key, x in settings_of(self).items() if key not in UNNAMED}
        # Not the deadline: what comes out depends on who answered, and not on how long was waited.
        settings["nodes"] = {"names": self.nodes.names}
        text = json.dumps(settings, sort_keys=True, default=str)
        return blake2b(text.encode(), digest_size=8).hexdigest()

    def toml(self) -> str:
        """The whole plan, defaults included, as the text that reads back to it.

        Raises:
          PlanError: a part was given in Python and has no name.
        """
        try:
            return tomli_w.dumps(settings_of(self))
        except TypeError as error:
            raise PlanError(
                "this plan holds what cannot be written to a file, such as data or a function "
                f"given in Python: {error}"
            ) from None


def intersect(
    routes: Sequence[Any], client: ClientId, round: int, clients: Sequence[ClientId]
) -> View:
    """What several views let through; without any, everything."""
    whole = EVERYTHING
    for view in routes:
        whole = whole & view(client, round, clients)
    return whole


def _parts_in(whole: Any) -> Iterator[Any]:
    """The parts in the fields of a dataclass, and those in them."""
    for slot in fields(whole):
        if "kind" not in slot.metadata:
            continue
        value = getattr(whole, slot.name)
        for one in value if isinstance(value, tuple) else (value,):
            yield one
            if is_dataclass(one):
                yield from _parts_in(one)
