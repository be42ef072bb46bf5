"""Measure lower bounds of ε with canaries, for each private part, on the package's digits.

    python -m tools.audit_table             # makes what docs/results/audit/epsilon.csv lacks
    python -m tools.audit_table --table     # only writes the table anew

The table goes into docs/results/audit.md, below the mark; what stands above is kept.
"""

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from fedpeft.audits.canary_audit import audit_canaries
from fedpeft.core.accounting import epsilon
from fedpeft.plan.calibration import with_noise
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.site import Site
from fedpeft.runs.execute import open_run_site

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
ROWS, PAGE = RESULTS / "audit" / "epsilon.csv", RESULTS / "audit.md"
MARK = "<!-- table -->\n"
CANARIES = 1000
SEEDS = (0, 1, 2)
COMMON = ("compute.pack=false", "compute.features=false")
LOCAL = ("method=head", "rounds=3", 'stages=[{name="local_dp",clip_norm=1.0}]')
PLANS: dict[str, tuple[str, Sequence[str]]] = {
    "dp_sgd": ("digits-dp", ()),
    "client_dp": ("digits-client-dp", ()),
    "local_dp": ("digits-client-dp", LOCAL),
}
HALF = "half the noise"
VARIANTS: dict[str, Sequence[str]] = {
    "as it is": (),
    "δ = 1e-5": ("privacy.delta=1e-5",),
    HALF: (),
}
COLUMNS = (
    *("part", "variant", "seed", "plan", "settings", "unit", "noise_multiplier", "canaries"),
    *("rounds", "guesses", "right", "delta", "epsilon_lower", "epsilon_upper"),
)


@dataclass(frozen=True)
class Case:
    """A private part, and what is changed of its plan."""

    part: str
    variant: str

    @property
    def settings(self) -> list[str]:
        return [*PLANS[self.part][1], *VARIANTS[self.variant]]

    def open(self) -> Site:
        file = ROOT / "plans" / f"{PLANS[self.part][0]}.toml"
        return open_run_site(read_plan(file, [*self.settings, *COMMON]))

    def measure(self, site: Site, seed: int) -> dict[str, str]:
        """One row. Half the noise is held against what the whole of it promises."""
        plan = site.plan
        if self.variant == HALF:
            site = replace(site, plan=with_noise(plan, plan.private_part.noise_multiplier / 2))
        found = audit_canaries(site, CANARIES, 0, seed)
        event, privacy = plan.private_part.event, plan.privacy
        promised = epsilon(event, found["rounds"], privacy.delta or 0, privacy.accountant)
        named = {"part": self.part, "variant": self.variant, "seed": seed}
        told = {**found, **named, "epsilon_upper": promised, "settings": "; ".join(self.settings)}
        return {column: str(told[column]) for column in COLUMNS}


def read_rows() -> list[dict[str, str]]:
    if not ROWS.exists():
        return []
    with ROWS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(rows: Sequence[Mapping[str, str]]) -> None:
    with ROWS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measure_missing() -> None:
    """Measure what is not there yet, and write each row when it is."""
    rows = read_rows()
    done = {(row["part"], row["variant"], row["seed"]) for row in rows}
    for part in PLANS:
        for variant in VARIANTS:
            case = Case(part, variant)
            missing = [seed for seed in SEEDS if (part, variant, str(seed)) not in done]
            site = case.open() if missing else None
            for seed in missing:
                assert site is not None
                rows.append(case.measure(site, seed))
                write_rows(rows)
                print(rows[-1], flush=True)


def table_lines(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """A line for each part and variant: means over the seeds, of the lower bound from the least to
    the greatest."""
    heads = (
        *("part", "", "unit", "δ", "rounds", "audits", "guesses", "right"),
        *("at least", "at most"),
    )
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    groups: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["part"], row["variant"]), []).append(row)
    for (part, variant), some in groups.items():
        first = some[0]
        right = mean(float(row["right"]) for row in some)
        lower = sorted(float(row["epsilon_lower"]) for row in some)
        cells = [
            *(part, variant, first["unit"], f"{float(first['delta']):g}", first["rounds"]),
            *(str(len(some)), first["guesses"], f"{right:.0f}"),
            f"{mean(lower):.2f} ({lower[0]:.2f} to {lower[-1]:.2f})",
            f"{float(first['epsilon_upper']):.2f}",
        ]
        yield f"| {' | '.join(cells)} |"


def write_table() -> None:
    above = PAGE.read_text(encoding="utf-8").partition(MARK)[0] if PAGE.exists() else ""
    lines = "\n".join(table_lines(read_rows()))
    PAGE.write_text(f"{above}{MARK}{lines}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.audit_table", description=__doc__)
    parser.add_argument("--table", action="store_true", help="Measure nothing.")
    if not parser.parse_args().table:
        measure_missing()
    write_table()


if __name__ == "__main__":
    main()
