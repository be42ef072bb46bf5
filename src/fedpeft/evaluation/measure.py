"""Measuring a state: on held-out examples, client by client, and against what full fine-tuning
would send."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from fedpeft.compute.feature_cache import FEATURES, FeatureCache
from fedpeft.compute.objective import conclude, evaluate, score_batches
from fedpeft.compute.trainable import read, write
from fedpeft.core.interfaces import Coding, Store
from fedpeft.core.low_rank import EXACT, merge_exact
from fedpeft.core.tensors import count, take_prefix
from fedpeft.core.types import ClientId, State, Tensors, Update, Weighted
from fedpeft.data.client_data import Partitioned
from fedpeft.data.report import histograms
from fedpeft.evaluation.client_model import client_params, has_one_model, on_site
from fedpeft.plan.plan import Plan
from fedpeft.registry import build, describe
from fedpeft.rounds.site import Site, threads
from fedpeft.wire.payloads import pack


def measure(site: Site, params: Tensors, client: ClientId | None = None) -> dict[str, float]:
    """The task's metrics on the common held-out examples, or on the training examples of one
    client."""
    plan, own, data = site.plan, on_site(site, params), site.data
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


def client_accuracy(site: Site, state: State, store: Store) -> dict[str, Any] | None:
    """The accuracy that each client may expect on examples like its own, without scoring one that
    is trained on.

    With a_k the accuracy on the held-out examples of class k and h_k the client's training examples
    of that class, it is Σ h_k·a_k / Σ h_k over the classes that are held out. `std` is over the
    clients; a decile is a tenth of them, at least one. None without labels, or for a task that has
    no accuracy.
    """
    data = site.data
    if not isinstance(data, Partitioned) or not data.clients or "label" not in data.train:
        return None
    counts = histograms(data.train["label"], len(site.classes), data.parts).double()
    right: Tensor | None = None
    each: dict[ClientId, float] = {}
    for client, held in zip(data.parts, counts, strict=True):
        if right is None or not has_one_model(site.plan):
            right = _accuracy_by_class(site, client_params(site, state, store, client))
        if right is None:
            return None
        known = held * ~right.isnan()
        if known.sum() > 0:
            each[client] = float((known * right.nan_to_num()).sum() / known.sum())
    return _spread(each) if each else None


def _spread(each: Mapping[ClientId, float]) -> dict[str, Any]:
    values = sorted(each.values())
    tenth = max(1, len(values) // 10)
    return {
        "mean": fmean(values),
        "worst_decile": fmean(values[:tenth]),
        "best_decile": fmean(values[-tenth:]),
        "std": pstdev(values),
        "each": dict(each),
    }


def _accuracy_by_class(site: Site, params: Tensors) -> Tensor | None:
    """Shape (classes,), NaN for a class that is not held out; None for a task that has no
    accuracy."""
    right, seen = (torch.zeros(len(site.classes), dtype=torch.float64) for _ in range(2))
    batches = (site.on_device(batch) for batch in site.data.held_out())
    with threads(site.plan.compute.threads):
        for batch, values in score_batches(site.task, site.model, on_site(site, params), batches):
            accuracy = values.get("accuracy")
            if not isinstance(accuracy, Tensor) or "label" not in batch:
                return None
            label, mask = batch["label"].cpu(), batch["mask"].double().cpu()
            right.index_add_(0, label, accuracy.double().cpu() * mask)
            seen.index_add_(0, label, mask)
    return right / seen


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
