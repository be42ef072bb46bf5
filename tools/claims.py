"""Draw the tables of docs/results/fedpeft.md from kept cells: what the claims of FedPEFT (arXiv:2210.01708) come to.

    python tools/claims.py            every table, in place, between its marks
    python tools/claims.py --check    exit 1 if a table on the page is not that of the cells

A difference is taken within each seed, whose runs share partition, cohorts and starting head; what is printed is its
mean over the seeds and half of the 95 % interval (Student's t).
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpeft.studies.table import interval

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "fedpeft.md"
CELLS = ROOT / "docs" / "results" / "cells"
EARLIER = ROOT / "docs" / "results" / "cifar100-vit-tiny.json"

Seeds = Mapping[int, float]
"""Accuracy in percent at the last round, by seed."""


@dataclass(frozen=True)
class Row:
    label: str
    accuracy: Seeds
    megabytes: float
    parameters: int


def kept(study: str, name: str, label: str) -> Row:
    """The cells `name`-seedN of a study."""
    found = {}
    for folder in sorted((CELLS / study).glob(f"{name}-seed*")):
        found[int(folder.name.rpartition("-seed")[2])] = json.loads((folder / "summary.json").read_text())
    if not found:
        raise SystemExit(f"no cells {name}-seed* under {CELLS / study}")
    first = next(iter(found.values()))
    return Row(
        label,
        {seed: 100 * one["accuracy_last"] for seed, one in found.items()},
        (first["bytes_up"] + first["bytes_down"]) / 2**20,
        first["trainable_params"],
    )


def photographs(name: str, label: str) -> Row:
    """CIFAR-100: seeds of the earlier table and the kept ones."""
    cell = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    row = kept("methods-cifar100", cell, label)
    earlier = {one["seed"]: 100 * one["accuracy_last"] for one in json.loads(EARLIER.read_text())[name]}
    return Row(label, earlier | dict(row.accuracy), row.megabytes, row.parameters)


def spread(values: Seeds) -> str:
    both = interval(list(values.values()))
    return f"{both['mean']:.1f}" + (f" ± {both['half']:.1f}" if both["half"] is not None else "")


def difference(row: Row, other: Row) -> dict[int, float]:
    """Points of accuracy ahead of another row, in the seeds that both have."""
    return {seed: row.accuracy[seed] - other.accuracy[seed] for seed in sorted(row.accuracy) if seed in other.accuracy}


def signed(values: Seeds) -> str:
    both = interval(list(values.values()))
    return f"{both['mean']:+.1f} ± {both['half']:.1f}" if both["half"] is not None else f"{both['mean']:+.1f}"


def lines(head: list[str], rows: list[list[str]]) -> str:
    table = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def against(rows: list[Row], reference: Row) -> str:
    """Accuracy, bytes, and the difference to a reference row."""
    return lines(
        ["", "seeds", "accuracy", f"against {reference.label}", "trained", "MiB in all"],
        [
            [
                row.label,
                str(len(row.accuracy)),
                spread(row.accuracy),
                "" if row is reference else signed(difference(row, reference)),
                f"{row.parameters:,}",
                f"{row.megabytes:,.2f}",
            ]
            for row in rows
        ],
    )


def digits() -> str:
    study = "communication-small"
    full = kept(study, "full-m-8", "full, M = 8")
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
    return against([full, *(kept(study, name, label) for name, label in others.items())], full)


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


def cifar() -> str:
    rows = [photographs(name, label) for name, label in PHOTOGRAPHS.items()]
    return against(rows, rows[0])


def domain() -> str:
    near = {label: photographs(name, label) for name, label in PHOTOGRAPHS.items()}
    far = {label: kept("domain-gap-vit-tiny", name, label) for name, label in METHODS.items()}
    rows = []
    for label, row in far.items():
        ahead = [signed(difference(one[label], one["full"])) if label != "full" else "" for one in (near, far)]
        rows.append([label, spread(near[label].accuracy), ahead[0], spread(row.accuracy), ahead[1]])
    for name, label in {"centralised-bias": "centralised, bias", "local-only": "local only"}.items():
        rows.append([label, "", "", spread(kept("domain-gap-vit-tiny", name, label).accuracy), ""])
    return lines(["", "photographs", "against full", "digits", "against full"], rows)


def privacy() -> str:
    rows = []
    for name, label in (METHODS | {"adapter": "adapter"}).items():
        open_name = "full-none-lr-0.01" if name == "full" else f"none-{name}"
        clear, private = kept("privacy-small", open_name, label), kept("privacy-small", f"epsilon-8-{name}", label)
        lost = signed(difference(private, clear))
        rows.append([label, str(len(private.accuracy)), spread(clear.accuracy), spread(private.accuracy), lost])
    for name, label in {"none-full": "full at rate 0.05", "centralised-bias-none": "centralised, bias"}.items():
        rows.append([label, "3", spread(kept("privacy-small", name, label).accuracy), "", ""])
    rows.append(["local only", "3", spread(kept("privacy-small", "local-only", "").accuracy), "", ""])
    as_published = kept("privacy-small", "bias-as-published", "")
    rows.append(["bias, the paper's noise", "3", "", spread(as_published.accuracy), ""])
    return lines(["", "seeds", "no noise", "ε = 8", "lost"], rows)


def scarcity() -> str:
    labels = METHODS | {"adapter": "adapter", "local-only": "local only"}
    sizes = (100, 200, 400)
    every = {k: {n: kept("scarcity-small", f"examples-{k}-{n}", label) for n, label in labels.items()} for k in sizes}
    rows = []
    for name, label in labels.items():
        cells = [spread(every[k][name].accuracy) for k in sizes]
        for other in ("full", "head"):
            cells += ["" if name == other else signed(difference(every[k][name], every[k][other])) for k in sizes]
        rows.append([label, *cells])
    central = [spread(kept("scarcity-small", f"centralised-lora-{k}", "").accuracy) for k in sizes]
    rows.append(["centralised, LoRA", *central, *[""] * 6])
    head = [
        *(f"K = {k}" for k in sizes),
        *(f"{k}, against full" for k in sizes),
        *(f"{k}, against head" for k in sizes),
    ]
    return lines(["", *head], rows)


TABLES = {"digits": digits, "cifar": cifar, "domain": domain, "privacy": privacy, "scarcity": scarcity}


def redrawn(page: str) -> str:
    """The page with what stands between its marks drawn anew."""
    for name, draw in TABLES.items():
        begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise SystemExit(f"{PAGE} lacks its marks {begin} … {end}")
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{draw()}\n{end}{rest.partition(end)[2]}"
    return page


def main() -> None:
    before = PAGE.read_text()
    after = redrawn(before)
    if "--check" in sys.argv[1:]:
        raise SystemExit(int(after != before))
    PAGE.write_text(after)


if __name__ == "__main__":
    main()
