"""The tables of docs/results/one-shot.md: what one round loses against several
(arXiv:2412.04650)."""

import json
from collections.abc import Mapping
from typing import Any

from tools.claims.rows import (
    RESULTS,
    Row,
    difference,
    find_row,
    lines,
    read_row,
    results_of,
    signed,
    spread,
)
from tools.results.rows import Result

SKEWS = {"dirichlet-0.1": "Dirichlet 0.1", "dirichlet-100": "Dirichlet 100"}


def _pair(study: str, start: str, many: str, end: str) -> list[Row]:
    """Many rounds, and one."""
    rounds, _, epochs = many.partition("-")
    whole = int(rounds) * int(epochs)
    names = [f"{start}rounds-epochs-{times}-{end}" for times in (many, f"1-{whole}")]
    return [read_row(study, name) for name in names]


def _against(rows: list[tuple[str, list[Row]]], many: str) -> str:
    return lines(
        ["", "seeds", many, "one round", "one round against many", "MiB of many", "MiB of one"],
        [
            [
                label,
                str(len(several.values)),
                spread(several.values),
                spread(one.values),
                signed(difference(one, several)),
                f"{several.megabytes:,.2f}",
                f"{one.megabytes:,.2f}",
            ]
            for label, (several, one) in rows
        ],
    )


def digits() -> str:
    models = {
        "small-resnet-from-scratch": "small ResNet from scratch",
        "full-micro-vit": "micro ViT, full",
        "lora-micro-vit": "micro ViT, LoRA",
    }
    return _against(
        [
            (f"{label}, {skew}", _pair("one-shot-small", f"{start}-", "10-1", name))
            for name, label in models.items()
            for start, skew in SKEWS.items()
        ],
        "ten rounds",
    )


def photographs() -> str:
    methods = {"lora": "ViT-Tiny, LoRA", "full": "ViT-Tiny, full"}
    return _against(
        [
            (f"{label}, {skew}", _pair("one-shot-vit-tiny", f"{start}-", "10-1", name))
            for name, label in methods.items()
            for start, skew in SKEWS.items()
            if find_row("one-shot-vit-tiny", f"{start}-rounds-epochs-1-10-{name}")
        ],
        "ten rounds",
    )


def photographs_beside() -> str:
    start = "lora-at-rate-0.003-dirichlet-0.1-one-round"
    names = {
        start: "LoRA at rate 0.003, one round, Dirichlet 0.1",
        f"{start}-class-count-rows": "the same, head rows by class counts",
        f"{start}-class-means-and-class-count-rows": "the same, class means and rows by counts",
        "zero-shot-new-head": "zero-shot, a new head",
        "zero-shot-class-means": "zero-shot, head from class means",
        "head-dirichlet-0.1-one-round": "frozen ViT-Tiny, new head, one round, Dirichlet 0.1",
        "local-only": "local only, LoRA, Dirichlet 0.1",
        "centralised-lora": "centralised, LoRA",
    }
    found = [find_row("one-shot-vit-tiny", name, label) for name, label in names.items()]
    return lines(
        ["", "seeds", "accuracy"],
        [[row.label, str(len(row.values)), spread(row.values)] for row in found if row],
    )


def beside() -> str:
    """What there is without a federation, or without tuning more than a head."""
    names = {
        "centralised-full-micro-vit": "centralised, micro ViT, full",
        "centralised-lora-micro-vit": "centralised, micro ViT, LoRA",
        "centralised-small-resnet": "centralised, small ResNet",
        "head-dirichlet-0.1-one-round": "frozen micro ViT, new head, one round, Dirichlet 0.1",
        "local-only": "local only, micro ViT, LoRA, Dirichlet 0.1",
    }
    return _accuracies("one-shot-small", names)


def _accuracies(study: str, names: Mapping[str, str]) -> str:
    return lines(
        ["", "accuracy"],
        [[label, spread(read_row(study, name).values)] for name, label in names.items()],
    )


SKEW = "label-skew-small"
SWITCHES = {
    "none": "none",
    "uniform-weights": "uniform weights",
    "half-strength": "merge strength λ = ½",
    "class-count-rows": "head rows by class counts",
    "vote": "vote on λ and weights",
    "class-means": "head from class means",
    "class-means-and-class-count-rows": "class means, rows by counts",
    "class-means-class-count-rows-and-vote": "class means, rows by counts, vote",
}


def _switches(method: str) -> str:
    """One round with each switch, against one round without and against ten rounds; those that were
    run."""
    many, plain = read_row(SKEW, f"ten-rounds-{method}"), read_row(SKEW, f"{method}-none")
    beside = [
        str(len(many.values)),
        spread(many.values),
        signed(difference(many, plain)),
        "",
        f"{many.megabytes:,.2f}",
    ]
    rows = [["ten rounds, none", *beside]]
    for name, label in SWITCHES.items():
        one = find_row(SKEW, f"{method}-{name}")
        if one is None:
            continue
        ahead = "" if name == "none" else signed(difference(one, plain))
        behind = signed(difference(one, many))
        rows.append(
            [
                label,
                str(len(one.values)),
                spread(one.values),
                ahead,
                behind,
                f"{one.megabytes:,.2f}",
            ]
        )
    return lines(
        ["", "seeds", "accuracy", "against one round, none", "against ten rounds", "MiB"], rows
    )


def skew_head() -> str:
    return _switches("head")


def skew_lora() -> str:
    return _switches("lora")


