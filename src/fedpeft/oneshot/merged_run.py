"""What contributions come to: a run's folder of one round, and how each arrival changes the
model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from shutil import rmtree
from typing import Any

from fedpeft.core.types import ClientId, Failure, Job, Reply
from fedpeft.core.units import finite_or_none
from fedpeft.errors import PlanError, RunError
from fedpeft.evaluation.measure import measure
from fedpeft.oneshot.contribution import Contribution
from fedpeft.oneshot.invitation import Invitation, base_fingerprint
from fedpeft.plan.plan import Plan
from fedpeft.results.kept_examples import keep_examples
from fedpeft.rounds.absent import absent_site, held_out_of
from fedpeft.rounds.loop import federate, unmeasured
from fedpeft.rounds.site import Site
from fedpeft.runs.checkpoint import save_checkpoint
from fedpeft.runs.environment import environment
from fedpeft.runs.execute import execute
from fedpeft.runs.folder import create, write_json
from fedpeft.runs.summary import summarize


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


def write_run(
    folder: Path, study: Invitation, every: Sequence[Contribution], evaluate: bool
) -> dict[str, Any]:
    """Everything that a run has, into an empty folder; returns the summary.

    The order of `every` is that of arrival, and shows in the curve alone.

    Raises:
      RunError: too few contributions for the plan, or the base model here is not the study's.
      DataError: the held-out examples cannot be read.
      PlanError: `evaluate`, of files that change no model.
    """
    _check_number(study, len(every))
    plan = _plan(study, len(every))
    if evaluate and plan.asking:
        raise PlanError(
            "--evaluate shows what each file adds to the model, and these files measure a model "
            "that none of them changes: leave it out"
        )
    site = _site(plan, study, every, evaluate)
    run = create(plan, folder)
    write_json(run.partition, _division(plan, every))
    # So the run goes on from the invitation's tensors, and not from those that the model has here.
    save_checkpoint(run.start, plan, study.state, environment(plan, site.device))
    [record] = execute(run, site, Answered.of(every))
    missing = [*record.failed.values(), *unmeasured(plan, record.reports).values()]
    if missing or record.note:
        raise RunError("; ".join(filter(None, [record.note, *missing])))
    rmtree(run.clients, ignore_errors=True)
    # The noise of a private plan is in the files: here none was drawn.
    run.secrets[0].unlink(missing_ok=True)
    if evaluate:
        write_json(run.arrivals, {"arrivals": list(_arrivals(site, study, every))})
    summary = summarize(run, site)
    summary |= _updates(plan, record.clients)
    if evaluate and (words := keep_examples(run, site)):
        getLogger("fedpeft").warning(words)
    return summary


def _division(plan: Plan, every: Sequence[Contribution]) -> dict[str, Any]:
    """What the files say of their clients' data, as far as it is told."""
    headers = sorted((one.header for one in every), key=lambda header: header.client)
    division = {
        "fingerprint": None,
        "clients": len(every),
        # What a file that measures tells is of its held-out examples alone.
        "size": {one.client: None if plan.asking else one.examples for one in headers},
        "classes": plan.classes,
    }
    reads = {header.client: header.reads for header in headers if header.reads}
    for client, lines in reads.items():
        getLogger("fedpeft").warning("%s: %s", client, "; ".join(lines))
    return {**division, "reads": reads} if reads else division


def _updates(plan: Plan, clients: Mapping[ClientId, Mapping[str, Any]]) -> dict[str, int]:
    """How many updates are in a masked sum, where its weight tells: owners that withdrew add
    none."""
    if not plan.exchange.sums or plan.weighting != "uniform":
        return {}
    return {"updates": round(sum(one["weight"] for one in clients.values()))}


def _plan(study: Invitation, clients: int) -> Plan:
    """For so many clients, whose lengths and weights the merge's own rules have judged already.

    How many must reply is judged once, of all files: the curve of arrivals begins with one.
    """
    rules = study.plan.admission
    anything = replace(
        rules,
        norm_factor=float("inf"),
        weight_factor=float("inf"),
        min_replies=min(rules.min_replies, clients),
    )
    return replace(study.plan, cohort=clients, admission=anything)


def _check_number(study: Invitation, clients: int) -> None:
    least = study.plan.admission.min_replies
    if clients < least:
        raise RunError(
            f"{clients} of at least {least} files: the plan wants replies of so many clients "
            "(admission.min_replies), and fewer are not merged"
        )


def _site(plan: Plan, study: Invitation, every: Sequence[Contribution], evaluate: bool) -> Site:
    model = plan.model(plan.classes)
    if (own := base_fingerprint(plan, model)) != study.terms.base:
        raise RunError(
            f"the base model here ({own}) is not the one invited with ({study.terms.base}): take "
            "that one"
        )
    sizes = {one.header.client: one.header.examples or 0 for one in every}
    return absent_site(plan, model, sizes, held_out_of(plan) if evaluate else None)


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
