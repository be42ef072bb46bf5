"""The table of `studies/robust-small.toml`: a row for each attack, a column for each aggregator.

python tools/robust_table.py SWEEP docs/results/robust.md     # SWEEP: the folder of `fedpeft sweep --out`
"""

import json
import sys
from pathlib import Path
from statistics import fmean

from fedpeft.core.stores import write_atomically
from fedpeft.studies.study import read_study

STUDY = Path(__file__).parents[1] / "studies" / "robust-small.toml"


def told(folders: list[Path]) -> str:
    """Accuracy in percent over the seeds; behind a slash how often a trigger was obeyed, where there is one."""
    last = [json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])["held_out"] for folder in folders]
    success = [one["backdoor success"] for one in last if "backdoor success" in one]
    accuracy = f"{100 * fmean(one['accuracy'] for one in last):.1f}" if last else ""
    return f"{accuracy} / {100 * fmean(success):.1f}" if success else accuracy


def table(sweep: Path) -> tuple[list[str], int, int]:
    """The lines of the table, and how many cells and seeds are in it."""
    study = read_study(STUDY)
    done: dict[tuple[str, str], list[Path]] = {}
    seeds = set()
    for cell in study.cells:
        folder = next((found.parent for found in sweep.glob(f"**/{cell.name}/summary.json")), None)
        if folder is not None and "attack" in cell.labels:
            done.setdefault((cell.labels["attack"], cell.labels["aggregator"]), []).append(folder)
            seeds.add(cell.seed)
    columns = list(dict.fromkeys(aggregator for _, aggregator in done))
    lines = [f"| attackers | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for attack in dict.fromkeys(attack for attack, _ in done):
        lines.append(f"| {attack} | {' | '.join(told(done.get((attack, column), [])) for column in columns)} |")
    return lines, sum(map(len, done.values())), len(seeds)


def main(sweep: Path, out: Path) -> None:
    before, begin, rest = out.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    lines, cells, seeds = table(sweep)
    told = [f"{cells} cells, {seeds} seed{'s' if seeds > 1 else ''}.", "", *lines]
    write_atomically(out, (before + begin + "\n".join(told) + "\n" + end + after).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
