"""What Flower costs on top of the clients' own work, with real processes on this machine.

    python -m benchmarks.flower                            # all
    python -m benchmarks.flower --only rounds --rounds 6
    python -m benchmarks.flower --only payload --bytes 1000000000
    python -m benchmarks.flower --out benchmarks/results

rounds   4 nodes, LoRA r=8 on a ViT-Tiny ($FEDPEFT_DATA: vit-tiny, cifar100; else the package's
         micro ViT and digits): seconds of a round over those of the client that trained longest in
         it. Wanted: at most 8.
plain    the same with Flower's own SuperNodes in place of `fedpeft supernode`.
payload  one message of so many random bytes to a node and back, through SuperLink, SuperNode,
         courier and worker.
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.federation import Federation, federation
from fedpeft.core.types import Job, Reply
from fedpeft.deploy.bundle import write_bundle
from fedpeft.engines.flower.engine import Flower, server_app
from fedpeft.runs.folder import RunFolder, read_rounds
from fedpeft.storage.locate import locate
from fedpeft.wire.sockets import Envelope, listen, receive, send

if TYPE_CHECKING:
    from flwr.serverapp import Grid

PARTS = ("rounds", "plain", "payload")
NODES = 4
DIGITS = """
name = "overhead"
method = "lora"
local = {batch_size = 16, lr = 0.01}
"""
VIT = """
name = "overhead"
method = "lora"
task = {name = "image-classification", model = "vit-tiny", size = 64}
data = {name = "table", path = "cifar100/train.parquet", test_fraction = 0.01SUBSET}
local = {batch_size = 32, lr = 0.01}
"""
CLIENTS = (
    'evaluate_every = 1000\ncohort = %d\nrounds = %d\npartition = {name = "iid", clients = %d}\n'
)
PATIENCE = 1800.0


def rounds(root: Path, count: int, each: int, quick: bool) -> dict[str, Any]:
    """Seconds of a round, of the longest training in it, and the difference.

    The first round is left out, and the last, which measures the held-out examples too.
    """
    real = locate("vit-tiny") and locate("cifar100")
    load = os.getloadavg()[0]
    with federation(root, quick=quick) as here:
        plan = root / "plan.toml"
        plan.write_text(
            CLIENTS % (NODES, count, NODES)
            + (VIT.replace("SUBSET", f", subset = {NODES * each}") if real else DIGITS)
        )
        here.superlink()
        here.nodes(plan, NODES, PATIENCE)
        flags = ("--engine", "flower", "--federation", "here", "--out", root / "run")
        if here.fedpeft("run", "run", plan, *flags).wait(PATIENCE):
            raise RuntimeError(here.log("run"))
        trained = [
            [float(x) for x in re.findall(r"after ([\d.]+) s", here.log(f"worker{k}"))]
            for k in range(NODES)
        ]
    whole = [line["seconds"] for line in read_rounds(RunFolder(root / "run"))]
    longest = [max(of_round) for of_round in zip(*trained, strict=True)]
    over = [a - b for a, b in zip(whole, longest, strict=True)][1:-1]
    return {
        "model": "vit-tiny on cifar100" if real else "micro-vit on digits",
        "nodes": NODES,
        "round_seconds": round(statistics.median(whole[1:-1]), 1),
        "longest_training_seconds": round(statistics.median(longest[1:-1]), 1),
        "over_seconds": round(statistics.median(over), 1),
        "over_seconds_min": round(min(over), 1),
        "over_seconds_max": round(max(over), 1),
        "rounds": len(over),
        "load_before": round(load, 1),
    }


def payload(root: Path, size: int) -> dict[str, Any]:
    """Seconds of one message there and back, and the most memory that a process of each kind
    had."""
    with federation(root, quick=False) as here:
        # In a file, 1 GB locks it for so long that Flower's own calls fail.
        here.superlink(database=False)
        here.begin("worker0", sys.executable, "-m", "benchmarks.flower", "--echo", root / "node0")
        here.supernode(0)
        settings = {"bytes": size, "out": str(root / "result.json")}
        write_bundle(root / "app", "payload", "One large message", "benchmarks.flower", settings)
        told = here.flwr("run", root / "app", "here")
        if told.returncode:
            raise RuntimeError(told.stdout + told.stderr)
        peak: dict[str, int] = {}
        ends = time.monotonic() + PATIENCE
        while not (root / "result.json").exists():
            if time.monotonic() > ends or "raised an exception" in here.log("superlink"):
                raise RuntimeError(here.log("superlink"))
            _watch(here, peak)
            time.sleep(0.2)
        result: dict[str, Any] = json.loads((root / "result.json").read_text())
    return {**result, "peak_mib": {name: value >> 10 for name, value in sorted(peak.items())}}


def _watch(here: Federation, peak: dict[str, int]) -> None:
    """By kind of process the most KiB that one had resident."""
    kinds = {
        "superlink": ("flower-superlink", "flwr-serverapp"),
        "supernode0": ("flower-supernode", "flwr-clientapp"),
    }
    for name, words in (*kinds.items(), ("worker0", ("--echo",))):
        for word in words:
            for pid in here.inside(name, word):
                try:
                    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                except OSError:
                    continue
                peak[word] = max(peak.get(word, 0), int(found[1]) if found else 0)


def echo(folder: Path) -> None:
    """A worker that gives back what it gets."""
    with listen(folder / "socket") as server:
        while True:
            connection, _ = server.accept()
            with connection:
                asked = receive(connection)
                kind = "reply" if asked.head["kind"] == "job" else "welcome"
                send(connection, Envelope({"kind": kind, "client": "echo"}, asked.body))


def ask(grid: "Grid", settings: Mapping[str, Any]) -> None:
    """The server's part of `payload`."""
    engine = Flower(grid, ["echo"], {}, PATIENCE)
    engine.gather()
    data, began = os.urandom(int(settings["bytes"])), time.perf_counter()
    [answer] = engine.run([Job("payload", 0, "echo", "fit", 0, None, data)])
    same = isinstance(answer, Reply) and answer.payload == data
    values: dict[str, Any] = {
        "bytes": len(data),
        "same": same,
        "seconds": round(time.perf_counter() - began, 1),
    }
    if not isinstance(answer, Reply):
        values["reason"] = answer.reason
    part = Path(str(settings["out"])).with_suffix(".part")
    part.write_text(json.dumps(values))
    part.rename(settings["out"])


if __name__ != "__main__":
    app = server_app(ask)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--examples", type=int, default=256, help="of each client; in all, some of every class"
    )
    parser.add_argument("--bytes", type=int, default=10**9)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--echo", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.echo:
        echo(chosen.echo)
        return
    results: dict[str, Any] = {}
    with TemporaryDirectory() as inside:
        for name in ("rounds", "plain"):
            if name in chosen.only:
                results[name] = rounds(
                    Path(inside) / name, chosen.rounds, chosen.examples, name == "rounds"
                )
                print(json.dumps(results[name]), flush=True)
        if "payload" in chosen.only:
            results["payload"] = payload(Path(inside) / "payload", chosen.bytes)
            print(json.dumps(results["payload"]), flush=True)
    if chosen.out:
        from benchmarks.machine import machine

        path = chosen.out / "flower.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        results = {name: {**values, "machine": machine(1)} for name, values in results.items()}
        path.write_text(json.dumps({**before, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
