"""What contributions come to: a run's folder of one round, and how each arrival changes the
model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from shutil import rmtree
from typing import Any

from fedpeft.compute.frozen_linear import prepare_frozen
from fedpeft.core.interfaces import Data
from fedpeft.core.types import Batch, ClientId, Failure, Job, Reply
from fedpeft.core.units import finite_or_none
from fedpeft.data.client_data import Partitioned
from fedpeft.errors import DataError, RunError
from fedpeft.evaluation.measure import measure
from fedpeft.oneshot.contribute import in_order
from fedpeft.oneshot.contribution import Contribution
from fedpeft.oneshot.invitation import Invitation, base_fingerprint
from fedpeft.plan.plan import Plan
from fedpeft.results.exhibit import draws, exhibit_at_end
from fedpeft.rounds.loop import federate
from fedpeft.rounds.site import Site
from fedpeft.runs.checkpoint import save_checkpoint
from fedpeft.runs.environment import environment
from fedpeft.runs.execute import execute
from fedpeft.runs.folder import create, write_json
from fedpeft.runs.summary import summarize

ARRIVALS = "arrivals.json"


@dataclass(frozen=True)
class Answered:
    """An engine whose clients have answered already."""

    frames: Mapping[ClientId, bytes]

    @classmethod
    def of(cls, every: Sequence[Contribution]) -> "Answered":
        return cls({one.header.client: one.frame for one in every})

    @property
    def clients(self) -> Sequence[ClientId]:
        return sorted(self.frames)

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for job in jobs:
            yield Reply(job.client, self.frames[job.client])


@dataclass(frozen=True)
class Contributors:
    """Who sent a file; nobody's training examples are here.

    Attributes:
      sizes: 0 where a private plan does not tell.
      test: the server's own held-out examples, if it has some.
    """

    sizes: Mapping[ClientId, int]
    test: Data | None = None

    @property
    def clients(self) -> Sequence[ClientId]:
        return sorted(self.sizes)

    def size(self, client: ClientId) -> int:
        return self.sizes[client]

    def batches(self, *_: Any) -> Iterator[Batch]:
        raise DataError("the examples of contributors lie with them")

    def chosen(self, *_: Any) -> Batch:
        raise DataError("the examples of contributors lie with them")

    def training(self, *_: Any) -> Iterator[Batch]:
        raise DataError("the examples of contributors lie with them")

    def held_out(self, client: ClientId | None = None) -> Any:
        return () if self.test is None or client is not None else self.test.held_out()


def write_run(
    folder: Path, study: Invitation, every: Sequence[Contribution], evaluate: bool
) -> dict[str, Any]:
    """Everything that a run has, into an empty folder; returns the summary.

    The order of `every` is that of arrival, and shows in the curve alone.

    Raises:
      RunError: too few contributions for the plan, or the base model here is not the study's.
      DataError: the held-out examples cannot be read.
    """
    plan = _plan(study, len(every))
    site = _site(plan, study, every, evaluate)
    run = create(plan, folder)
    sizes = {
        one.header.client: one.header.examples
        for one in sorted(every, key=lambda one: one.header.client)
    }
    write_json(
        run.partition,
        {"fingerprint": None, "clients": len(every), "size": sizes, "classes": plan.classes},
    )
    save_checkpoint(run.checkpoint, plan, study.state, environment(plan, site.device))
    [record] = execute(run, site, Answered.of(every))
    if record.failed or record.note:
        raise RunError("; ".join(filter(None, [record.note, *record.failed.values()])))
    rmtree(run.clients, ignore_errors=True)
    # The noise of a private plan is in the files: here none was drawn.
    run.secrets[0].unlink(missing_ok=True)
    if evaluate:
        write_json(folder / ARRIVALS, {"arrivals": list(_arrivals(site, study, every))})
    summary = summarize(run, site)
    summary |= _updates(plan, record.clients)
    if evaluate and draws(plan) and (failed := exhibit_at_end(run, plan)):
        getLogger("fedpeft").warning(failed)
    return summary


def _updates(plan: Plan, clients: Mapping[ClientId, Mapping[str, Any]]) -> dict[str, int]:
    """How many updates are in a masked sum, where its weight tells: owners that withdrew add
    none."""
    if not plan.exchange.sums or plan.weighting != "uniform":
        return {}
    return {"updates": round(sum(one["weight"] for one in clients.values()))}


def _plan(study: Invitation, clients: int) -> Plan:
    """For so many clients, whose lengths and weights the merge's own rules have judged already."""
    anything = replace(study.plan.admission, norm_factor=float("inf"), weight_factor=float("inf"))
    return replace(study.plan, cohort=clients, admission=anything)


def _site(plan: Plan, study: Invitation, every: Sequence[Contribution], evaluate: bool) -> Site:
    model = plan.model(plan.classes)
    if (own := base_fingerprint(plan, model)) != study.terms.base:
        raise RunError(
            f"the base model here ({own}) is not the one invited with ({study.terms.base}): take "
            "that one"
        )
    test: Data | None = None
    if evaluate:
        examples = in_order(plan.examples(), plan.classes, "the plan's data")
        test = Partitioned(plan.task, {}, plan.task.prepare(examples.test), {})
    prepare_frozen(model, plan.method.names(model), plan.compute.base_dtype, plan.compute.pack)
    sizes = {one.header.client: one.header.examples or 0 for one in every}
    return Site(plan, model, Contributors(sizes, test), plan.classes)


def _arrivals(
    site: Site, study: Invitation, every: Sequence[Contribution]
) -> Iterator[dict[str, Any]]:
    """What is measured before the first arrival and after each, in the order of `every`."""
    yield {"client": None, "held_out": finite_or_none(measure(site, study.state.flat))}
    if site.plan.exchange.sums:  # of fewer files the sum is noise
        [(state, _)] = federate(site.plan, Answered.of(every), study.state)
        yield {"client": "(all)", "held_out": finite_or_none(measure(site, state.flat))}
        return
    for number, one in enumerate(every, 1):
        plan = _plan(study, number)
        [(state, _)] = federate(plan, Answered.of(every[:number]), study.state)
        yield {
            "client": one.header.client,
            "examples": one.header.examples,
            "weight": one.weight,
            "norm": one.length,
            "held_out": finite_or_none(measure(site, state.flat)),
        }
