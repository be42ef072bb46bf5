"""A run that begins with what another run came to, in the place of the method's own start."""

from dataclasses import replace
from logging import getLogger
from pathlib import Path

from fedpeft.core.low_rank import EXACT
from fedpeft.core.types import State
from fedpeft.errors import RunError
from fedpeft.plan.plan import Plan
from fedpeft.registry import OWN
from fedpeft.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedpeft.runs.folder import RunFolder, reopen


def keep_start(folder: RunFolder, plan: Plan, run: Path) -> None:
    """Put into a new run's folder what it begins with: the parameters of the last checkpoint of
    `run`, and what its rounds added to frozen weights. What servers and clients remember begins
    afresh.

    Raises:
      RunError: there is no such run, or no round of it is done.
    """
    begun = _result_of(run, plan)
    save_checkpoint(folder.start, plan, begun.state, begun.environment)


def started_from(folder: RunFolder, plan: Plan, fresh: State) -> State:
    """The state before a run's first round: the plan's own, or what was put into its folder.

    Raises:
      RunError: what was put there has other tensors than the plan's model.
    """
    begun = load_checkpoint(folder.start, plan)
    return fresh if begun is None else _replaced(fresh, begun.state, folder.path)


def begin_with(plan: Plan, fresh: State, run: Path) -> State:
    """The state before the first round of a plan that begins with what `run` came to.

    Raises:
      RunError: there is no such run, no round of it is done, or it has other tensors than the
        plan's model.
    """
    return _replaced(fresh, _result_of(run, plan).state, "this plan")


def _result_of(run: Path, plan: Plan) -> Checkpoint:
    """What a run came to, as what another one begins with."""
    other, its_plan = reopen(run, OWN)
    saved = load_checkpoint(other.checkpoint, its_plan)
    if saved is None:
        raise RunError(f"--start {run}: it has no checkpoint yet, as no round of it is done")
    _warn_of_other_parts(run, plan, its_plan)
    added = {owner: own for owner, own in saved.state.shared.items() if owner == EXACT}
    return replace(saved, state=State(0, saved.state.params, added))


def _warn_of_other_parts(run: Path, plan: Plan, its_plan: Plan) -> None:
    """Tell where owners would be measured on examples that they trained on: which ones they set
    apart follows from the seed and the partition."""
    if plan.asking and (plan.seed, plan.partition) != (its_plan.seed, its_plan.partition):
        getLogger("fedpeft").warning(
            "--start %s: its plan has another seed or partition than this one, so owners set other "
            "examples apart (partition.held_out), and may be measured on some that they trained "
            "on. Owners with a test split of their own are not concerned",
            run,
        )


def _replaced(fresh: State, begun: State, who: object) -> State:
    """The state before the first round, with the parameters of another run.

    Raises:
      RunError: they have other names or shapes.
    """
    shapes = [{n: x.shape for n, x in of.params.items()} for of in (begun, fresh)]
    if shapes[0] != shapes[1]:
        raise RunError(
            f"{who} cannot begin with the run that --start names: it trained "
            f"{len(shapes[0])} tensors and this plan trains {len(shapes[1])}, or their names or "
            "shapes differ. Take a run of the same model, method and labels"
        )
    return replace(fresh, params=begun.params, shared={**fresh.shared, **begun.shared})
