"""The table of `studies/robust-small.toml`: a row for each attack, a column for each aggregator.

    python tools/robust_table.py SWEEP docs/results/robust.md

SWEEP is the folder of `fedpeft sweep --out`.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

from fedpeft.storage.files import write_atomically
from fedpeft.studies.study import read_study

STUDY = Path(__file__).parents[1] / "studies" / "robust-small.toml"


def told(folders: list[Path]) -> str:
    """Accuracy in percent over the seeds; behind a slash how often a trigger was obeyed, where
    there is one."""
    last = [
        json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])["held_out"]
        for folder in folders
    ]
    success = [one["backdoor success"] for one in last if "backdoor success" in one]
    accuracy = f"{100 * fmean(one['accuracy'] for one in last):.1f}" if last else ""
    return f"{accuracy} / {100 * fmean(success):.1f}" if success else accuracy


def table(sweep: Path) -> list[str]:
    """The lines of the table; only attacks that every aggregator has met with as many seeds."""
    study = read_study(STUDY)
    done: dict[str, dict[str, list[Path]]] = {}
    for cell in study.cells:
        folder = next((found.parent for found in sweep.glob(f"**/{cell.name}/summary.json")), None)
        if "attack" in cell.labels:
            folders = done.setdefault(cell.labels["attack"], {}).setdefault(
                cell.labels["aggregator"], []
            )
            folders += [folder] if folder else []
    columns = list(done["none"])
    lines = [f"| attackers | {' | '.join(columns)} | seeds |", f"|---|{'---|' * len(columns)}---|"]
    for attack, row in done.items():
        seeds = min(map(len, row.values()))
        if seeds:
            lines.append(
                f"| {attack} | {' | '.join(told(row[column][:seeds]) for column in columns)} | "
                f"{seeds} |"
            )
    return lines


def main(sweep: Path, out: Path) -> None:
    before, begin, rest = out.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    write_atomically(
        out, (before + begin + "\n".join(["", *table(sweep), "", ""]) + end + after).encode()
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
