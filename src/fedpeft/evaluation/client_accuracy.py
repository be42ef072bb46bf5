"""The accuracy that each client may expect of a state, by the classes of its examples."""

from collections.abc import Mapping
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from fedpeft.compute.scores import score_batches
from fedpeft.core.interfaces import Store
from fedpeft.core.types import ClientId, State, Tensors
from fedpeft.data.client_data import Partitioned
from fedpeft.data.report import histograms
from fedpeft.evaluation.client_model import client_params, has_one_model, on_site
from fedpeft.rounds.site import Site, threads


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
