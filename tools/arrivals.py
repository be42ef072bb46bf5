"""Accuracy of a merge as contribution files arrive one after another, and as their clients leave again.

    python tools/arrivals.py                    docs/results/arrivals.json; then `python tools/claims one-shot`

The commands a user types: `fedpeft invite` without a plan (handwritten digits, LoRA, one round), for each of eight of
32 clients `fedpeft contribute`, then `fedpeft merge --evaluate`, and for each client `fedpeft merge --remove` and
`fedpeft evaluate`. Files arrive in the order of the clients' names, and the first to come is the first to leave.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typer.testing import CliRunner

from fedpeft.cli.app import app
from fedpeft.core.stores import write_atomically

OUT = Path(__file__).parents[1] / "docs" / "results" / "arrivals.json"
ALPHAS = (0.1, 100.0)
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


def measured(alpha: float, seed: int, at: Path) -> dict[str, Any]:
    """Of one federation the accuracy before and after each arrival, and after each leave but the last."""
    settings = {"partition.clients": CLIENTS, "partition.alpha": alpha, "seed": seed}
    fedpeft("invite", "-o", at / "study", *(word for key, x in settings.items() for word in ("--set", f"{key}={x}")))
    files = [at / f"{number}.safetensors" for number in range(FILES)]
    for number, file in enumerate(files):
        fedpeft("contribute", at / "study", "--client", number, "-o", file)
    merged = at / "merged"
    told = json.loads(fedpeft("merge", at / "study", *files, "-o", merged, "--evaluate", "--json"))
    arrivals = told["arrivals"]
    left = []
    for arrival in arrivals[1:-1]:
        fedpeft("merge", merged, "--remove", arrival["client"])
        held_out = json.loads(fedpeft("evaluate", merged, "--json"))["held_out"]
        left.append({"client": arrival["client"], "accuracy": held_out["accuracy"]})
    return {
        "alpha": alpha,
        "seed": seed,
        "bytes": [file.stat().st_size for file in files],
        "came": [
            {"client": one["client"], "examples": one.get("examples"), "accuracy": one["held_out"]["accuracy"]}
            for one in arrivals
        ],
        "left": left,
    }


def main() -> None:
    found = []
    for alpha in ALPHAS:
        for seed in SEEDS:
            with TemporaryDirectory() as folder:
                found.append(measured(alpha, seed, Path(folder)))
            print(f"alpha {alpha}, seed {seed}: {found[-1]['came'][-1]['accuracy']:.3f}", file=sys.stderr)
    whole = {"clients": CLIENTS, "files": FILES, "federations": found}
    write_atomically(OUT, (json.dumps(whole, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
