"""Measuring a state: on held-out examples, client by client, and against what full fine-tuning would send."""

from dataclasses import dataclass, replace

from fedpeft.client import Site, threads
from fedpeft.core.objective import evaluate
from fedpeft.core.trainable import read
from fedpeft.core.types import ClientId, Tensors, Update, Weighted
from fedpeft.core.wire import pack
from fedpeft.plan import Plan
from fedpeft.registry import build


def measure(site: Site, params: Tensors, client: ClientId | None = None) -> dict[str, float]:
    """The task's metrics on the common held-out examples, or on the training examples of one client."""
    plan = site.plan
    own = {n: params[n].to(site.device) for n in plan.method.names(site.model)}
    batches = (site.on_device(batch) for batch in site.data.held_out(client))
    with threads(plan.threads):
        return {name: metric.value for name, metric in evaluate(site.task, site.model, own, batches).items()}


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
    """Really encode the whole model once, with the plan's codecs, and what the plan's server sends beside it.

    Raises:
      ValueError: a codec cannot hold the model's values.
    """
    tensors = _whole(plan, classes)
    sent = plan.server.init(tensors)[0] if plan.server.keeps else tensors
    up = len(pack(Update("", sent, 1.0, {"loss": Weighted(1.0, 1.0)}), plan.uplink))
    return FullPayloads(up, len(plan.downlink.encode(sent)), sum(x.numel() for x in tensors.values()))


def _whole(plan: Plan, classes: tuple[str, ...]) -> Tensors:
    """What full fine-tuning would train, of a model that is built for this and let go."""
    full = replace(plan, method=build("method", "full"))
    model = full.model(classes)
    return read(model, full.method.names(model))


def over_clients(site: Site, params: Tensors) -> dict[str, dict[str, float]]:
    """By metric, the mean over the clients and the mean of the tenth of them that does worst, at least one.

    Each client counts once, with its own training examples, not augmented. "loss" is worst where it is high.
    """
    each = [measure(site, params, client) for client in site.data.clients]
    tenth = max(1, len(each) // 10)
    spread: dict[str, dict[str, float]] = {}
    for name in each[0] if each else {}:
        values = sorted((metrics[name] for metrics in each), reverse=name == "loss")
        spread[name] = {"mean": sum(values) / len(values), "worst_tenth": sum(values[:tenth]) / tenth}
    return spread
