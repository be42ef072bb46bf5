"""A head from class means before the first round (Legate et al., 2023, FedNCM, arXiv:2306.03937).

Row c of the head's weight becomes μ_c / ‖μ_c‖ for the mean μ_c of the features of class c over all
clients, its bias zero: exact however labels are divided, for one message of (classes, features)
numbers from each client. A class that nobody has keeps its row.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedpeft.admission import usual
from fedpeft.codecs.dense import Dense
from fedpeft.core.features import FEATURES
from fedpeft.core.objective import scored
from fedpeft.core.tensors import Layout, finite
from fedpeft.core.types import ClientId, Failure, Reply, Tensors, Update
from fedpeft.core.wire import pack, unpack
from fedpeft.errors import PlanError, WireError
from fedpeft.head_rows import head_weight
from fedpeft.plan import Plan
from fedpeft.site import Site, threads

PHASE = "class_means"


def class_sums(site: Site, params: Tensors, client: ClientId) -> bytes:
    """A client's message: by class the sum of its features and how many there are.

    Raises:
      PlanError: its examples have no labels.
    """
    weight = head_weight(site.plan, params, "head_start")
    sums, counts = torch.zeros(params[weight].shape), torch.zeros(len(params[weight]))
    seen: list[Tensor] = []
    name = weight.removesuffix(".weight")
    kept = (
        site.kept.cut is not None and site.kept.cut.at == name
    )  # a hook would see what stands in their place
    hook = site.model.get_submodule(name).register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    on = {name: x.to(site.device) for name, x in params.items()}
    batches = (site.on_device(batch) for batch in site.data.held_out(client))
    try:
        with threads(site.plan.threads):
            for batch, _ in scored(site.task, site.model, on, batches):
                if "label" not in batch:
                    raise PlanError(f'head_start = "{PHASE}" is for examples with labels')
                label, mask = batch["label"].cpu(), batch["mask"].cpu()
                features = batch[FEATURES] if kept else seen[-1]
                sums.index_add_(0, label, features.float().cpu() * mask[:, None])
                counts.index_add_(0, label, mask)
                seen.clear()
    finally:
        hook.remove()
    return pack(Update(client, {"sums": sums, "counts": counts}), Dense())


def with_class_means(
    plan: Plan,
    params: Tensors,
    replies: Iterable[Reply | Failure],
    fail: Callable[[ClientId, str], Any],
) -> Tensors:
    """The parameters with the head that the clients' messages make; `fail` is told whose is not
    counted, and why.

    Means far longer than the others' are refused as updates are, and sums are in float64, in which
    no number of
    messages overflows: the head is finite whatever comes.
    """
    weight = head_weight(plan, params, "head_start")
    bias = f"{weight.removesuffix('.weight')}.bias"
    sums = torch.zeros(params[weight].shape, dtype=torch.float64)
    counts = sums.new_zeros(len(sums))

    def refuse(told: Told, why: str) -> None:
        fail(told.client, f"the longest of its class means is {why}")

    every = ((told, told.length) for told in _told(replies, sums.shape, fail))
    for told in usual(every, plan.norm_bound, [], refuse):
        sums, counts = sums + told.sums, counts + told.counts
    held = counts > 0
    means = torch.nn.functional.normalize(sums / counts.clamp_min(1)[:, None]).to(params[weight])
    started = {weight: torch.where(held[:, None], means, params[weight])}
    if bias in params:
        started[bias] = torch.where(held, 0.0, params[bias])
    return {**params, **started}


@dataclass(frozen=True)
class Told:
    """One client's message, in float64: `sums` (classes, features) and `counts` (classes,).

    Raises:
      ValueError: they are of no examples that anyone could have.
    """

    client: ClientId
    sums: Tensor
    counts: Tensor

    def __post_init__(self) -> None:
        if not finite({"sums": self.sums, "counts": self.counts}):
            raise ValueError("its class means are not finite")
        if (self.counts < 0).any() or (self.counts != self.counts.round()).any():
            raise ValueError("its class counts are no numbers of examples")
        if self.sums[self.counts == 0].any():
            raise ValueError("it tells sums of classes of which it has no example")

    @property
    def length(self) -> float:
        """Of the longest mean."""
        return float((self.sums / self.counts.clamp_min(1)[:, None]).norm(dim=1).max())


def _told(
    replies: Iterable[Reply | Failure], shape: torch.Size, fail: Callable[[ClientId, str], Any]
) -> Iterator[Told]:
    """The messages that are good for themselves."""
    wanted: Layout = [("sums", list(shape), "float32"), ("counts", [shape[0]], "float32")]
    for reply in replies:
        if isinstance(reply, Failure):
            fail(reply.client, reply.reason)
            continue
        try:
            sent = unpack(reply.client, reply.payload, Dense(), wanted).delta
            told = Told(reply.client, sent["sums"].double(), sent["counts"].double())
        except (WireError, ValueError) as error:
            fail(reply.client, str(error))
            continue
        yield told
