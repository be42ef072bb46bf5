"""The metrics that a plan asks for beside its task's own, on the server's held-out examples."""

from fedpeft.compute.held_out import score_held_out, tells_classes
from fedpeft.compute.scores import conclude, evaluate
from fedpeft.compute.tally import EXAMPLES, counts_of
from fedpeft.core.types import Tensors
from fedpeft.evaluators.owner_table import values_of
from fedpeft.rounds.site import Site, threads


def measure_further(site: Site, own: Tensors) -> dict[str, float]:
    """The task's metrics and the plan's, which are exact here: each example's scores are at hand.

    A model that gives no numbers has the task's metrics alone.
    """
    plan = site.plan
    classes = tuple(site.classes) if tells_classes(plan.task) else ()
    batches = map(site.on_device, site.data.held_out())
    with threads(plan.compute.threads):
        try:
            found = score_held_out(
                site.task,
                site.model,
                own,
                batches,
                len(classes),
                plan.metrics_read,
                keep_scores=True,
            )
        except ArithmeticError:
            again = map(site.on_device, site.data.held_out())
            totals = evaluate(site.task, site.model, own, again)
            return conclude(site.task, totals)
    if not int(found.tally[EXAMPLES]):
        return {}
    return values_of(
        counts_of(found.tally, found.totals, classes, found.scores), plan.metrics, plan.task
    )
