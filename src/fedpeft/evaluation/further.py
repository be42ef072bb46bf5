"""The metrics that a plan asks for beside its task's own, on the server's held-out examples."""

from collections.abc import Callable, Mapping, Sequence

from fedpeft.compute.held_out import HeldOut, score_held_out, tells_classes
from fedpeft.compute.scores import conclude, evaluate
from fedpeft.compute.tally import EXAMPLES, counts_of
from fedpeft.core.tensors import add
from fedpeft.core.types import ClientId, Tensors, Weighted
from fedpeft.evaluators.owner_table import values_of
from fedpeft.rounds.site import Site, threads


def measure_further(
    site: Site, params_of: Callable[[ClientId | None], Tensors], held: Sequence[ClientId | None]
) -> dict[str, float]:
    """The task's metrics and the plan's, which are exact here: each example's scores are at hand.

    A model that gives no numbers has the task's metrics alone.

    Args:
      params_of: the tensors to measure on the examples that a client holds out, as they lie on the
        site's device.
      held: whose examples are measured, all as one set; None for the common ones.
    """
    try:
        return _measure_all(site, params_of, held)
    except ArithmeticError:
        totals = dict[str, Weighted]()
        with threads(site.plan.compute.threads):
            for client in held:
                batches = map(site.on_device, site.data.held_out(client))
                found = evaluate(site.task, site.model, params_of(client), batches)
                totals = add_totals(totals, found)
        return conclude(site.task, totals)


def _measure_all(
    site: Site, params_of: Callable[[ClientId | None], Tensors], held: Sequence[ClientId | None]
) -> dict[str, float]:
    plan = site.plan
    classes = tuple(site.classes) if tells_classes(plan.task) else ()
    whole: HeldOut | None = None
    with threads(plan.compute.threads):
        for client in held:
            found = score_held_out(
                site.task,
                site.model,
                params_of(client),
                map(site.on_device, site.data.held_out(client)),
                len(classes),
                plan.metrics_read,
                keep_scores=True,
            )
            whole = found if whole is None else _together(whole, found)
    if whole is None or not int(whole.tally[EXAMPLES]):
        return {}
    counts = counts_of(whole.tally, whole.totals, classes, whole.scores)
    return values_of(counts, plan.metrics, plan.task)


def _together(one: HeldOut, other: HeldOut) -> HeldOut:
    return HeldOut(
        add(one.tally, other.tally),
        add_totals(one.totals, other.totals),
        [*one.scores, *other.scores],
    )


def add_totals(one: Mapping[str, Weighted], other: Mapping[str, Weighted]) -> dict[str, Weighted]:
    """The sums of two sets of examples; of one where the other is empty."""
    if not one or not other:
        return dict(one or other)
    return {name: x + other[name] for name, x in one.items()}