def skew_full() -> str:
    return _switches("full")


def chosen() -> str:
    """What clients voted for, seed by seed."""
    names = {"head": "head", "lora": "LoRA", "full": "full"}
    votes = [
        (f"{label}, {SWITCHES[name]}", one)
        for method, label in names.items()
        for name in SWITCHES
        if name.endswith("vote")
        for one in sorted(results_of(SKEW, f"{method}-{name}").values(), key=lambda one: one.cell)
    ]
    rows = [[label, str(one.seed), *_vote(one)] for label, one in votes]
    return lines(["", "seed", "merge", "λ", "scores of the candidates", "by examples"], rows)


def _vote(one: Result) -> list[str]:
    vote = one.plain("vote_last")
    scores = sorted(100 * candidate["score"] for candidate in vote["scores"])
    between = f"{scores[0]:.1f} to {scores[-1]:.1f}"
    return [vote["merge"], f"{vote['strength']:g}", between, f"{vote['examples']:g}"]


def skew_beside() -> str:
    names = {
        "zero-shot-new-head": "zero-shot, a new head",
        "zero-shot-class-means": "zero-shot, head from class means",
        "local-only": "local only, LoRA",
        "centralised-lora": "centralised, LoRA",
        "centralised-full": "centralised, full",
    }
    return _accuracies(SKEW, names)


def arrivals() -> str:
    """Accuracy with each further file, and with each client's file taken out again."""
    told = json.loads((RESULTS / "arrivals.json").read_text())
    columns = {}
    for label in dict.fromkeys(one["federation"] for one in told["federations"]):
        of = {one["seed"]: one for one in told["federations"] if one["federation"] == label}
        columns[label] = _steps(of, "came", told["files"] + 1)
        columns[label] += _steps(of, "left", told["files"] - 1)
    labels = ["nobody yet", *(f"{k} arrived" for k in range(1, told["files"] + 1))]
    labels.append("the first left again")
    labels += [f"the first {k} left again" for k in range(2, told["files"])]
    return lines(["", *columns], [list(row) for row in zip(labels, *columns.values(), strict=True)])


def _steps(of: Mapping[int, Any], step: str, count: int) -> list[str]:
    """The accuracy after each of so many steps of a kind, over the seeds."""
    return [
        spread({seed: 100 * one[step][k]["accuracy"] for seed, one in of.items()})
        for k in range(count)
    ]


AGGREGATORS = "lora-aggregators-small"
RULES = {
    "fedit": "fedit, the plain mean of A and of B",
    "fedex": "fedex",
    "flora": "flora",
    "flexlora": "flexlora",
    "ffa": "ffa, A frozen",
    "hetlora": "hetlora",
    "hetlora-mixed-ranks": "hetlora, ranks 2, 4 and 8",
}
MERGES = {
    label: (f"{rule}-rounds-epochs-10-1", f"{rule}-rounds-epochs-1-10")
    for rule, label in RULES.items()
} | {
    "rolora, B and A in turn": ("rolora-ten-rounds", ""),
    "fedit, one schedule, optimizer kept": ("one-schedule-optimizer-kept", ""),
    "fedit, schedule restarted each round": ("schedule-restarted-each-round", ""),
    "a chain from client to client, ten passes and one": ("chain-ten-passes", "chain-one-pass"),
    "the head alone": ("", "head-one-round"),
    "centralised": ("centralised", ""),
    "local only": ("local-only", ""),
}
"""The cells of ten rounds and of one, "" for none."""


def aggregators() -> str:
    """Ten rounds and one of each rule for LoRA's factors, with its error in the last round; empty
    where there is no result."""
    plain = find_row(AGGREGATORS, MERGES[RULES["fedit"]][0])
    rows = []
    for label, names in MERGES.items():
        many, one = (find_row(AGGREGATORS, name) for name in names)
        accuracies = [_accuracy(many), _accuracy(one)]
        leads = [_lead(one, many), "" if many == plain else _lead(many, plain)]
        rows.append(
            [label, *accuracies, *leads, *map(_error, names), *map(_megabytes, (many, one))]
        )
    head = [
        "",
        "ten rounds",
        "one round",
        "one against ten",
        "ten against fedit's ten",
        "error, ten",
        "error, one",
    ]
    return lines([*head, "MiB of ten", "MiB of one"], rows)


def _accuracy(row: Row | None) -> str:
    return spread(row.values) if row else ""


def _lead(row: Row | None, other: Row | None) -> str:
    shared = difference(row, other) if row and other else {}
    return signed(shared) if shared else ""


def _megabytes(row: Row | None) -> str:
    return f"{row.megabytes:,.2f}" if row else ""


def _error(name: str) -> str:
    """‖mean(B·A) − merged‖ / ‖mean(B·A)‖ of the last round, the mean over the seeds; empty where
    none was told."""
    told = [one.plain("aggregation_error_last") for one in results_of(AGGREGATORS, name).values()]
    every = [x for x in told if x is not None]
    return f"{sum(every) / len(every):.2g}" if every else ""


TABLES = {
    "digits": digits,
    "beside": beside,
    "photographs": photographs,
    "photographs-beside": photographs_beside,
    "skew-head": skew_head,
    "skew-lora": skew_lora,
    "skew-full": skew_full,
    "chosen": chosen,
    "skew-beside": skew_beside,
    "arrivals": arrivals,
    "aggregators": aggregators,
}
