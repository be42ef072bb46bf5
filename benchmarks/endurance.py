"""Many rounds of a federation of real processes that are killed at random, and what became of memory and files.

    python -m benchmarks.endurance                             # 200 rounds, 8 nodes
    python -m benchmarks.endurance --rounds 20 --nodes 3 --pause 20 --out benchmarks/results

Toy clients with SCAFFOLD's memories. After a pause drawn at random (seeded) a worker, a SuperNode, Flower's process at
a node, or the server's part is killed by kill -9, and begun again. Told are the kills, the failures by their words,
whether the run ended in the bits of a simulation with the same survivors, and of each kind of process that lives long
memory (MiB) and open files at the start and at the end, and the slope of memory (MiB in 100 rounds).
"""

import argparse
import json
import os
import random
import re
import signal
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.federation import ROOT, Federation, federation
from fedpeft.core.stores import Folder
from fedpeft.plan import read_plan
from fedpeft.runs.folder import RunFolder, read_rounds

PLAN = """
name = "endurance"
task = "parts:Points"
data = "parts:Blobs"
method = "full"
server = "scaffold"
deadline = 120
rounds = %d
cohort = %d
partition = {name = "iid", clients = %d}
local = {batch_size = 8, lr = 0.05, correction = "scaffold"}
"""
KINDS = {"worker": 4, "supernode": 2, "courier": 2, "server": 1}
"""What is killed, and how often against the others."""
AWAY = 3.0  # seconds until what was killed is begun again
Sample = tuple[int, float, int]
"""Rounds done, MiB resident, files open."""


@dataclass
class Endured:
    """A federation under random kills."""

    here: Federation
    nodes: int
    pause: float
    draws: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    samples: dict[tuple[str, int], list[Sample]] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return len(read_rounds(RunFolder(self.here.root / "run")))

    def until_done(self, plan: Path) -> None:
        """Begin the run, and go on with it each time that the server's part was killed."""
        run = self.here.root / "run"
        words: list[str | Path] = [plan, "--engine", "flower", "--federation", "here", "--out", run]
        again = time.monotonic() + 2 * self.pause
        while not (run / "summary.json").exists():
            process = self.here.fedpeft("run", "run", *words, "--quiet")
            while process.poll() is None:
                self.watch()
                if time.monotonic() > again:
                    self.kill(plan)
                    again = time.monotonic() + self.draws.uniform(0.5, 1.5) * self.pause
                time.sleep(1)
            if not (run / "plan.toml").exists():
                raise RuntimeError(self.here.log("run"))
            words = ["--resume", run]

    def kill(self, plan: Path) -> None:
        [kind] = self.draws.choices(list(KINDS), list(KINDS.values()))
        number = self.draws.randrange(self.nodes)
        supernode = f"supernode{number}"
        if kind == "worker":
            self.here.kill(f"worker{number}")
            time.sleep(AWAY)
            self.here.worker(plan, number)
        elif kind == "supernode":
            if not strike(self.here.inside(supernode)):
                return
            time.sleep(AWAY)
            self.here.supernode(number)
        elif not strike(
            self.here.couriers(number) if kind == "courier" else self.here.inside("superlink", "flwr-serverapp")
        ):
            return
        self.kills[kind] += 1

    def watch(self) -> None:
        """Memory and files of what lives long; of the server's part, while it lives."""
        found = {"superlink": [self.here.processes["superlink"].pid], "server": []}
        found["server"] = self.here.inside("superlink", "flwr-serverapp")
        for kind in ("worker", "supernode"):
            found[kind] = [self.here.processes[f"{kind}{k}"].pid for k in range(self.nodes)]
        for kind, pids in found.items():
            for pid in pids:
                with suppress(OSError, TypeError):  # it has ended meanwhile
                    status = Path(f"/proc/{pid}/status").read_text()
                    size = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
                    files = len(os.listdir(f"/proc/{pid}/fd"))
                    self.samples.setdefault((kind, pid), []).append((self.done, size, files))

    def told(self) -> dict[str, dict[str, float]]:
        """By kind what became of the process that lived through most rounds."""
        kinds: dict[str, list[Sample]] = {}
        for (kind, _), samples in self.samples.items():
            kinds[kind] = max(kinds.get(kind, []), samples, key=lived)
        return {kind: slope(samples) for kind, samples in kinds.items()}


def strike(pids: list[int]) -> bool:
    """kill -9; whether somebody was there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def lived(samples: list[Sample]) -> int:
    return samples[-1][0] - samples[0][0] if samples else -1


def slope(samples: list[Sample]) -> dict[str, float]:
    """The start is where a fifth of its rounds is done: until then libraries are loaded and pools filled."""
    first = samples[0][0] + lived(samples) / 5
    settled = [sample for sample in samples if sample[0] >= first]
    rounds, sizes, files = ([sample[k] for sample in settled] for k in range(3))
    rises = len(set(rounds)) > 1
    return {
        "rounds": rounds[-1] - rounds[0],
        "mib_start": round(sizes[0], 1),
        "mib_end": round(sizes[-1], 1),
        "mib_per_100_rounds": round(100 * statistics.linear_regression(rounds, sizes).slope, 2) if rises else 0.0,
        "files_start": files[0],
        "files_end": files[-1],
    }


def endured(root: Path, rounds: int, nodes: int, pause: float, seed: int) -> dict[str, Any]:
    from benchmarks.survivors import simulated

    began = time.monotonic()
    with federation(root) as here:
        plan = root / "plan.toml"
        plan.write_text(PLAN % (rounds, nodes, nodes))
        here.superlink()
        here.nodes(plan, nodes, 600)
        run = Endured(here, nodes, pause, random.Random(seed))
        run.until_done(plan)
        lines = read_rounds(RunFolder(root / "run"))
        words = Counter(what["failed"] for line in lines for what in line["clients"].values() if "failed" in what)
        return {
            "rounds": len(lines),
            "nodes": nodes,
            "seed": seed,
            "kills": dict(run.kills),
            "failures": dict(words.most_common()),
            "same_bits": simulated(read_plan(plan), RunFolder(root / "run"), Folder(root / "here")),
            "minutes": round((time.monotonic() - began) / 60, 1),
            "processes": run.told(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--pause", type=float, default=60.0, help="seconds between two kills, on average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    sys.path.append(str(ROOT / "tests"))  # the toy clients
    with TemporaryDirectory() as inside:
        result = endured(Path(inside), chosen.rounds, chosen.nodes, chosen.pause, chosen.seed)
    print(json.dumps(result, indent=2))
    if chosen.out:
        from benchmarks.overhead import machine

        path = chosen.out / "endurance.json"
        path.write_text(json.dumps({**result, "machine": machine(1)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
