"""Whether clipping example by example leaves a model anything to learn: a failure that no error
shows otherwise."""

from itertools import chain

import torch

from fedpeft.compute.objective import Objective
from fedpeft.core.seeds import generator
from fedpeft.errors import PlanError
from fedpeft.rounds.site import Site, threads

ROWS = 4
TOLERANCE = 1e-3  # of a tensor's gradient


def check_gradients(site: Site) -> None:
    """On a few held-out examples, or where there are none on a client's, the mean of the examples'
    gradients must be the gradient of the batch.

    What is trained is moved a little first: behind a factor that begins at zero, the others have no
      gradient yet.

    Raises:
      PlanError: it is not, or no tensor has any.
    """
    plan, draws = site.plan, generator(0, "probe")
    data = site.data
    batches = chain(data.held_out(), *(data.training(client) for client in data.clients[:1]))
    rows = site.on_device({name: x[:ROWS] for name, x in next(batches).items()})
    params = {
        name: x.to(site.device) + 0.01 * torch.randn(x.shape, generator=draws).to(site.device)
        for name, x in site.params().items()
    }
    objective = Objective(site.model, site.task)
    site.model.eval()  # whose dropout would be another each time
    with threads(plan.compute.threads):
        wanted, _, _ = objective.gradient(params, rows)
        each = objective.gradients(params, rows)
    if not any(g.any() for g in each.values()):
        raise PlanError(
            "no example has a gradient: with this model and method nothing could be learned "
            "privately"
        )
    for name, g in wanted.items():
        far, most = float((each[name].mean(0) - g).abs().max()), float(g.abs().max())
        if far > TOLERANCE * most + 1e-7:
            raise PlanError(
                f"the gradients of {name!r} example by example do not make up a batch's ({far:.2g} "
                f"off {most:.2g}): "
                "this model or task lets examples change each other's loss, so that none can be "
                "hidden alone"
            )
