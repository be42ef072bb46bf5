"""What `fedpeft plan` says beside what `fedpeft run` then takes: bytes, peak memory and time.

    python -m benchmarks.planned                        # all, half an hour on two busy cores
    python -m benchmarks.planned --only digits-lora digits-dp
    python -m benchmarks.planned --out benchmarks/results/planned.csv

Each plan is planned in one fresh process and run in another, one after the other. Bytes are those
of all rounds. `up_off` is how far the bytes up are off: a message up has the digits of its client's
loss in its header, which nobody knows before. Memory is the largest resident set of the run (with
worker processes, of the largest one); time is that of all rounds with their evaluations.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LONGEST = 900
"""Seconds of one process."""


@dataclass(frozen=True)
class Work:
    """A small plan: a file of this repository, or "" for the package's own, and its changes."""

    name: str
    file: str
    settings: tuple[str, ...]


SHORT = ("rounds=2", "cohort=4", "engine=inprocess")
BRIEF = ("rounds=2", "evaluate_every=2", "engine=inprocess")
PLAN = "plans/"
WORKS = (
    Work("digits-lora", "", SHORT),
    Work("digits-full-int8", "", (*SHORT, "method=full", "uplink=int8", "local.lr=0.001")),
    Work("digits-cohort-topk", "", ("rounds=2", "engine=cohort", "uplink=topk")),
    Work("digits-feedback", "", (*SHORT, "uplink=sign", 'stages=["error_feedback"]')),
    Work("digits-processes-bias", "", ("rounds=2", "engine=processes", "method=bias")),
    Work("digits-class-means", "", (*SHORT, 'algorithms=["class_means"]')),
    Work("digits-flora", "", (*SHORT, "aggregator=flora")),
    Work("digits-head", "", (*SHORT, "method=head")),
    Work(
        "digits-dp",
        f"{PLAN}digits-dp.toml",
        ("rounds=1", "engine=inprocess", "privacy.target_epsilon=8", "local.noise_multiplier=2.0"),
    ),
    Work("one-shot", "src/fedpeft/assets/plans/one-shot.toml", ("local.epochs=1",)),
    Work(
        "trec6-minilm",
        f"{PLAN}trec6-minilm.toml",
        ("rounds=2", "cohort=3", "engine=inprocess", "data.subset=240", "partition.clients=6"),
    ),
    Work("dolly-stories", f"{PLAN}dolly-stories260k.toml", ("rounds=2", "data.subset=320")),
    Work(
        "cifar100-vit-tiny",
        f"{PLAN}cifar100-vit-tiny.toml",
        ("rounds=1", "cohort=2", "data.subset=320", "engine=inprocess"),
    ),
    # $FEDPEFT_DATA must have what tools.cell_pictures, spoken_digits and diabetes_table write
    Work("cells-segmentation", f"{PLAN}cells-segmentation.toml", (*BRIEF, "data.subset=200")),
    Work("cells-dicom", f"{PLAN}cells-dicom.toml", (*BRIEF, "data.subset=120")),
    Work("spoken-digits-lora", f"{PLAN}spoken-digits.toml", (*BRIEF, "method=lora")),
    Work("emoji-llava", f"{PLAN}emoji-llava.toml", (*BRIEF, "cohort=2", "data.subset=200")),
    Work("diabetes-regression", f"{PLAN}diabetes-regression.toml", BRIEF),
)
FIELDS = (
    *("plan", "engine", "rounds", "down_planned", "down_measured", "up_planned", "up_measured"),
    *("up_off", "answers", "memory_planned", "memory_measured", "memory_ratio"),
    *("seconds_planned", "seconds_measured", "seconds_ratio", "load"),
)


def compare(work: Work) -> dict[str, Any]:
    """A row of the table.

    Raises:
      RuntimeError: one of the processes fails.
    """
    planned = _tell("plan", work, "--measure")
    with TemporaryDirectory() as folder:
        ran = _tell("run", work, "--quiet", "--out", f"{folder}/run")
    memory = planned["memory"]["simulation"]["total"]
    seconds = planned["time"]["rounds"] if planned["time"] else None
    return {
        "plan": work.name,
        "engine": ran["engine"],
        "rounds": ran["rounds"],
        "down_planned": planned["bytes_down"],
        "down_measured": ran["bytes_down"],
        "up_planned": planned["bytes_up"],
        "up_measured": ran["bytes_up"],
        "up_off": planned["bytes_up"] - ran["bytes_up"],
        "answers": ran["asked"],
        "memory_planned": memory,
        "memory_measured": ran["peak_rss_bytes"],
        "memory_ratio": round(memory / ran["peak_rss_bytes"], 3),
        "seconds_planned": None if seconds is None else round(seconds, 2),
        "seconds_measured": ran["seconds"],
        "seconds_ratio": None if seconds is None else round(seconds / ran["seconds"], 2),
        "load": round(os.getloadavg()[0], 1),
    }


def _tell(command: str, work: Work, *options: str) -> dict[str, Any]:
    """What a command says, as JSON, from a process of its own."""
    settings = [word for setting in work.settings for word in ("--set", setting)]
    file = [work.file] if work.file else []
    words = [sys.executable, "-m", "fedpeft", command, *file, *settings, *options, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(works: Sequence[Work], out: Path | None) -> None:
    """Compare the plans and write a row of each as soon as it is there."""
    with open(out, "w", newline="", encoding="utf-8") if out else sys.stdout as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for work in works:
            try:
                writer.writerow(compare(work))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"{work.name}: {error}", file=sys.stderr)
            file.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [work.name for work in WORKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PLAN")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a CSV file; else it is printed")
    args = parser.parse_args()
    table([work for work in WORKS if work.name in args.only], args.out)


if __name__ == "__main__":
    main()
