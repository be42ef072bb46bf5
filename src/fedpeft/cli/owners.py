"""What `fedpeft evaluate` measures, at the owners too, and how that is seen in the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpeft.errors import say_count

if TYPE_CHECKING:
    from fedpeft.core.interfaces import Store
    from fedpeft.core.types import State
    from fedpeft.plan.plan import Plan
    from fedpeft.rounds.site import Site
    from fedpeft.runs.folder import RunFolder

SHOWN = 40
"""Owners that get a line of their own in the terminal."""


def with_owners(run: Path, plan: "Plan", at_owners: bool, metrics: Sequence[str]) -> "Plan":
    """A run's plan, with what its model is to be measured by.

    Raises:
      RunError: the owners' examples are not on this machine.
      PlanError: the plan hides what owners would tell, or there is no such metric.
    """
    from fedpeft.errors import RunError
    from fedpeft.oneshot.merge import is_merged
    from fedpeft.registry import build

    known = {type(metric) for metric in plan.metrics}
    asked = [build("metric", name) for name in dict.fromkeys(metrics)]
    further = tuple(one for one in asked if type(one) not in known)
    plan = replace(plan, metrics=(*plan.metrics, *further))
    if not at_owners:
        return plan
    if is_merged(run) or plan.nodes.names is not None:
        raise RunError(
            f"the examples of {run}'s owners lie with them, and this command asks only clients of "
            f"a simulation: {_how_to_ask(run, plan, is_merged(run))}"
        )
    if plan.asking:
        return plan
    return replace(plan, evaluate_at=(*plan.evaluate_at, build("evaluation", "owners")))


def _how_to_ask(run: Path, plan: "Plan", by_file: bool) -> str:
    """How owners that are elsewhere are asked, in words."""
    heads = " --set 'algorithms=[]'" if plan.hooks("before_rounds") else ""
    asking = f"--start {run} --set rounds=0 --set 'evaluate_at=[\"owners\"]'{heads}"
    if by_file:
        return (
            "invite them to send a file of counts, and merge these files (`fedpeft invite "
            f"{run / 'plan.toml'} {asking} -o measuring`)"
        )
    return (
        'give the nodes a plan with rounds = 0 and evaluate_at = ["owners"], and run it with '
        f"--start {run}"
    )


def measure_examples(
    folder: "RunFolder",
    site: "Site",
    state: "State",
    store: "Store",
    per_client: bool,
    at_owners: bool,
) -> dict[str, Any]:
    """The metrics on held-out examples and, where that is asked for, of each client."""
    from fedpeft.core.units import finite_or_none
    from fedpeft.evaluation.own_held_out import measure_held_out, over_clients, own_held_out

    found: dict[str, Any] = {"held_out": finite_or_none(measure_held_out(site, state, store))}
    if per_client:
        spread = over_clients(site, state, store)
        found["clients"] = {name: finite_or_none(values) for name, values in spread.items()}
        found["own_held_out"] = own_held_out(site, state, store)
    if at_owners:
        found["owners"] = _ask(folder, site, state, store)
    return found


def _ask(folder: "RunFolder", site: "Site", state: "State", store: "Store") -> dict[str, Any]:
    """What the owners measure; also kept in the run's folder, for the report."""
    from fedpeft.engines.inprocess import InProcess
    from fedpeft.rounds.loop import ask_owners
    from fedpeft.runs.folder import write_json

    ledger = ask_owners(site.plan, InProcess(site, store), state)
    told: dict[str, Any] = ledger.reports["owners"]
    write_json(folder.owners, {"round": state.round, **told})
    return told


def owner_lines(told: Mapping[str, Any] | None, most: int = SHOWN) -> Iterator[str]:
    """A line a metric, one an owner, of `most` of them, and who is left out; values that have a
    95 % interval have it in brackets."""
    if told is None:
        return
    examples, metrics = told["examples"], told["metrics"]
    counted = say_count(sum(examples.values()), "held-out examples")
    yield f"at {say_count(len(examples), 'owners')}, on {counted} of theirs"
    most_letters = max([12, *(len(name) + 2 for name in metrics)])
    for name, found in metrics.items():
        yield (
            f"  {name:<{most_letters}}mean {_show(found['mean'])}   "
            f"worst tenth {_show(found['worst_tenth'])}"
            f"   all together {_show(found['pooled'], found['interval'])}"
        )
    width = max(map(len, examples), default=0)
    for client, count in list(examples.items())[:most]:
        values = (
            f"{name} {_show(found['each'][client], found['intervals'].get(client))}"
            for name, found in metrics.items()
        )
        yield f"    {client:<{width}}  {'   '.join(values)}   {say_count(count, 'examples')}"
    if len(examples) > most:
        yield f"    and {len(examples) - most:,} more owners, which --json lists"
    if without := told["without"]:
        yield f"  {say_count(len(without), 'owners have no held-out examples')}: {_some(without)}"
    if missing := {**told["failed"], **told["not_asked"]}:
        client, reason = next(iter(missing.items()))
        yield f"  {say_count(len(missing), 'owners')} did not answer, first {client}: {reason}"
    yield f"  {told['bytes_up']:,} bytes came up and {told['bytes_down']:,} went down"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _show(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "no value"
    return f"{value:.4f} ({interval[0]:.4f} to {interval[1]:.4f})" if interval else f"{value:.4f}"
