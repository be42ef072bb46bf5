"""Lines that a model continues, such as forecasts, which a run keeps in its folder for its report.

curves.json    which round's model; for some held-out windows of some clients what the model was
               given, what followed, and what the untuned and the tuned model said

The windows are those that lie where this runs: of a simulation every client's own, of a server
whose clients are elsewhere its own. No client is asked for any.
"""

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from fedpeft.compute.scores import outputs_of
from fedpeft.core.interfaces import Store
from fedpeft.core.tensors import count
from fedpeft.core.types import Batch, ClientId, State, Tensors
from fedpeft.errors import RunError
from fedpeft.evaluation.client_model import client_params, has_one_model, on_site
from fedpeft.plan.plan import Plan
from fedpeft.rounds.site import Site, threads
from fedpeft.runs.folder import RunFolder, write_json

CLIENTS, WINDOWS = 6, 2
"""How many clients are drawn, and how many windows of each."""
PASTS = 4
"""Of what a model is given, the last so many lengths of its answer are kept."""
LINES = ("given", "truth", "told")
"""What a task's `curves` give."""


def tells_curves(plan: Plan) -> bool:
    """Whether the plan's task tells lines that can be drawn."""
    return hasattr(plan.task, "curves")


def keep_curves(
    folder: RunFolder, site: Site, state: State, store: Store, number: int = WINDOWS
) -> dict[str, Any]:
    """Let the untuned and the tuned model continue `number` held-out windows of each of up to
    `CLIENTS` clients, evenly spread; returns what the folder then keeps. With personal tensors each
    client has its own model.

    Raises:
      RunError: no held-out example lies here, or the clients' own models lie elsewhere.
    """
    clients = _clients(site)
    kept = {
        "round": state.round,
        "clients": len(clients),
        "windows": [
            one
            for client in _spread(clients, CLIENTS)
            for one in _windows(site, state, store, client, number)
        ],
    }
    write_json(folder.curves, kept, indent=None)
    return kept


def _clients(site: Site) -> Sequence[ClientId | None]:
    """Those that have held-out examples of their own here; None is nobody in particular."""
    own = [client for client in site.data.clients if _has_some(site, client)]
    if own:
        return own
    if not _has_some(site, None):
        raise RunError("no held-out example lies here")
    if not has_one_model(site.plan):
        raise RunError("each client has a model of its own, and its held-out examples lie with it")
    return [None]


def _has_some(site: Site, client: ClientId | None) -> bool:
    return next(iter(site.data.held_out(client)), None) is not None


def _spread(every: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly spread from the first on."""
    chosen = min(most, len(every))
    return [every[k * len(every) // chosen] for k in range(chosen)]


def _windows(
    site: Site, state: State, store: Store, client: ClientId | None, number: int
) -> Iterator[dict[str, Any]]:
    batches = list(site.data.held_out(client))
    rows = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    places = _spread(range(count(rows)), number)
    batch = site.on_device({name: x[places] for name, x in rows.items()})
    after = state.flat if client is None else client_params(site, state, store, client)
    given, truth, told = _lines(site, on_site(site, after), batch)
    # what a state has beside the model's tensors is not in an untuned model
    _, _, before = _lines(site, {n: x.to(site.device) for n, x in site.params().items()}, batch)
    length = PASTS * truth.shape[1]
    for k, place in enumerate(places):
        yield {
            "client": client or "",
            "place": place,
            "of": count(rows),
            "given": _plain(given[k, -length:]),
            "truth": _plain(truth[k]),
            "before": _plain(before[k]),
            "after": _plain(told[k]),
        }


def _lines(site: Site, params: Tensors, batch: Batch) -> list[Tensor]:
    """What a model is given, what is true and what it tells, each (n, steps)."""
    task: Any = site.plan.task  # the site's may go on from features, and knows no lines
    with threads(site.plan.compute.threads):
        ((batch, outputs),) = outputs_of(site.task, site.model, params, [batch])
        curves = task.curves(outputs, batch)
    return [curves[name].float().cpu() for name in LINES]


def _plain(line: Tensor) -> list[float | None]:
    """To five digits; what is not finite has no place in a picture."""
    return [float(f"{x:.5g}") if isfinite(x) else None for x in line.tolist()]
