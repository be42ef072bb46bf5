"""The clients of a round trained together, in one pass through the base that they share.

It equals one after another except for rounding: 1e-4 of a client's change in float32. AdamW makes
whole steps of rounding where a true gradient is zero, as that of attention's key biases is; those
differ more, and the model's outputs do not. What cannot be stacked is trained one after another,
with one line in the log that says why.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from logging import getLogger

from torch.nn.modules.batchnorm import _BatchNorm

from fedpeft.compute.device_memory import available
from fedpeft.core.interfaces import Local, Store
from fedpeft.core.types import ClientId, Failure, Job, Reply, Tensors
from fedpeft.engines.vectorized.stacks import Stacks, Trainee
from fedpeft.plan.plan import Plan
from fedpeft.rounds.client import ClientRound, Trained, Worker
from fedpeft.rounds.site import Site, open_site, threads
from fedpeft.storage.client_memory import Nowhere

MOST = 256
"""Clients opened at once; beyond it a larger stack saves no more."""
HELD = 10
"""Copies of its tensors that a client holds at most: received, trained, moments, gradient, all but
the first twice."""
SHARE = 0.25
"""Of the memory that is there, what these may take."""
HEAVY, LIGHT = 0.25, 300_000
"""The share of a model's weights that may be trained, unless they are few: products with a client's
own weights gain nothing in a stack, and cost memory."""


@dataclass(eq=False)
class Cohort:
    """Lazy by chunks: as many clients as memory has room for train when the first one's reply is
    asked for.

    Attributes:
      site: a plan will do; its data and model are then loaded here.
      store: where clients' memory lives; needed by error feedback and SCAFFOLD.
      alone: why clients train one after another; empty while they do not.
    """

    site: Site
    store: Store = field(default_factory=Nowhere)
    alone: str = field(init=False, default="")
    worker: Worker = field(init=False)
    stacks: Stacks = field(init=False)

    def __post_init__(self) -> None:
        self.worker = Worker(self.site, self.store)
        self.stacks = Stacks(self.site)
        if reason := unfit(self.site):
            self._give_up(reason)

    @classmethod
    def of(cls, plan: Plan, store: Store | None = None) -> "Cohort":
        """Load what the plan names, then as above."""
        return cls(open_site(plan), store or Nowhere())

    @property
    def clients(self) -> Sequence[ClientId]:
        return self.site.data.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        """The replies in the order of the jobs.

        Raises:
          StoreError: the disk fails under the clients' memory.
        """
        waiting = deque(jobs)
        while waiting:
            if self.alone:
                yield self.worker(waiting.popleft())
                continue
            opened = self._opened(waiting)
            trained = self._trained([one for one in opened if isinstance(one, ClientRound)])
            for one in opened:
                yield (
                    self.worker.close(one, next(trained).result)
                    if isinstance(one, ClientRound)
                    else one
                )

    def _opened(self, waiting: deque[Job]) -> list[ClientRound | Reply | Failure]:
        """A chunk of the jobs."""
        opened: list[ClientRound | Reply | Failure] = []
        most = MOST
        while waiting and len(opened) < most:
            one = self.worker.open(waiting.popleft())
            if isinstance(one, ClientRound) and not opened:
                most = room(one.start, available(self.site.device))
            opened.append(one)
        return opened

    def _trained(self, opened: Sequence[ClientRound]) -> "Iterator[Outcome]":
        stacks, outcomes = self.stacks, [Outcome() for _ in opened]
        trainees: dict[Trainee, Outcome] = {}
        with threads(self.site.plan.compute.threads):
            for one, outcome in zip(opened, outcomes, strict=True):
                with outcome:
                    trainees[stacks.begin(one)] = outcome
            left = set(stacks.train(list(trainees)))
            ends = stacks.together([trainee for trainee in trainees if trainee not in left])
            for trainee, outcome in trainees.items():
                with outcome:
                    alone = self.worker.alone if trainee in left else None
                    outcome.trained = (
                        alone(trainee.opened)
                        if alone
                        else ends.get(trainee) or stacks.finish(trainee)
                    )
        # Who fails alone too has an error of its own, which is no reason to stack nobody any more.
        if left and all(trainees[trainee].error is None for trainee in left):
            self._give_up(stacks.why)
        return iter(outcomes)

    def _give_up(self, reason: str) -> None:
        self.alone = reason
        getLogger("fedpeft").warning("the cohort's clients train one after another: %s", reason)

    def close(self) -> None:
        """Nothing is held beyond this object."""


@dataclass(eq=False)
class Outcome:
    """What came of one client's training, or what went wrong: kept until its turn to answer."""

    trained: Trained | None = None
    error: Exception | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):  # parts that users write may raise anything
            self.error = error
        return isinstance(error, Exception)

    def result(self) -> Trained:
        """The training, or its error raised."""
        if self.error is not None:
            raise self.error
        assert self.trained is not None
        return self.trained


def room(start: Tensors, free: int) -> int:
    """How many clients that begin with such tensors may be open at once, with so many bytes
    free."""
    each = HELD * sum(x.nbytes for x in start.values())
    return max(1, min(MOST, int(SHARE * free) // max(1, each)))


def _unfit_plan(plan: Plan) -> str:
    """Why no client of a plan can be stacked; empty if they can."""
    if plan.changes:
        return "its plan changes from round to round"
    if plan.compute.micro_batch or plan.compute.checkpointing:
        return "compute.micro_batch and compute.checkpointing are for one client at a time"
    return _unfit_local(plan.local)


def _unfit_local(local: Local) -> str:
    """Why no client can be stacked that trains so; empty if they can."""
    if local.event:
        return f"{type(local).__name__} takes gradients example by example"
    reason: str = getattr(local, "trains_alone", "")
    return reason


def unfit(site: Site) -> str:
    """Why the clients of a site cannot be stacked, as far as that can be told beforehand; empty if
    they can."""
    if reason := _unfit_plan(site.plan):
        return reason
    names = site.plan.method.names(site.model)
    parameters = dict(site.model.named_parameters())
    layers = [name for name, module in site.model.named_modules() if isinstance(module, _BatchNorm)]
    if layers or not set(names) <= parameters.keys():
        name = layers[0] if layers else names[-1]
        return f"{name!r} takes statistics over a batch, whose rows must be its own"
    whole = sum(x.numel() for x in parameters.values())
    own = sum(parameters[name].numel() for name in names)
    if own > max(HEAVY * whole, LIGHT):
        return (
            f"{own:,} of the model's {whole:,} weights are each client's own, "
            "so that little is shared"
        )
    return ""
