"""Accuracy of a merge as contribution files arrive one after another, and as their clients leave
again.

    python tools/arrivals.py                    # docs/results/arrivals.json
    python tools/arrivals.py "Dirichlet 100"    # these federations anew, beside the others
    python -m tools.claims one-shot             # afterwards: the table of the page

The commands a user types: `fedpeft invite` without a plan (handwritten digits, LoRA, one round),
for each of eight of 32 clients `fedpeft contribute`, then `fedpeft merge --evaluate`, and for each
client `fedpeft merge --remove` and `fedpeft evaluate`. Files arrive in the order of the clients'
names, and the first to come is the first to leave.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typer.testing import CliRunner

from fedpeft.cli.app import app
from fedpeft.storage.files import write_atomically

OUT = Path(__file__).parents[1] / "docs" / "results" / "arrivals.json"
FEDERATIONS: dict[str, dict[str, object]] = {
    "Dirichlet 0.1": {"partition.alpha": 0.1},
    "Dirichlet 0.1, rows by class counts": {"partition.alpha": 0.1, "head_rows": "class_counts"},
    "Dirichlet 100": {"partition.alpha": 100.0},
}
SEEDS = (1, 42, 3407)
CLIENTS, FILES = 32, 8


def fedpeft(*words: object) -> str:
    """What a command prints.

    Raises:
      SystemExit: it failed.
    """
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exit_code:
        raise SystemExit(f"fedpeft {' '.join(map(str, words))}: {done.output or done.exception}")
    return done.stdout


def measured(label: str, seed: int, at: Path) -> dict[str, Any]:
    """Of one federation the accuracy before and after each arrival, and after each leave but the
    last."""
    settings = {"partition.clients": CLIENTS, **FEDERATIONS[label], "seed": seed}
    fedpeft(
        "invite",
        "-o",
        at / "study",
        *(word for key, x in settings.items() for word in ("--set", f"{key}={x}")),
    )
    files = [at / f"{number}.safetensors" for number in range(FILES)]
    for number, file in enumerate(files):
        fedpeft("contribute", at / "study", "--client", number, "--yes", "-o", file)
    merged = at / "merged"
    told = json.loads(fedpeft("merge", at / "study", *files, "-o", merged, "--evaluate", "--json"))
    arrivals = told["arrivals"]
    left = []
    for arrival in arrivals[1:-1]:
        fedpeft("merge", merged, "--remove", arrival["client"])
        held_out = json.loads(fedpeft("evaluate", merged, "--json"))["held_out"]
        left.append({"client": arrival["client"], "accuracy": held_out["accuracy"]})
    return {
        "federation": label,
        "seed": seed,
        "bytes": [file.stat().st_size for file in files],
        "came": [
            {
                "client": one["client"],
                "examples": one.get("examples"),
                "accuracy": one["held_out"]["accuracy"],
            }
            for one in arrivals
        ],
        "left": left,
    }


def main(labels: list[str]) -> None:
    before = json.loads(OUT.read_text())["federations"] if OUT.exists() else []
    found = {(one["federation"], one["seed"]): one for one in before}
    for label in labels or FEDERATIONS:
        for seed in SEEDS:
            with TemporaryDirectory() as folder:
                found[label, seed] = one = measured(label, seed, Path(folder))
            print(f"{label}, seed {seed}: {one['came'][-1]['accuracy']:.3f}", file=sys.stderr)
    every = [
        found[label, seed] for label in FEDERATIONS for seed in SEEDS if (label, seed) in found
    ]
    whole = {"clients": CLIENTS, "files": FILES, "federations": every}
    write_atomically(OUT, (json.dumps(whole, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
