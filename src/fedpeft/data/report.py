"""The report of a partition: what each client holds, and how unlike the clients are."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.types import ClientId, Division, Table
from fedpeft.errors import DataError

SHADES = " ░▒▓█"


def check_division(division: Division, table: Table, classes: Sequence[str]) -> None:
    """Refuse what no training can be done on with the examples of `table`.

    Raises:
      DataError: no client, a client without examples, an example of two clients or of none of the
        data, or a class that no client holds.
    """
    parts = division.parts
    if not parts:
        raise DataError(
            "the partition gives no client any data: lower min_per_client, or look at the data"
        )
    for client, part in parts.items():
        if not len(part):
            raise DataError(f"client {client!r} has no data: leave it out, or raise min_per_client")
    held = torch.cat(list(parts.values()))
    if int(held.min()) < 0 or int(held.max()) >= len(table):
        raise DataError(
            f"the partition names example {int(held.max())}; the data has {len(table)}, counted "
            "from 0"
        )
    if int(torch.bincount(held).max()) > 1:
        raise DataError(
            f"example {int(torch.bincount(held).argmax())} belongs to more than one client"
        )
    if (labels := labels_of(table)) is None:
        return
    counts = torch.bincount(labels[held], minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        names = ", ".join(map(repr, missing[:5])) + (
            f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        )
        raise DataError(
            f"no client holds a training example of the class {names}: add some, or take the class "
            "out of the data. An empty folder among folders of pictures is a class too"
        )


def labels_of(table: Table) -> Tensor | None:
    """The labels, where there are any."""
    return table.labels


def partition_fingerprint(parts: Mapping[ClientId, Tensor]) -> str:
    """A name for who holds which example."""
    digest = blake2b(digest_size=8)
    for client, index in sorted(parts.items()):
        digest.update(client.encode() + b"\0" + index.numpy().tobytes() + b"\0")
    return digest.hexdigest()


def histograms(labels: Tensor, classes: int, parts: Mapping[ClientId, Tensor]) -> Tensor:
    """Examples by client and class, int64 (clients, classes), clients in the order of `parts`."""
    return torch.stack([torch.bincount(labels[part], minlength=classes) for part in parts.values()])


def partition_report(
    table: Table,
    classes: Sequence[str],
    parts: Mapping[ClientId, Tensor],
    notes: Mapping[str, int],
    apart: int = 0,
) -> dict[str, Any]:
    """A partition in plain values.

    With p_k the shares of the classes among the examples of client k, p those among the examples of
    all clients:

        total_variation    mean over k of |p_k - p|_1 / 2;
                           0: all clients are alike, near 1: hardly a class in common
        effective_classes  mean over k of exp(H(p_k)) with H the entropy;
                           between 1 and the number of classes

    `largest_over_mean` is the largest client's size over the mean size, `unused` the examples that
    no client holds; the `apart` examples that clients hold out are not among these. Where there are
    no labels, nothing is said of classes.
    """
    sizes = torch.tensor([len(part) for part in parts.values()])
    labels = labels_of(table)
    by_class = (
        {}
        if labels is None
        else _by_class(histograms(labels, len(classes), parts), sizes, list(parts))
    )
    largest = {"largest_over_mean": float(sizes.max() / sizes.double().mean())}
    return {
        "fingerprint": partition_fingerprint(parts),
        "clients": len(parts),
        "examples": int(sizes.sum()),
        "unused": len(table) - int(sizes.sum()) - apart,
        "notes": dict(notes),
        "size": _spread(sizes),
        "classes": list(classes),
        **by_class,
        "skew": {**by_class.get("skew", {}), **largest},
    }


def _by_class(counts: Tensor, sizes: Tensor, clients: Sequence[ClientId]) -> dict[str, Any]:
    """What a report says of classes; `counts` are the histograms, (clients, classes)."""
    shares = counts / sizes[:, None].double()
    everyone = counts.sum(0) / sizes.sum().double()
    effective = torch.special.entr(torch.cat([shares, everyone[None]])).sum(1).exp()
    return {
        "classes_per_client": _spread((counts > 0).sum(1)),
        "skew": {
            "total_variation": float((shares - everyone).abs().sum(1).mean() / 2),
            "effective_classes": float(effective[:-1].mean()),
            "effective_classes_of_all": float(effective[-1]),
        },
        "histograms": dict(zip(clients, counts.tolist(), strict=True)),
    }


def _spread(x: Tensor) -> dict[str, float]:
    return {"min": int(x.min()), "median": float(x.double().quantile(0.5)), "max": int(x.max())}


def heat_map(report: Mapping[str, Any], width: int = 80, height: int = 40) -> str:
    """The report's histograms as shades: a line a client, a column a class; darker for a larger
    share of the client.

    At most `height` clients, evenly over their order, and neighbouring classes put together where
    they do not fit.
    """
    every: dict[str, list[int]] = report["histograms"]
    names = list(every)
    shown = [
        names[round(k * (len(names) - 1) / max(1, height - 1))]
        for k in range(min(height, len(names)))
    ]
    shown = shown if len(names) > height else names
    left, right = max(map(len, shown)), max(len(str(sum(every[name]))) for name in shown)
    together = -(-len(report["classes"]) // max(1, width - left - right - 2))
    lines = [
        f"{name:<{left}} {_shade(every[name], together)} {sum(every[name]):>{right}}"
        for name in shown
    ]
    legend = f"{len(shown)} of {len(names)} clients, {len(report['classes'])} classes"
    legend += f", {together} classes a column" if together > 1 else ""
    return "\n".join(
        [*lines, f"{legend}; shades: none, up to 5, 20, 50, 100 % of the client's examples"]
    )


def _shade(counts: Sequence[int], together: int) -> str:
    sums = torch.tensor(counts).split(together)  # type: ignore[no-untyped-call]
    shares = torch.stack([x.sum() for x in sums]) / max(1, sum(counts))
    level = torch.bucketize(shares, torch.tensor([0.0, 0.05, 0.2, 0.5]))
    return "".join(SHADES[k] for k in level.tolist())
