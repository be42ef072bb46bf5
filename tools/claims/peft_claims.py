"""The tables of docs/results/fedpeft.md: the claims of FedPEFT (arXiv:2210.01708)."""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean

from tools.claims.rows import (
    RESULTS,
    Row,
    against,
    difference,
    find_row,
    lines,
    read_row,
    signed,
    spread,
)

EARLIER = RESULTS / "cifar100-vit-tiny.json"


def photographs(name: str, label: str) -> Row:
    """CIFAR-100: seeds of the earlier table and those of the results."""
    cell = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    row = read_row("methods-cifar100", cell, label)
    earlier = {
        one["seed"]: 100 * one["accuracy_last"] for one in json.loads(EARLIER.read_text())[name]
    }
    return Row(label, earlier | dict(row.values), row.megabytes, row.parameters)


def digits() -> str:
    study = "communication-small"
    full = read_row(study, "full-m-8", "full, M = 8")
    others = {
        "full-m-4": "full, M = 4",
        "full-m-2": "full, M = 2",
        "full-m-1": "full, M = 1",
        "small-resnet-m-8": "small ResNet, M = 8",
        "head-m-8": "head, M = 8",
        "head-m-32": "head, M = 32",
        "bias-m-8": "bias, M = 8",
        "adapter-m-8": "adapter, M = 8",
        "prompt-m-8": "prompt, M = 8",
        "lora-m-8": "LoRA, M = 8",
        "centralised-full": "centralised, full",
        "centralised-lora": "centralised, LoRA",
        "local-only": "local only",
    }
    return against([full, *(read_row(study, name, label) for name, label in others.items())], full)


METHODS = {"full": "full", "head": "head", "bias": "bias", "lora": "LoRA", "prompt": "prompt"}
PHOTOGRAPHS = {
    "full fine-tuning": "full",
    "head": "head",
    "bias": "bias",
    "LoRA": "LoRA",
    "adapter, shared": "adapter, shared",
    "adapter, per block": "adapter, per block",
    "prompt, deep": "prompt",
    "prompt, shallow": "prompt, shallow",
}


BESIDE = {
    "full-m-4": "full, M = 4",
    "full-m-2": "full, M = 2",
    "full-m-1": "full, M = 1",
    "small-resnet-m-8": "small ResNet",
    "head-m-16": "head, M = 16",
    "centralised-full": "centralised, full",
    "centralised-bias": "centralised, bias",
    "local-only": "local only, bias",
}


def cifar() -> str:
    rows = [photographs(name, label) for name, label in PHOTOGRAPHS.items()]
    beside = [find_row("communication-vit-tiny", name, label) for name, label in BESIDE.items()]
    return against(rows + [row for row in beside if row], rows[0])


HEADLINE = {"full": "full fine-tuning", "head": "head", "bias": "bias", "lora": "LoRA"}


def headline() -> str:
    """Photographs of clients that are alike and not; in brackets what a method is ahead of full
    fine-tuning there."""
    cells = {
        PHOTOGRAPHS[earlier]: [
            find_row("headline-vit-tiny", f"homogeneous-{name}"),
            photographs(earlier, name),
        ]
        for name, earlier in HEADLINE.items()
    }
    rows = [
        [
            label,
            *(
                _beside(row, full if label != "full" else None)
                for row, full in zip(own, cells["full"], strict=True)
            ),
        ]
        for label, own in cells.items()
    ]
    return lines(["", "alike", "Dirichlet 0.3"], rows)


def _beside(row: Row | None, full: Row | None) -> str:
    if row is None:
        return ""
    return spread(row.values) + (f" ({signed(difference(row, full))})" if full else "")


def domain() -> str:
    near = {label: photographs(name, label) for name, label in PHOTOGRAPHS.items()}
    names = METHODS | {"full-rate-0.001": "full"}  # the better of its rates there
    far = {label: read_row("domain-gap-vit-tiny", name, label) for name, label in names.items()}
    rows = []
    for label, row in far.items():
        ahead = [
            signed(difference(one[label], one["full"])) if label != "full" else ""
            for one in (near, far)
        ]
        rows.append([label, spread(near[label].values), ahead[0], spread(row.values), ahead[1]])
    others = {
        "full": "full at rate 0.003",
        "centralised-bias": "centralised, bias",
        "local-only": "local only",
    }
    for name, label in others.items():
        accuracy = spread(read_row("domain-gap-vit-tiny", name).values)
        rows.append([label, "", "", accuracy, ""])
    return lines(["", "photographs", "against full", "digits", "against full"], rows)


