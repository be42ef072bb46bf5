"""The same work by fedpeft, by its peers and by a bare PyTorch loop, in turn on this machine.

    python -m benchmarks.race                                # all, some ten minutes on two cores
    python -m benchmarks.race --only W1 --engines loop fedpeft
    python -m benchmarks.race --out benchmarks/results       # race.json, race.md and race.svg
    python -m benchmarks.race --list                         # what W1 to W6 are

A record says which processor it is of, and how fast that multiplies: ratios differ between units of
256 and 512 bits. A record that is there is written over only by one of a quiet machine, before and
after; `--anyway` writes it all the same, and says what was not quiet.

Racers of W1 to W3 (`--engines`): `loop`, the PyTorch loop without any federation; `fedpeft` in its
ways; `flower`, its simulation on Ray; `pfl`, Apple's; `trainer`, a script with a Hugging Face
`Trainer` for each client. Each is a process of its own and has all processors: threads of one
process, or processes of one thread (Flower's actors, `processes`). All start from the same weights
and train the same clients on the same batches in the same order, so their parameters must agree at
the end; `difference` is the largest one to fedpeft's plain engine, over the largest change of an
entry.

A round is measured by the racer itself, from the order to the new parameters. All are started one
after another, then take turns; what counts is the median of the seconds, and of the ratios to the
loop's seconds of the same turn. `first` is the time from the start of the process to the end of its
first round, libraries, data and model included. `MB` is the most memory at the end of a turn, of
all processes of a racer: on Linux what they share counts once in all (PSS), for every racer alike.
Older records, which do not say so, have sums of resident memory: there it counts once for each.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM, signal
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import machine, measure_products, measure_quiet, say_noise
from benchmarks.racing import telling
from benchmarks.racing.others import OTHERS
from benchmarks.racing.running import MEGABYTES, Racer, difference
from benchmarks.racing.venvs import processors
from benchmarks.racing.works import WORKS, Work, lay_out

RECORD = "race.json"
ENGINES = ("loop", "fedpeft", "flower", "pfl", "trainer")


def racers(name: str, work: Work, engines: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The racers of a work by their names in the table, and what each is started with."""
    ways: dict[str, tuple[str, ...]] = {f"fedpeft {way}": ("ours", name, way) for way in work.ways}
    made: dict[str, tuple[str, ...]] = {}
    for engine in engines:
        if engine not in work.out:
            made |= ways if engine == "fedpeft" else {engine: (engine,)}
    return made


def race(name: str, work: Work, engines: Sequence[str], repeats: int) -> dict[str, Any]:
    """All racers' seconds, memory and differences."""
    wanted, out = racers(name, work, engines), dict(work.out)
    with TemporaryDirectory() as folder:
        lay_out(work, 1 + repeats * work.at_once, Path(folder))
        running: dict[str, Racer] = {}
        try:
            for told, arguments in wanted.items():
                print(f"{name}: {told} ...", end=" ", flush=True, file=sys.stderr)
                with giving_up(told, running, out):
                    running[told] = Racer(Path(folder), told, arguments)
                    print(
                        f"first round after {running[told].first:.1f} s",
                        flush=True,
                        file=sys.stderr,
                    )
            for turn in range(repeats + 1):
                for told, racer in list(running.items()):
                    with giving_up(told, running, out):
                        racer.go(work.at_once) if turn < repeats else racer.end()
            return {"what": work.told, "racers": summary(running, Path(folder)), "out": out}
        finally:
            for racer in running.values():
                racer.stop()


@contextmanager
def giving_up(name: str, running: dict[str, Racer], out: dict[str, str]) -> Iterator[None]:
    """A racer that fails is out, and the others go on."""
    try:
        yield
    except RuntimeError as error:
        print(error, file=sys.stderr)
        running.pop(name, None)
        out[name] = str(error).partition(":")[0]


def summary(running: dict[str, Racer], folder: Path) -> dict[str, Any]:
    """What goes into the table."""
    loop = running.get("loop")
    plain = running.get("fedpeft plain")
    found = {}
    for name, racer in running.items():
        seconds = [second for turn in racer.turns for second in turn]
        row: dict[str, Any] = {
            "seconds": round(statistics.median(seconds), 5),
            "least": round(min(seconds), 5),
            "most": round(max(seconds), 5),
            "rounds": len(seconds),
            "first": round(racer.first, 2),
            "memory_mb": round(racer.memory / 1e6),
        }
        if loop:
            pairs = zip(racer.turns, loop.turns, strict=True)
            row["of_loop"] = round(
                statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs), 3
            )
        if plain:
            row["difference"] = float(f"{difference(plain.result, racer.result, folder):.2g}")
        found[name] = row | ({"chose": chose} if (chose := racer.chose) else {})
    return found


def check_quiet(out: Path | None, anyway: bool, quiet: Mapping[str, float] | None = None) -> None:
    """End with what to do where a record would be written over on a machine with other work."""
    if anyway or out is None or not (out / RECORD).exists():
        return
    if reason := say_noise(quiet or measure_quiet()):
        sys.exit(f"{out / RECORD} stays as it is: {reason}. Wait, or add --anyway")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*WORKS, *OTHERS], default=[*WORKS, *OTHERS])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--repeats", type=int, default=3, help="turns of each racer, after its first round"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON, not as a table"
    )
    parser.add_argument("--out", type=Path, help="a folder for race.json, race.md and race.svg")
    parser.add_argument(
        "--anyway", action="store_true", help="write over a record on a machine with other work too"
    )
    parser.add_argument("--list", action="store_true", help="say what the works are, and run none")
    args = parser.parse_args(arguments)
    if args.list:
        told = {name: work.told for name, work in WORKS.items()} | {
            name: other.told for name, other in OTHERS.items()
        }
        print("\n".join(f"{name}  {told[name]}" for name in args.only))
        return
    signal(SIGTERM, lambda *_: sys.exit(1))  # so that the racers are ended too
    check_quiet(args.out, args.anyway)
    results: dict[str, Any] = {
        "machine": {**machine(processors()), "engines": args.engines},
        "products": measure_products(processors()),
        "quiet": {"before": measure_quiet()},
        "megabytes": MEGABYTES,
    }
    for name in args.only:
        if name in WORKS:
            results[name] = race(name, WORKS[name], args.engines, args.repeats)
        else:
            print(f"{name}: {OTHERS[name].told} ...", flush=True, file=sys.stderr)
            results[name] = OTHERS[name].run()
    # The load before is that of others; after it, it is the race's own.
    results["quiet"]["after"] = {"load": 0.0, "spread": measure_quiet()["spread"]}
    print(json.dumps(results, indent=2) if args.json else telling.table(results))
    if args.out:
        check_quiet(args.out, args.anyway, results["quiet"]["after"])
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / RECORD).write_text(json.dumps(results, indent=2) + "\n")
        (args.out / "race.md").write_text(telling.table(results))
        telling.plot(results, args.out / "race.svg")


if __name__ == "__main__":
    main()
