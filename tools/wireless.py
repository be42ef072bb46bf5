"""Digits over simulated radio links: the seconds to an accuracy, and who is drawn how often.

    python -m tools.wireless FILE

It writes a table of comma-separated values: by sampler and seed, which is that of the links too,
the simulated seconds until the common held-out examples are that well known (empty where they never
are), those of all rounds and of the usual one (the median), the accuracy at the end, and how often
the clients took part that did least and most. The file may be there with fewer rows; only those
that it lacks are run.
"""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.evaluation.measure import measure
from fedpeft.plan.plan import Plan
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from tools.cell_tables import read_table, write_table

CLIENTS, COHORT, ROUNDS, SEEDS = 20, 4, 100, (1, 42, 3407)
# The messages of a head are small, so that at this bandwidth they take about as long as computing.
LINKS: Mapping[str, Any] = {"name": "bandit", "bandwidth": 20e3, "reference": 1.0}
PLAN: Mapping[str, Any] = {
    "method": "head",
    "engine": "cohort",
    "partition": {"name": "dirichlet", "clients": CLIENTS, "alpha": 0.3},
    "cohort": COHORT,
    "rounds": ROUNDS,
    "local": {
        "epochs": 1,
        "batch_size": 16,
        "lr": 0.1,
        "optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": False},
    },
}
SHARED = {"channels": COHORT}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"policy": "uniform"},
    "bandit": {},
    "bandit, share 0.1": {"fair_share": 0.1},
    "bandit, share 0.2": {"fair_share": 0.2},
    "bandit, 30 visits": {"visits": 30},
    "channels, uniform": {"policy": "uniform", **SHARED},
    "channels, max-min": SHARED,
    "channels, sum": {"matching": "sum", **SHARED},
}
"""By name what the sampler is given beside the links."""
TARGETS = (90, 95, 97)
COLUMNS = (
    *("variant", "seed", *(f"to {target}" for target in TARGETS)),
    *("seconds", "usual round", "accuracy", "least", "most"),
)


def plan_for(variant: str, seed: int) -> Plan:
    sampler = {**LINKS, **VARIANTS[variant], "seed": seed}
    return read_plan({**PLAN, "sampler": sampler, "seed": seed})


def run_cell(site: Site) -> dict[str, Any]:
    """The numbers of one run.

    Raises:
      RuntimeError: an answer was not counted.
    """
    plan, accuracy, seconds, each = site.plan, 0.0, 0.0, list[float]()
    reached: dict[str, float] = {}
    times = Counter(dict.fromkeys(site.data.clients, 0))
    for state, ledger in federate(plan, Cohort(site), start(plan, site.params())):
        if ledger.failed or ledger.note:
            raise RuntimeError(f"round {ledger.round}: {ledger.failed} {ledger.note}")
        times.update(ledger.cohort)
        seconds = ledger.reports["bandit"]["run_seconds"]
        each.append(ledger.reports["bandit"]["round_seconds"])
        accuracy = 100 * measure(site, state.flat)["accuracy"]
        for target in TARGETS:
            if accuracy >= target:
                reached.setdefault(f"to {target}", round(seconds, 1))
    told = {"seconds": round(seconds, 1), "usual round": round(median(each), 2)}
    used = {"least": min(times.values()), "most": max(times.values())}
    return {**reached, **told, "accuracy": round(accuracy, 2), **used}


def main() -> None:
    file = Path(sys.argv[1])
    rows = read_table(file)
    known = {(row["variant"], row["seed"]) for row in rows}
    for seed in SEEDS:
        left = [name for name in VARIANTS if (name, str(seed)) not in known]
        site = open_site(plan_for(left[0], seed)) if left else None
        for name in left:
            assert site is not None
            row = run_cell(replace(site, plan=plan_for(name, seed)))
            rows.append({"variant": name, "seed": seed, **row})
            print(rows[-1], flush=True)
            write_table(file, COLUMNS, rows)


if __name__ == "__main__":
    main()
