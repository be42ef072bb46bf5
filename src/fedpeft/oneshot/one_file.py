"""Which plans one file from each client can carry out."""

from collections.abc import Mapping
from dataclasses import replace

from fedpeft.core.facts import Fact
from fedpeft.errors import PlanError
from fedpeft.exchanges.secure.exchange import Secure
from fedpeft.exchanges.secure.masked_files import MaskedFiles
from fedpeft.exchanges.secure.roster import LEAST
from fedpeft.plan.checks import refuse
from fedpeft.plan.plan import Plan


def check_plan(plan: Plan) -> None:
    """Raises PlanError for a plan that one file from each client cannot carry out."""
    if plan.rounds > 1:
        raise PlanError(
            f"rounds = {plan.rounds}: a file for each client is one round. "
            "Set rounds = 1, and local.epochs to all the epochs that a client is to train for; or "
            "rounds = 0 for a head from sums of features, which nobody trains"
        )
    if plan.asking and plan.rounds:  # before the facts, which name no key of the plan
        raise PlanError(
            'evaluate_at: to ask "owners" takes a second message, and a file for each client is '
            'one. Set evaluate_at = ["server"] here, and invite once more to have the merged model '
            "measured at the owners: with rounds = 0 and --start MERGED"
        )
    if not plan.rounds:
        _check_one_question(plan)
        return
    for one in plan.parts:
        if hasattr(one, "before_rounds"):
            raise PlanError(
                f"{type(one).__name__} asks each client before the first round, and a file for "
                "each is one answer: leave it out, or set rounds = 0 for its head alone"
            )
    refuse(plan, NOT_IN_ONE_FILE)


def _check_one_question(plan: Plan) -> None:
    """Raises PlanError for a plan of no rounds that one file from each client cannot carry out."""
    begins = [one for one in plan.parts if hasattr(one, "before_rounds")]
    asking = [type(one).__name__ for one in (*begins, *plan.asking)]
    if len(asking) != 1:
        raise PlanError(
            f"{' and '.join(asking)} ask one after another, and a file for each client is one "
            "answer: leave all but one of them out"
        )
    # That part is the only one that asks, as nobody trains.
    refuse(plan, {fact: why for fact, why in NOT_IN_ONE_FILE.items() if fact not in OF_ASKING})


def masked(plan: Plan) -> Plan:
    """The plan with a secure sum of one masked file from each owner in the place of one that asks
    several times.

    Its `threshold`, of clients that must answer, becomes the least number of owners.
    """
    own = plan.exchange
    if not isinstance(own, Secure):
        return plan
    least = max(LEAST, own.threshold)
    return replace(
        plan,
        exchange=MaskedFiles(least, own.limit, own.max_norm, own.max_weight, own.bits, own.keys),
    )


NOT_IN_ONE_FILE: Mapping[Fact, str] = {
    Fact.ASYNCHRONOUS: "asynchronous steps are many: leave out fedbuff",
    Fact.HANDS_OVER: "local.as_published hands momentum from client to client, and here each "
    "trains alone",
    Fact.MANY_MESSAGES: "{other} asks each client more than once, and a file for each is one "
    "answer: leave it out",
    Fact.SIMULATES: "{other} {what}, and who hands in a file is real: leave it out",
    Fact.PERSONAL: "personal tensors are for clients that come back for the next round, and there "
    "is none: leave them out",
    Fact.REMEMBERS: "{other} makes clients remember something for the next round, and there is "
    "none: leave out SCAFFOLD or error feedback",
    Fact.SERVER_MODEL: "{other} {what} in later rounds, and a merge of files has none: leave it "
    "out",
    Fact.MIXED_RANKS: "ranks are assigned along the list of all clients, which nobody has yet: "
    "leave them out",
    Fact.MIXED_VIEWS: "{other} {what}, by the list of all clients, which nobody has yet: "
    "leave it out",
    Fact.MIXED_BUDGETS: "tiers are assigned along the list of all clients, which nobody has yet: "
    "leave them out",
    Fact.SERVER_NOISE: "client_dp adds noise whenever files are merged, so that a late client "
    'would make a second release of all the others: take stages = ["local_dp"] or '
    'local = "dp_sgd", whose noise is in the file',
}
"""What one file from each client cannot carry out, and what to do."""
OF_ASKING = (Fact.MANY_MESSAGES,)
"""Of these, what is looked at otherwise in a plan of no rounds."""
