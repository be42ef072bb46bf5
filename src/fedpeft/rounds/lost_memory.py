"""Whether a client that goes on has lost what it remembered."""

from collections.abc import Mapping

from fedpeft.core.types import Tensors
from fedpeft.errors import RunError
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import plan_at
from fedpeft.plan.values import remembers_training
from fedpeft.rounds.answering import Client


def check_memory(memory: Mapping[str, Tensors], client: Client, plan: Plan) -> None:
    """Make sure that a client does not start afresh in the middle of a run.

    Args:
      memory: what it is to remember of this round, by owner.
      client: with what it remembered before.
      plan: of all rounds.

    Raises:
      RunError: it remembers nothing of the last round in which it took part, and would now.
    """
    last = client.job.accepted
    if last is None or client.memory or not any(memory.values()):
        return
    # A phase of the plan may have had nothing to remember: then there was nothing to lose.
    if not plan.changes or remembers_training(plan_at(plan, last)):
        raise RunError(f"its memory of round {last} is gone: it would start afresh, unseen")
