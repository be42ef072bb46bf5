"""SLoRA's start against a plain one: rounds of sparse fine-tuning, and LoRA goes on from them.

    python -m tools.sparse_starts FILE

It writes a table of comma-separated values: by variant and seed the accuracy on held-out digits
after ten rounds in all, and the bytes that all clients sent in them. The file may be there with
fewer rows; only those that it lacks are run. The setting is that of lora-neighbours-small.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tools.cell_tables import read_table, write_table

SEEDS, ROUNDS, FIRST, RANK = (1, 42, 3407), 10, 3, 8
LAYERS = 'target = ["layers.4.attention.q_proj", "layers.4.attention.v_proj"]'
SETTING = (
    'partition={ name = "dirichlet", clients = 16, alpha = 0.1, min_per_client = 10, '
    "held_out = 0.2 }",
    'local={ epochs = 1, batch_size = 64, lr = 0.01, optimizer = "adamw" }',
    "cohort=16",
    "engine=inprocess",
    f"evaluate_every={ROUNDS}",
)
METHODS: Mapping[str, str] = {
    "LoRA": f'{{ name = "lora", rank = {RANK}, {LAYERS} }}',
    "sparse, a hundredth": f'{{ name = "sparse", density = 0.01, {LAYERS} }}',
    "all entries": f'{{ name = "sparse", density = 1.0, {LAYERS} }}',
}
"""By name what is trained in all rounds."""
STARTS: Mapping[str, float] = {"SLoRA, a hundredth": 0.01}
"""By name the share of the entries that is trained in the first rounds."""
COLUMNS = ("variant", "seed", "accuracy", "bytes up")


def call(*arguments: str) -> None:
    """Raises CalledProcessError where the command fails."""
    command = [sys.executable, "-m", "fedpeft", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def train(method: str, seed: int, rounds: int, out: Path) -> dict[str, Any]:
    """The summary of a run in the folder `out`."""
    keys = [f"--set={key}" for key in (*SETTING, f"method={method}")]
    call("run", *keys, "--seed", str(seed), "--rounds", str(rounds), "--out", str(out), "--quiet")
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def run_cell(variant: str, seed: int) -> dict[str, Any]:
    """The accuracy after all rounds, and the bytes that were sent in them."""
    with TemporaryDirectory() as place:
        folder, sent = Path(place), 0
        if variant in METHODS:
            last = train(METHODS[variant], seed, ROUNDS, folder / "run")
        else:
            sparse = f'{{ name = "sparse", density = {STARTS[variant]}, {LAYERS} }}'
            sent = train(sparse, seed, FIRST, folder / "first")["bytes_up"]
            start = folder / "start"
            call("export", str(folder / "first"), str(start), "--lora-rank", str(RANK))
            lora = f'{{ name = "lora", rank = {RANK}, {LAYERS}, init = "{start}" }}'
            last = train(lora, seed, ROUNDS - FIRST, folder / "run")
    return {"accuracy": round(100 * last["accuracy_last"], 2), "bytes up": sent + last["bytes_up"]}


def main() -> None:
    file = Path(sys.argv[1])
    rows = read_table(file)
    known = {(row["variant"], row["seed"]) for row in rows}
    for variant in (*STARTS, *METHODS):
        for seed in SEEDS:
            if (variant, str(seed)) in known:
                continue
            rows.append({"variant": variant, "seed": seed, **run_cell(variant, seed)})
            print(rows[-1], flush=True)
            write_table(file, COLUMNS, rows)


if __name__ == "__main__":
    main()
