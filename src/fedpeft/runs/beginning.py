"""A run that begins with what another run came to, in the place of the method's own start."""

from dataclasses import replace
from pathlib import Path

from fedpeft.core.low_rank import EXACT
from fedpeft.core.types import State
from fedpeft.errors import RunError
from fedpeft.plan.plan import Plan
from fedpeft.registry import OWN
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.folder import RunFolder, reopen


def keep_start(folder: RunFolder, plan: Plan, run: Path) -> None:
    """Put into a new run's folder what it begins with: the parameters of the last checkpoint of
    `run`, and what its rounds added to frozen weights. What servers and clients remember begins
    afresh.

    Raises:
      RunError: there is no such run, or no round of it is done.
    """
    other, its_plan = reopen(run, OWN)
    saved = load_checkpoint(other.checkpoint, its_plan)
    if saved is None:
        raise RunError(f"--start {run}: it has no checkpoint yet, as no round of it is done")
    added = {owner: own for owner, own in saved.state.shared.items() if owner == EXACT}
    begun = State(0, saved.state.params, added)
    save_checkpoint(folder.start, plan, begun, saved.environment)


def started_from(folder: RunFolder, plan: Plan, fresh: State) -> State:
    """The state before a run's first round: the plan's own, or what was put into its folder.

    Raises:
      RunError: what was put there has other tensors than the plan's model.
    """
    begun = load_checkpoint(folder.start, plan)
    if begun is None:
        return fresh
    shapes = [{n: x.shape for n, x in of.params.items()} for of in (begun.state, fresh)]
    if shapes[0] != shapes[1]:
        raise RunError(
            f"{folder.path} cannot begin with the run that --start names: it trained "
            f"{len(shapes[0])} tensors and this plan trains {len(shapes[1])}, or their names or "
            "shapes differ. Take a run of the same model, method and labels"
        )
    shared = {**fresh.shared, **begun.state.shared}
    return replace(fresh, params=begun.state.params, shared=shared)
