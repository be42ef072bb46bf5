"""Measure what a client's messages give away, and whether one round would do, on the package's
digits.

    python tools/leak_tables.py attack docs/results/attack.json
    python tools/leak_tables.py diagnose docs/results/diagnose.json
    python tools/leak_tables.py attack docs/results/attack.json full     # the rows that begin so

Rows that the file has already are not measured again. The table goes into the .md file beside it,
below the mark; what stands above is kept.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedpeft.audits.attack import Effort, attack, favourite
from fedpeft.oneshot.diagnose import Budget, diagnose
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.runs.execute import open_run_site

MARK = "<!-- table -->\n"
INVERTED = ("labels", "PSNR found, class mean", "ahead")
HEADS = {
    "attack": (
        "control",
        "loss",
        "gain",
        "cosine",
        *(f"{how}: {x}" for how in ("alone", "as sent") for x in INVERTED),
    ),
    "diagnose": (
        *(
            "5 rounds",
            "one round",
            "lost",
            "answer",
            "τ in rounds, in one",
            "L (quartiles)",
            "sign conflict",
        ),
        *("apart", "corrected bound", "paper's bound"),
    ),
}
ROUNDS = 3
FEDERATION = [
    "data.subset=480",
    "partition.clients=8",
    "partition.alpha=0.5",
    "cohort=8",
    "engine=inprocess",
]
METHODS = {"head": [], "bias": [], "lora": [], "full": ["local.lr=0.001"]}
PLAIN = ['local.optimizer={name="sgd",momentum=0.0,nesterov=false}', "local.schedule=constant"]
PRIVATE = ["weighting=uniform", "target_epsilon=8", "delta=1e-3", "accountant=rdp"]


def private(steps: int) -> list[str]:
    """DP-SGD with a quarter of a client's 60 examples in a step."""
    return [
        *PRIVATE,
        f'local={{name="dp_sgd",steps={steps},rate=0.25,batch_size=15,clip_norm=1.0,lr=0.2}}',
    ]


def plans(what: str) -> dict[str, list[str]]:
    """By row, what is set."""
    found = {}
    for method, rate in METHODS.items():
        base = [*FEDERATION, f"method={method}"]
        if what == "attack":
            found[f"{method}, one SGD step"] = [
                *base,
                *rate,
                *PLAIN,
                "rounds=1",
                "local.batch_size=1000",
            ]
            found[f"{method}, {ROUNDS} rounds"] = [*base, *rate, f"rounds={ROUNDS}"]
            found[f"{method}, one round"] = [*base, *rate, "rounds=1", f"local.epochs={ROUNDS}"]
            found[f"{method}, {ROUNDS} rounds, ε = 8"] = [*base, f"rounds={ROUNDS}", *private(4)]
            found[f"{method}, one round, ε = 8"] = [*base, "rounds=1", *private(4 * ROUNDS)]
        else:
            found[method] = [*base, *rate, "rounds=5"]
            found[f"{method}, ε = 8"] = [*base, "rounds=5", *private(4)]
    return found


def plan_of(settings: list[str]) -> Plan:
    return read_plan(
        (files("fedpeft") / "assets/plans/digits.toml").read_text(encoding="utf-8"), settings
    )


def measured(what: str, plan: Plan) -> dict[str, Any]:
    if what == "diagnose":
        return diagnose(open_run_site(plan), Budget(rounds=plan.rounds))
    site = open_run_site(replace(plan, compute=replace(plan.compute, pack=False, features=False)))
    return attack(site, favourite(site), Effort(pictures=4, steps=80))


def shown(what: str, row: Mapping[str, Any]) -> list[str]:
    """The cells of a row."""
    if what == "attack":
        scores = [row["membership"][name] for name in ("before", "loss", "gain", "cosine")]
        cells = [f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for one in scores]
        for name in ("one_example", "as_sent"):
            one = row["inversion"][name]
            ahead = f"{one['ahead']:+.1f} ({one['ahead_low']:+.1f} to {one['ahead_high']:+.1f})"
            cells += [
                f"{one['labels_right']:.0%}",
                f"{one['psnr_found']:.1f}, {one['psnr_class_mean']:.1f}",
                ahead,
            ]
        return cells
    held, distance, smooth = row["held_out"], row["distance"], row["smoothness"]
    many, one = (f"{100 * x:.1f}" for x in (held["rounds"][-1], held["one"]))
    lost = (
        f"{100 * held['gap']:+.1f} ({100 * held['gap_low']:+.1f} to {100 * held['gap_high']:+.1f})"
    )
    update, conflict = row["update"], row["conflict"]
    return [
        *(many, one, lost, row["answer"]),
        f"{update['rounds']['whole']:.3f}, {update['one']['whole']:.3f}",
        f"{smooth['median']:.2g} ({smooth['q25']:.2g} to {smooth['q75']:.2g})",
        f"{conflict['first_round']:.2f}",
        f"{distance['trained']:.2f}",
        *(f"{distance[name]:.3g}" for name in ("corrected_bound", "paper_bound")),
    ]


def written(what: str, path: Path, rows: Mapping[str, Any]) -> None:
    """The numbers, and the table beside them; rows in the order of the plans."""
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    heads = HEADS[what]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    lines += [
        f"| {' | '.join([name, *shown(what, rows[name])])} |"
        for name in plans(what)
        if name in rows
    ]
    page = path.with_suffix(".md")
    above = page.read_text(encoding="utf-8").partition(MARK)[0] if page.exists() else ""
    page.write_text(above + MARK + "\n".join(lines) + "\n", encoding="utf-8")


def main(what: str, path: Path, only: str = "") -> None:
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, settings in plans(what).items():
        if name not in rows and name.startswith(only):
            rows[name] = {"set": settings, **measured(what, plan_of(settings))}
            written(what, path, rows)
            print(name, flush=True)
    written(what, path, rows)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
