"""The model that a client has of a state, with which it is measured."""

from torch import Tensor

from fedpeft.algorithms.received_loss import least, mean_loss
from fedpeft.compute.scores import outputs_of
from fedpeft.core.interfaces import Store
from fedpeft.core.low_rank import EXACT
from fedpeft.core.tensors import add_prefix, take_prefix
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.plan.plan import Plan
from fedpeft.rounds.site import Site, threads


def on_site(site: Site, params: Tensors) -> Tensors:
    """What of a state's parameters the site's model is measured with, on the site's device."""
    own = {n: params[n] for n in site.plan.method.names(site.model)}
    return {
        n: x.to(site.device)
        for n, x in {**own, **add_prefix(EXACT, take_prefix(EXACT, params))}.items()
    }


def has_one_model(plan: Plan) -> bool:
    """Whether all clients of a plan have the same model."""
    return not plan.personal and not plan.hooks("models") and not hasattr(plan.local, "own_model")


def client_params(site: Site, state: State, store: Store, client: ClientId) -> Tensors:
    """The model of one client: what all share, and of personal tensors its own; those at the start
    if it has none. Where local training makes each client a model of its own, it is that one, and
    the common one before a client has any.

    Of several models that a plan's part gives it is the one with the least loss on the examples
    that the client trains on.
    """
    plan, own = site.plan, dict[str, Tensor]()
    if has_one_model(plan):
        return state.flat
    memory = store.load(client, state.accepted.get(client))
    if hasattr(plan.local, "own_model"):
        return {**state.flat, **plan.local.own_model(take_prefix("local", memory))}
    if plan.personal:
        own = {**plan.personal_of(site.params()), **take_prefix("personal", memory)}
    every = [
        {**own, **state.flat, **one} for models in plan.hooks("models") for one in models(state)
    ]
    if not every:
        return {**own, **state.flat}
    return every[least([_training_loss(site, params, client) for params in every])]


def _training_loss(site: Site, params: Tensors, client: ClientId) -> float:
    batches = map(site.on_device, site.data.training(client))
    with threads(site.plan.compute.threads):
        found = outputs_of(site.task, site.model, on_site(site, params), batches)
        return mean_loss(site.task, found)