def privacy() -> str:
    rows = []
    for name, label in (METHODS | {"adapter": "adapter"}).items():
        open_name = "full-none-lr-0.01" if name == "full" else f"none-{name}"
        clear, private = (
            read_row("privacy-small", open_name, label),
            read_row("privacy-small", f"epsilon-8-{name}", label),
        )
        lost = signed(difference(private, clear))
        rows.append(
            [label, str(len(private.values)), spread(clear.values), spread(private.values), lost]
        )
    for name, label in {
        "none-full": "full at rate 0.05",
        "centralised-bias-none": "centralised, bias",
    }.items():
        rows.append([label, "3", spread(read_row("privacy-small", name, label).values), "", ""])
    rows.append(["local only", "3", spread(read_row("privacy-small", "local-only").values), "", ""])
    as_published = read_row("privacy-small", "bias-as-published")
    rows.append(["bias, the paper's noise", "3", "", spread(as_published.values), ""])
    return lines(["", "seeds", "no noise", "ε = 8", "lost"], rows)


SIZES = (100, 200, 400)


def scarcity() -> str:
    """Differences are means over the sizes, within a seed."""
    labels = METHODS | {"adapter": "adapter", "local-only": "local only"}
    every = {
        name: [read_row("scarcity-small", f"examples-{k}-{name}", label) for k in SIZES]
        for name, label in labels.items()
    }
    rows = []
    for name, label in labels.items():
        ahead = [
            "" if name == other else signed(_ahead(every[name], every[other]))
            for other in ("full", "head")
        ]
        rows.append([label, *(spread(row.values) for row in every[name]), *ahead])
    central = [spread(read_row("scarcity-small", f"centralised-lora-{k}").values) for k in SIZES]
    rows.append(["centralised, LoRA", *central, "", ""])
    return lines(["", *(f"K = {k}" for k in SIZES), "against full", "against head"], rows)


def _ahead(rows: list[Row], others: list[Row]) -> dict[int, float]:
    each = [difference(row, other) for row, other in zip(rows, others, strict=True)]
    return {seed: fmean(one[seed] for one in each) for seed in each[0]}


EVERY = METHODS | {"adapter": "adapter", "local-only": "local only"}
CENTRAL = {"centralised-lora": "centralised, LoRA", "centralised-full": "centralised, full"}


def along(
    study: str,
    columns: Mapping[str, str],
    names: Mapping[str, str],
    common: Mapping[str, str] = CENTRAL,
) -> str:
    """One column for each setting, whose cells are named with a place for the method; in brackets
    what a method is ahead of full fine-tuning there; below, rows that are the same in all settings.
    A cell that was not run is left empty."""
    rows = [
        [label, *[spread(read_row(study, name).values)] * len(columns)]
        for name, label in common.items()
    ]
    return lines(["", *columns], _settings(study, columns, names) + rows)


def _settings(study: str, columns: Mapping[str, str], names: Mapping[str, str]) -> list[list[str]]:
    rows = []
    for name, label in names.items():
        row = [label]
        for cell in columns.values():
            full = find_row(study, cell.format("full")) if name != "full" else None
            row.append(_beside(find_row(study, cell.format(name)), full))
        rows.append(row)
    return rows


def pretraining() -> str:
    columns = {
        "with labels": "supervised-{}",
        "masked autoencoder": "masked-autoencoder-{}",
        "none": "{}",
    }
    rows = _settings("pretraining-small", columns, EVERY | {"scratch": "all, from scratch"})
    central = spread(read_row("pretraining-small", "centralised-lora-supervised").values)
    return lines(["", *columns], [*rows, ["centralised, LoRA", central, "", ""]])


def heterogeneity() -> str:
    columns = {f"α = {one}": f"alpha-{one}-{{}}" for one in ("0.05", "0.1", "0.3", "1.0", "10.0")}
    return along("heterogeneity-small", columns, EVERY)


def epochs() -> str:
    schedules = ((20, 1), (10, 2), (4, 5), (2, 10), (1, 20))
    columns = {
        f"{rounds} × {each}": f"rounds-epochs-{rounds}-{each}-{{}}" for rounds, each in schedules
    }
    methods = METHODS | {"adapter": "adapter"}
    return along("local-epochs-small", columns, methods, {"local-only": "local only"} | CENTRAL)


def capability(clients: str) -> str:
    sizes = ((16, 16), (16, 2), (64, 64), (64, 8))
    columns = {f"N = {n}, M = {m}": f"{clients}-n{n}-m{m}-{{}}" for n, m in sizes}
    study, methods = "capability-small", {"scratch": "scratch"} | METHODS | {"adapter": "adapter"}
    alone = [spread(read_row(study, f"local-only-{clients}-n{n}").values) for n, _ in sizes]
    rows = [
        ["local only", *alone],
        *([label, *[spread(read_row(study, name).values)] * 4] for name, label in CENTRAL.items()),
    ]
    return lines(["", *columns], _settings(study, columns, methods) + rows)


TABLES: dict[str, Callable[[], str]] = {
    "cifar": cifar,
    "headline": headline,
    "digits": digits,
    "domain": domain,
    "privacy": privacy,
    "scarcity": scarcity,
    "pretraining": pretraining,
    "heterogeneity": heterogeneity,
    "epochs": epochs,
    "alike": partial(capability, "homogeneous"),
    "unlike": partial(capability, "dirichlet-0.3"),
}
