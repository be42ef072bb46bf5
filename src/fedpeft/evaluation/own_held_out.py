"""How well each client's model does on the client's own examples: those that it holds out, and
those that it trains on."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

from fedpeft.compute.scores import conclude, evaluate
from fedpeft.core.interfaces import Store
from fedpeft.core.types import ClientId, State, Tensors, Weighted
from fedpeft.core.units import finite_or_none, is_less_better
from fedpeft.data.client_data import Partitioned
from fedpeft.evaluation.client_model import client_params, on_site
from fedpeft.evaluation.further import add_totals, measure_further
from fedpeft.evaluation.measure import held_out, measure
from fedpeft.plan.plan import Plan
from fedpeft.rounds.site import Site, threads


def own_held_out(site: Site, state: State, store: Store) -> dict[str, Any] | None:
    """By metric, over the clients that have held-out examples of their own.

    `mean` counts each client once, and `weighted` by its number of examples (of tokens, where a
    metric is a mean over tokens). `worst_tenth` is the mean of the tenth of the clients that does
    worst, at least one; losses and perplexities are worst where they are high. `each` has every
    client's value and `examples` its number of examples. With personal tensors each client is
    measured with its own.

    Returns None where no client has such examples.
    """
    examples = _own_examples(site)
    if not examples:
        return None
    found = {client: _measure(site, state, store, client) for client in examples}
    values = {client: conclude(site.task, sums) for client, sums in found.items()}
    whole = conclude(site.task, reduce(add_totals, found.values()))
    by_metric = {
        name: _over_clients({client: one[name] for client, one in values.items()}, weighted, name)
        for name, weighted in whole.items()
    }
    return {"examples": examples, "metrics": by_metric}


def measure_held_out(site: Site, state: State, store: Store) -> dict[str, float]:
    """The task's metrics on the common held-out examples.

    Where there are none, they are those on the examples that clients hold out themselves, all
    together, each with its client's model; nothing where a plan hides what clients have.
    """
    found = held_out(site, state, store)
    if found or hides_clients(site.plan):
        return found
    clients = [*_own_examples(site)]
    if site.plan.metrics and clients:
        return measure_further(site, lambda client: _params(site, state, store, client), clients)
    totals: Mapping[str, Weighted] = {}
    for client in clients:
        totals = add_totals(totals, _measure(site, state, store, client))
    return conclude(site.task, totals) if totals else {}


def hides_clients(plan: Plan) -> bool:
    """Whether a plan is private, so that nothing is told of single clients' examples."""
    part = plan.private_part
    return part is not None and bool(part.event.accounted)


def _own_examples(site: Site) -> dict[ClientId, int]:
    """How many examples of its own each client holds out, of those that do."""
    data = site.data
    if not isinstance(data, Partitioned):
        return {}
    return {client: data.own_size(client) for client in data.clients if data.own_size(client)}


def over_clients(site: Site, state: State, store: Store) -> dict[str, dict[str, float]]:
    """By metric, the mean over the clients and the mean of the tenth of them that does worst, at
    least one.

    Each client counts once, with its own training examples, not augmented. Losses and perplexities
    are worst where they are high.
    """
    each = [
        measure(site, client_params(site, state, store, client), client)
        for client in site.data.clients
    ]
    tenth = max(1, len(each) // 10)
    spread: dict[str, dict[str, float]] = {}
    for name in each[0] if each else {}:
        values = sorted((metrics[name] for metrics in each), reverse=is_less_better(name))
        spread[name] = {
            "mean": sum(values) / len(values),
            "worst_tenth": sum(values[:tenth]) / tenth,
        }
    return spread


def _measure(site: Site, state: State, store: Store, client: ClientId) -> Mapping[str, Weighted]:
    batches = map(site.on_device, site.data.held_out(client))
    with threads(site.plan.compute.threads):
        return evaluate(site.task, site.model, _params(site, state, store, client), batches)


def _params(site: Site, state: State, store: Store, client: ClientId | None) -> Tensors:
    """The client's model, as it lies on the site's device."""
    assert client is not None  # no common examples are measured so
    return on_site(site, client_params(site, state, store, client))


def _over_clients(each: Mapping[ClientId, float], weighted: float, name: str) -> dict[str, Any]:
    values = sorted(each.values(), reverse=is_less_better(name))
    tenth = max(1, len(values) // 10)
    spread = finite_or_none(
        {
            "mean": sum(values) / len(values),
            "weighted": weighted,
            "worst_tenth": sum(values[:tenth]) / tenth,
        }
    )
    return {**spread, "each": finite_or_none(each)}
