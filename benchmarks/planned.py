"""What `fedpeft plan` says beside what `fedpeft run` then takes: bytes, peak memory and time.

    python -m benchmarks.planned                        # all, half an hour on two busy cores
    python -m benchmarks.planned --only digits-lora digits-dp
    python -m benchmarks.planned --only digits-dp --out benchmarks/results/planned.csv

Each plan is planned in one fresh process and run in another, one after the other. Bytes are those
of all rounds. `up_off` is how far the bytes up are off: a message up has the digits of its client's
loss in its header, which nobody knows before. Memory is the largest resident set of the run (with
worker processes, of the largest one); time is that of all rounds with their evaluations.

A file that is there keeps the rows of the plans that are not measured, or that fail. Some plans
read what tools make:

    python -m tools.spoken_digits DATA
    python -m tools.diabetes_table DATA
    python -m tools.cell_pictures DATA --data TABLES    # TABLES/bloodcells

$FEDPEFT_DATA is one folder: DATA, with cifar100, emoji, dolly, trec6, vit-tiny and stories260k
of TABLES in it, or links.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
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
        ("rounds=1", "cohort=2", "data.subset=1280", "engine=inprocess"),
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
    """Compare the plans and write a row of each as soon as it is there, in the order of `WORKS`.

    A file keeps its rows of other plans, and of plans that fail, which standard error names.
    """
    rows = read_rows(out) if out else {}
    printed = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    if not out:
        printed.writeheader()
    for work in works:
        try:
            rows[work.name] = compare(work)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{work.name}: {error}", file=sys.stderr)
            continue
        if out:
            write_rows(rows, out)
        else:
            printed.writerow(rows[work.name])
            sys.stdout.flush()


def read_rows(file: Path) -> dict[str, dict[str, Any]]:
    """The rows of a table by their plans; none where it is not there yet."""
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8") as opened:
        return {row["plan"]: row for row in csv.DictReader(opened)}


def write_rows(rows: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """All rows, with those of plans that are measured no more at the end."""
    known = [work.name for work in WORKS]
    order = sorted(rows, key=lambda name: known.index(name) if name in known else len(known))
    beside = file.with_name(f"{file.name}.new")
    with beside.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in order)
    beside.replace(file)


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
