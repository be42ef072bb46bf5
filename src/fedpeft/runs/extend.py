"""More rounds for a run than its plan has."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fedpeft.core.facts import Fact
from fedpeft.errors import RunError, say_count
from fedpeft.plan.checks import refuse
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import plan_at, rounds_to_check
from fedpeft.registry import REGISTERED, Code
from fedpeft.runs.checkpoint import load_checkpoint, save_checkpoint
from fedpeft.runs.folder import RunFolder, lock_run, reopen
from fedpeft.storage.files import write_atomically

NOT_LONGER: Mapping[Fact, str] = {
    Fact.SPANS_ROUNDS: "{other} {what}, such as a local.schedule: with more rounds the ones that "
    "are done would have been others. Begin a new run, or name a plan without a course and begin "
    "with this run's export, by method.init",
}
"""What cannot go on beyond the rounds that its plan has."""


def extend(path: Path, rounds: int, code: Code = REGISTERED) -> None:
    """Give the run in the folder `path` so many rounds in all; in place.

    It is then as if its plan had had them from the beginning. A kill in between is mended by asking
    for the same again.

    Args:
      code: which modules the plan may name.

    Raises:
      RunError: it has no checkpoint, has as many rounds already, was merged, or is of nodes.
      PlanError: what the plan computes in a round depends on how many there are.
    """
    folder, plan = reopen(path, code)
    with lock_run(folder):
        longer = _longer(folder, plan, rounds)
        if rounds == plan.rounds:
            return
        # The old summary goes first: beside the longer plan it would say that the run is finished.
        folder.summary.unlink(missing_ok=True)
        # The checkpoint comes next: with the plan first, who asks again after a kill would find as
        # many rounds as were asked for, and the checkpoint would stay one of another plan.
        _rename_checkpoint(folder, plan, longer)
        write_atomically(folder.plan, longer.toml().encode())


def _longer(folder: RunFolder, plan: Plan, rounds: int) -> Plan:
    """The plan with so many rounds, if the run may have them."""
    if rounds < plan.rounds:
        raise RunError(
            f"--rounds {rounds}: {folder.path} has {plan.rounds} in its plan already; give more"
        )
    if rounds == plan.rounds:
        return plan
    if folder.contributions.is_dir():
        raise RunError(
            f"{folder.path} was merged from files of one round: `fedpeft merge {folder.path} --add "
            "FILE` adds to it"
        )
    if plan.nodes.names is not None or plan.engine == "flower":
        raise RunError(
            f"{folder.path} is of nodes, which agreed to {say_count(plan.rounds, 'rounds')}: "
            "begin a new run, with method.init for what this one learned"
        )
    if plan.private_part is not None:
        raise RunError(
            f"{folder.path} is private, and what it promises is for "
            f"{say_count(plan.rounds, 'rounds')}: begin a new run, "
            "whose plan says how many there are"
        )
    for at in rounds_to_check(plan):
        refuse(plan_at(plan, at), NOT_LONGER)
    refuse(plan, NOT_LONGER)
    return replace(plan, rounds=rounds)


def _rename_checkpoint(folder: RunFolder, plan: Plan, longer: Plan) -> None:
    """Let the checkpoint be one of the longer plan; where a kill came between, it is already."""
    try:
        saved = load_checkpoint(folder.checkpoint, plan)
    except RunError:
        if load_checkpoint(folder.checkpoint, longer) is None:
            raise
        return
    if saved is not None:
        save_checkpoint(
            folder.checkpoint,
            longer,
            saved.state,
            saved.environment,
            saved.privacy,
            saved.commitments,
        )
