"""What a run is measured on, wherever its clients' examples lie."""

from pathlib import Path

from fedpeft.oneshot.merge import is_merged
from fedpeft.plan.plan import Plan
from fedpeft.rounds.absent import absent_site, held_out_of
from fedpeft.rounds.site import Site
from fedpeft.runs.execute import check_device, open_run_site


def measured_site(run: Path, plan: Plan, device: str = "cpu") -> Site:
    """A run's data and model. Where its clients' examples lie elsewhere, those that the plan's data
    hold out are all that is there.

    Raises:
      DataError, PlanError: what is wrong with the data, the plan or the device.
    """
    if not elsewhere(run, plan):
        return open_run_site(plan, device)
    check_device(device)
    test = held_out_of(plan, device)
    return absent_site(plan, plan.model(plan.classes), {}, test, device)


def elsewhere(run: Path, plan: Plan) -> str:
    """What a run is whose clients' examples lie with them; "" where they are here."""
    if is_merged(run):
        return "was merged from files"
    return "is of nodes with data of their own" if plan.nodes.names is not None else ""
