"""Many rounds of a federation of real processes that are killed at random, and what became of their
memory.

    python -m benchmarks.endurance                                         # 200 rounds of 8 nodes
    python -m benchmarks.endurance --rounds 10 --folder endurance --out benchmarks/results

Toy clients with SCAFFOLD's memories. In a share of the rounds, drawn beforehand by a seed like the
moment and the victim, a worker, a SuperNode, Flower's process at a node, or the server's part is
ended by kill -9, and begun again where it does not begin by itself. At the end of each round the
resident memory of every process is read. Told are the kills, the failures by their words, whether
the run ended in the bits of a simulation with the same survivors, and for each kind of process the
slope of its memory by least squares, each process with a level of its own, in KiB a round with its
standard error.

What was seen is in FOLDER/log.jsonl; begun again with the same folder, the run goes on from its
last round.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.federation import ROOT, Federation, federation
from fedpeft.plan.reading import read_plan
from fedpeft.runs.folder import RunFolder, read_rounds
from fedpeft.storage.client_memory import Folder

PLAN = """
name = "endurance"
task = "parts:Points"
data = "parts:Blobs"
method = "full"
deadline = 300
rounds = %d
cohort = %d
partition = {name = "iid", clients = %d}
local = {batch_size = 8, lr = 0.05, correction = "scaffold"}
"""
VICTIMS = {"worker": 4, "supernode": 2, "courier": 2, "server": 1}
"""What is killed, and how often against the others."""
# Seconds of a round in which the moment lies; without a kill a round takes about so long.
WITHIN = 6.0
AWAY = 3.0  # seconds until what was killed is begun again
ROLES = {
    "flower-superlink": "superlink",
    "flwr-serverapp": "server",
    "flower-supernode": "flower-supernode",
    "flower-superexec": "superexec",
    "\0fedpeft\0supernode\0": "fedpeft-supernode",
    "\0fedpeft\0node\0": "worker",
    "\0fedpeft\0run\0": "follower",
}
"""By what is in its command, what a process is."""
SETTLING = 20
"""Of the rounds a part of so many: what a process takes until then is what it loads, and is not in
the slope."""
Line = Mapping[str, Any]


@dataclass
class Endured:
    """A federation under random kills.

    Attributes:
      seen: the round up to which memory was read, and for which a kill was drawn.
      planned: when, what, at which node.
    """

    here: Federation
    nodes: int
    share: float
    seed: int
    seen: int = -1
    planned: tuple[float, str, int] | None = None

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.here.root / "run")

    def until_done(self, plan: Path) -> None:
        """Begin the run, or go on with it, each time that the server's part was killed."""
        path = self.run.path
        while not self.run.summary.exists():
            words: list[str | Path] = [
                plan,
                "--engine",
                "flower",
                "--federation",
                "here",
                "--out",
                path,
            ]
            if self.run.plan.exists():
                words = ["--resume", path]
            follower = self.here.fedpeft("run", "run", *words, "--quiet")
            while follower.poll() is None:
                self.look()
                self.mend(plan)
                if self.planned and time.monotonic() >= self.planned[0]:
                    _, kind, number = self.planned
                    if self.kill(plan, kind, number):
                        self.note(what="kill", kind=kind, node=number)
                        self.planned = None
                time.sleep(0.1)
            if not self.run.plan.exists():
                raise RuntimeError(self.here.log("run"))

    def look(self) -> None:
        """At the end of each round read what every process holds, and draw what the next one
        suffers."""
        done = len(read_rounds(self.run))
        if done == self.seen:
            return
        self.seen = done
        for role, pid in self.found():
            with suppress(OSError, TypeError):  # it has ended meanwhile
                status = Path(f"/proc/{pid}/status").read_text()
                size = int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]
                begun = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19]
                files = len(os.listdir(f"/proc/{pid}/fd"))
                self.note(what="memory", role=role, process=f"{pid}-{begun}", kib=size, files=files)
        draws = random.Random(f"{self.seed}/{done}")
        if self.planned is None and draws.random() < self.share:
            [kind] = draws.choices(list(VICTIMS), list(VICTIMS.values()))
            self.planned = (
                time.monotonic() + draws.uniform(0, WITHIN),
                kind,
                draws.randrange(self.nodes),
            )

    def mend(self, plan: Path) -> None:
        """Begin again what ended by itself, and tell of it."""
        for name, process in list(self.here.processes.items()):
            if name == "run" or process.poll() is None:
                continue
            self.note(what="ended", kind=name, code=process.returncode)
            if name == "superlink":
                self.here.superlink()
            elif name.startswith("worker"):
                self.here.worker(plan, int(name.removeprefix("worker")))
            else:
                self.here.supernode(int(name.removeprefix("supernode")))

    def found(self) -> Iterator[tuple[str, int]]:
        """The federation's processes but for couriers, which live for one message."""
        begun = {process.pid for process in self.here.processes.values()}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"FLWR_HOME={self.here.root}/".encode() in (path / "environ").read_bytes():
                    command = (path / "cmdline").read_text()
                    role = next((role for word, role in ROLES.items() if word in command), "")
                    if role and (role != "fedpeft-supernode" or int(path.name) in begun):
                        yield role, int(path.name)

    def kill(self, plan: Path, kind: str, number: int) -> bool:
        """kill -9, and begin again what does not begin by itself; whether anybody was there."""
        if kind == "worker":
            self.here.kill(f"worker{number}")
            time.sleep(AWAY)
            self.here.worker(plan, number)
            return True
        inside = self.here.inside
        victims = {
            "supernode": lambda: inside(f"supernode{number}"),
            "courier": lambda: self.here.couriers(number),
            "server": lambda: inside("superlink", "flwr-serverapp"),
        }[kind]()
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victims and kind == "supernode":
            time.sleep(AWAY)
            self.here.supernode(number)
        return bool(victims)

    def note(self, **what: Any) -> None:
        line = {"at": round(time.time(), 1), "round": self.seen, **what}
        with (self.here.root / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        if what["what"] != "memory":
            print(json.dumps(line), flush=True)


def told(root: Path, rounds: int) -> dict[str, Any]:
    """What the log and the run's folder say, as far as they go."""
    log = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    lines = read_rounds(RunFolder(root / "run"))
    words = Counter(
        what["failed"] for line in lines for what in line["clients"].values() if "failed" in what
    )
    memory: dict[str, dict[str, list[Line]]] = {}
    for line in log:
        if line["what"] == "memory":
            memory.setdefault(line["role"], {}).setdefault(line["process"], []).append(line)
    return {
        "rounds": len(lines),
        "minutes": round((log[-1]["at"] - log[0]["at"]) / 60, 1),
        "kills": dict(Counter(line["kind"] for line in log if line["what"] == "kill")),
        "ended_by_themselves": [line["kind"] for line in log if line["what"] == "ended"],
        "updates": sum(len(line["clients"]) for line in lines),
        "failures": dict(words.most_common()),
        "processes": {
            role: held(list(of.values()), rounds // SETTLING) for role, of in sorted(memory.items())
        },
    }


def held(processes: Sequence[Sequence[Line]], settling: int) -> dict[str, float | None]:
    """What became of the memory of a kind of process: of the one that lived longest, and the slope
    of all."""
    settled = [
        [line for line in of if line["round"] >= of[0]["round"] + settling] for of in processes
    ]
    longest = max(
        (of for of in settled if of),
        key=lambda of: of[-1]["round"] - of[0]["round"],
        default=processes[0],
    )
    slope, error = rising([[(line["round"], line["kib"]) for line in of] for of in settled])
    return {
        "processes": len(processes),
        "longest_rounds": longest[-1]["round"] - longest[0]["round"],
        "longest_mib_first": round(longest[0]["kib"] / 1024, 1),
        "longest_mib_last": round(longest[-1]["kib"] / 1024, 1),
        "longest_files_first": longest[0]["files"],
        "longest_files_last": longest[-1]["files"],
        "kib_a_round": slope,
        "standard_error": error,
        "readings": sum(map(len, settled)),
    }


def rising(
    series: Sequence[Sequence[tuple[float, float]]],
) -> tuple[float, float] | tuple[None, None]:
    """The slope that all series share, each with a level of its own, and its standard error, by
    least squares."""
    lives = [of for of in series if len(of) > 1]
    points = [point for of in lives for point in centred(of)]
    free, spread = len(points) - len(lives) - 1, sum(x * x for x, _ in points)
    if free < 1 or not spread:
        return None, None
    slope = sum(x * y for x, y in points) / spread
    missed = sum((y - slope * x) ** 2 for x, y in points)
    return round(slope, 2), round(sqrt(missed / free / spread), 2)


def centred(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points without their means."""
    middle, level = fmean(x for x, _ in points), fmean(y for _, y in points)
    return [(x - middle, y - level) for x, y in points]


def endured(root: Path, rounds: int, nodes: int, share: float, seed: int) -> dict[str, Any]:
    from benchmarks.survivors import simulated

    plan = root / "plan.toml"
    with federation(root) as here:
        plan.write_text(PLAN % (rounds, nodes, nodes))
        here.superlink()
        here.nodes(plan, nodes, 3600)
        run = Endured(here, nodes, share, seed)
        run.until_done(plan)
        run.look()
    shutil.rmtree(root / "here", ignore_errors=True)
    same = simulated(read_plan(plan), RunFolder(root / "run"), Folder(root / "here"))
    return {"nodes": nodes, "seed": seed, "same_bits": same, **told(root, rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.3, help="of the rounds that have a kill")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="kept, to go on with; else a temporary one")
    parser.add_argument("--out", type=Path, help="a folder for endurance.json")
    chosen = parser.parse_args()
    sys.path.append(str(ROOT / "tests"))  # the toy clients
    with TemporaryDirectory() as inside:
        root = (chosen.folder or Path(inside)).resolve()
        result = endured(root, chosen.rounds, chosen.nodes, chosen.share, chosen.seed)
    print(json.dumps(result, indent=2))
    if chosen.out:
        from benchmarks.machine import machine

        path = chosen.out / "endurance.json"
        path.write_text(json.dumps({**result, "machine": machine(1)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
