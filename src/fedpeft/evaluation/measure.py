"""Measuring a state: on held-out examples, client by client, and against what full fine-tuning
would send."""

from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from fedpeft.compute.feature_cache import FEATURES, FeatureCache
from fedpeft.compute.scores import conclude, evaluate
from fedpeft.compute.trainable import read, write
from fedpeft.core.interfaces import Coding, Store
from fedpeft.core.low_rank import EXACT, merge_exact
from fedpeft.core.tensors import count, take_prefix
from fedpeft.core.types import ClientId, State, Tensors, Update, Weighted
from fedpeft.data.client_data import Partitioned
from fedpeft.evaluation.client_model import client_params, has_one_model, on_site
from fedpeft.evaluation.further import measure_further
from fedpeft.plan.plan import Plan
from fedpeft.registry import build, describe
from fedpeft.rounds.site import Site, threads
from fedpeft.wire.payloads import pack


def measure(site: Site, params: Tensors, client: ClientId | None = None) -> dict[str, float]:
    """The task's metrics on the common held-out examples, or on the training examples of one
    client."""
    plan, own, data = site.plan, on_site(site, params), site.data
    if client is None and plan.metrics:
        return measure_further(site, lambda _: own, [None])
    chosen = data.held_out() if client is None else data.training(client)
    batches = (site.on_device(batch) for batch in chosen)
    with threads(plan.compute.threads):
        return conclude(site.task, evaluate(site.task, site.model, own, batches))


def held_out(site: Site, state: State, store: Store) -> dict[str, float]:
    """The task's metrics on the common held-out examples; where clients have models in the place of
    a common one, the mean over these."""
    if has_one_model(site.plan) or hasattr(site.plan.local, "own_model"):
        return {**measure(site, state.flat), **measure_attacks(site, state.flat)}
    each = [
        measure(site, client_params(site, state, store, client)) for client in site.data.clients
    ]
    return {name: fmean(metrics[name] for metrics in each) for name in each[0]}


def measure_attacks(site: Site, params: Tensors) -> dict[str, float]:
    """How often each attack of a simulation succeeds, of those that aim at something."""
    data, plan, rates = site.data, site.plan, dict[str, float]()
    if not isinstance(data, Partitioned) or not count(data.test):
        return rates
    # Those of a picture are not its trigger's.
    test = {name: x for name, x in data.test.items() if name != FEATURES}
    for attack in plan.attacks:
        rows = attack.probe(test, len(site.classes))
        if rows is not None:
            aim = replace(
                site,
                data=Partitioned(plan.task, {}, rows, {}, device=site.device),
                kept=FeatureCache(),
            )
            rates[f"{describe('attack', attack)['name']} success"] = measure(aim, params)[
                "accuracy"
            ]
    return rates


@dataclass(frozen=True)
class FullPayloads:
    """What one client and round of full fine-tuning would cost.

    Attributes:
      up, down: bytes of one message.
      params: entries of the whole model.
    """

    up: int
    down: int
    params: int


def full_payloads(plan: Plan, classes: tuple[str, ...]) -> FullPayloads:
    """Really encode the whole model once, with the plan's codecs, and what the plan's server sends
    beside it.

    Raises:
      ValueError: a codec cannot hold the model's values.
    """
    tensors = _whole(plan, classes)
    sent = plan.first_state(tensors).flat
    up = len(pack(Update("", sent, 1.0, {"loss": Weighted(1.0, 1.0)}), plan.uplink))
    return FullPayloads(
        up,
        len(plan.downlink.encode(sent, Coding("down"))),
        sum(x.numel() for x in tensors.values()),
    )


def _whole(plan: Plan, classes: tuple[str, ...]) -> Tensors:
    """What full fine-tuning would train, of a model that is built for this and let go; of a config
    alone if need be."""
    full = without_method(plan)
    model = full.model(classes)
    return read(model, full.method.names(model))


def without_method(plan: Plan) -> Plan:
    """The plan whose model is the base as it is, with nothing put into it."""
    method = build("method", "full" if plan.method.pretrained else "scratch")
    return replace(plan.unquantized.of_one_rank, method=method)


def with_params(plan: Plan, model: Any, params: Tensors) -> Any:
    """The model, which is the plan's before its first round, with these parameters; in place."""
    own = {name: params[name] for name in plan.method.names(model)}
    write(model, {**own, **merge_exact(model, take_prefix(EXACT, params))})
    return model
