"""Run a plan with several methods and seeds, and write the table of what was measured.

    python tools/method_table.py plans/cifar100-vit-tiny.toml --rows plans/rows-cifar100.toml --seeds 1 42 \\
        --out docs/results/cifar100-vit-tiny

Each cell is an ordinary run folder under `--runs`; the same command again goes on where it stopped and repeats no cell.
The rows file has `[[row]]` tables with a `label` and `set`, a list of `key=value` as for `fedpeft run --set`. A cell
that fails is named in the table and the rest goes on; a `note` in the rows file follows the table. `--out X` gives
X.md, the table, and X.json, all summaries.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from fedpeft.plan import read_plan


def run_cell(plan: Path, settings: list[str], seed: int, folder: Path, only_done: bool) -> dict[str, Any]:
    """The summary of one run, from its folder where it is done already; {"error": ...} if it fails or is not run."""
    done = folder / "summary.json"
    if only_done and not done.exists():
        return {"error": "not run"}
    if not done.exists():
        start = ["--resume", str(folder)] if (folder / "plan.toml").exists() else [str(plan), "--out", str(folder)]
        fresh = [] if start[0] == "--resume" else [word for s in settings for word in ("--set", s)]
        seeded = [] if start[0] == "--resume" else ["--seed", str(seed)]
        command = [sys.executable, "-m", "fedpeft", "run", *start, *fresh, *seeded, "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode or not done.exists():
            last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            return {"error": last}
    summary: dict[str, Any] = json.loads(done.read_text())
    return summary


def mean_and_range(values: list[float]) -> str:
    half = (max(values) - min(values)) / 2
    return f"{100 * statistics.mean(values):.1f} ± {100 * half:.1f}"


def size(count: float) -> str:
    return f"{count / 2**20:,.2f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def row_of(label: str, settings: list[str], cells: list[dict[str, Any]]) -> str:
    good = [cell for cell in cells if "error" not in cell]
    if not good:
        return f"| {label} | `{' '.join(settings)}` | failed: {cells[0]['error']} | | | | | |"
    one = good[0]
    columns = [
        label + ("" if len(good) == len(cells) else f" (seed {', '.join(str(cell['seed']) for cell in good)} only)"),
        f"`{' '.join(settings)}`",
        f"{one['trainable_params']:,}",
        size(one["bytes_up_per_client_round"]),
        size(statistics.mean(cell["bytes_up"] + cell["bytes_down"] for cell in good)),
        mean_and_range([cell["accuracy_last"] for cell in good]),
        mean_and_range([cell["accuracy_best"] for cell in good]),
        f"{statistics.median(cell['seconds'] for cell in good):.0f}",
    ]
    return f"| {' | '.join(columns)} |"


def table(plan: Path, spec: dict[str, Any], cells: dict[str, list[dict[str, Any]]], command: str) -> str:
    good = [cell for row in cells.values() for cell in row if "error" not in cell]
    one, seeds = good[0], sorted({cell["seed"] for cell in good})
    libraries = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
    lines = [
        f"# Methods on `{plan}`",
        "",
        f"Made by `{command}`; seeds {', '.join(map(str, seeds))}. Accuracy in percent on the held-out set, mean ± "
        "half the range over the seeds; best is the best of the evaluated rounds, chosen on that same set. Bytes are "
        "measured on what was sent, headers included.",
        "",
        f"{libraries}; {one['cpu']}, engine {one['engine']}, {one['threads']} threads a worker.",
        "",
        "```toml",
        plan.read_text().strip(),
        "```",
        "",
        "| method | set | trained parameters | up, per client and round | up and down, in all | last | best | s |",
        "|---|---|---|---|---|---|---|---|",
        *(row_of(row["label"], row["set"], cells[row["label"]]) for row in spec["row"]),
        *(["", spec["note"].strip()] if "note" in spec else []),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 42])
    parser.add_argument("--runs", type=Path, default=Path("runs/table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--done", action="store_true", help="run nothing: the table of what is finished")
    args = parser.parse_args()
    spec = tomllib.loads(args.rows.read_text())
    rows = spec["row"]
    read_plan(args.plan)  # a plan that cannot be read fails before the first cell
    cells: dict[str, list[dict[str, Any]]] = {row["label"]: [] for row in rows}
    began, total = time.monotonic(), len(rows) * len(args.seeds)
    for k, (seed, row) in enumerate((seed, row) for seed in args.seeds for row in rows):
        name = re.sub(r"[^a-z0-9]+", "-", row["label"].lower()).strip("-")
        cell = run_cell(args.plan, row["set"], seed, args.runs / args.out.name / f"{name}-{seed}", args.done)
        cells[row["label"]].append(cell)
        told = cell.get("error") or f"accuracy {cell['accuracy_last']:.3f}, {cell['seconds']:.0f} s"
        left = (time.monotonic() - began) / (k + 1) * (total - k - 1) / 60
        print(f"[{k + 1}/{total}, {left:.0f} min left] {row['label']}, seed {seed}: {told}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(cells, indent=1) + "\n")
    words = f"python tools/method_table.py {args.plan} --rows {args.rows} --seeds {' '.join(map(str, args.seeds))} "
    args.out.with_suffix(".md").write_text(table(args.plan, spec, cells, words + f"--out {args.out}"))


if __name__ == "__main__":
    main()
