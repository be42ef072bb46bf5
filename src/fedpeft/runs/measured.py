"""What is measured once a run is at its end: by client, and what it began with."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedpeft.core.units import finite_or_none, is_less_better
from fedpeft.evaluation.client_accuracy import client_accuracy
from fedpeft.evaluation.client_model import has_one_model
from fedpeft.evaluation.own_held_out import hides_clients, measure_held_out, own_held_out
from fedpeft.rounds.loop import start
from fedpeft.rounds.site import Site
from fedpeft.runs.beginning import started_from
from fedpeft.runs.checkpoint import Checkpoint
from fedpeft.runs.folder import RunFolder
from fedpeft.storage.client_memory import Folder


def measure_clients(folder: RunFolder, site: Site, saved: Checkpoint | None) -> dict[str, Any]:
    """Nothing before the first round, and where something is private: what a client has of each
    class shows in it, and what its examples are like."""
    if saved is None or hides_clients(site.plan):
        return {"client_accuracy": None}
    store = Folder(folder.clients)
    found: dict[str, Any] = {"client_accuracy": client_accuracy(site, saved.state, store)}
    if (own := own_held_out(site, saved.state, store)) is not None:
        found["own_held_out"] = own
    return found


def measure_start(
    folder: RunFolder, site: Site, rounds: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The held-out metrics of what a run began with, and the number of rounds done then.

    Where they cannot be measured here, they are those of the first round that was measured: owners
    measured it, or each client has a model of its own. None where no round was measured.
    """
    measured = [r for r in rounds if r["held_out"]]
    if not measured:
        return None
    plan = site.plan
    if not plan.measured_here or not has_one_model(plan) or hasattr(plan.local, "own_model"):
        return {"round": measured[0]["round"], "metrics": measured[0]["held_out"]}
    fresh = started_from(folder, plan, start(plan, site.params()))
    found = measure_held_out(site, fresh, Folder(folder.clients))
    return {"round": 0, "metrics": finite_or_none(found)}


def ended_worse(summary: Mapping[str, Any]) -> str:
    """In words, with both numbers, that a finished run is worse than what it began with; empty if
    it is not, or if nobody knows."""
    begun, last = summary.get("start"), summary.get("held_out_last")
    if not begun or not last:
        return ""
    name = next((name for name in last if name != "loss"), "loss")
    before, after = begun["metrics"].get(name), last[name]
    if before is None or not is_worse(name, after, before):
        return ""
    when = f"after round {begun['round']}" if begun["round"] else "at its start"
    shown = "not finite" if after is None else f"{after:.4f}"
    return (
        f"the run ended worse than it began: {name} is {shown} at its end and was {before:.4f} "
        f"{when}; a smaller local.lr is the first thing to try"
    )


def is_worse(name: str, after: float | None, before: float) -> bool:
    """Whether a metric got worse; one that is not finite any more did."""
    if after is None:
        return True
    return after > before if is_less_better(name) else after < before
