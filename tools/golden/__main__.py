"""Whether an earlier commit and the present tree come to the same results, to the bit.

    python -m tools.golden                               against 026e48a, before the redesign
    python -m tools.golden --only fedavg --only flora    some plans
    python -m tools.golden --against HEAD --schema 2     what is not committed yet; HEAD reads `v2`
    python -m tools.golden --slow                        with plans of worker processes too
    python -m tools.golden --bytes-may-differ            bytes are reported and fail nothing
    python -m tools.golden --keep /tmp/golden            leaves the folders of all runs there

Both run the plans of plans.toml through the command line, at the same time, each in a process of
its own that finds its own tree. Compared are digests of the shared parameters after the last round,
the bytes of each client in each round, and all else that rounds.jsonl tells: weights, failures,
metrics, privacy, the aggregation error, the vote. Noise comes from secrets that are the same for
both. The exit status is 0 if all is equal, 1 if anything differs or fails.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGTERM, signal
from tempfile import TemporaryDirectory
from time import perf_counter

from tools.golden.comparing import BYTES, SECTIONS, Difference, differences
from tools.golden.plans import FILE, VERSIONS, GoldenPlan, read_plans
from tools.golden.records import read_record
from tools.golden.running import ROOT, Outcome, Run, unpack_commit

PIN = "026e48a"


@dataclass(frozen=True)
class Verdict:
    """How a plan compares.

    Attributes:
      failed: why there is nothing to compare; empty if there is.
      seconds: of a processor that the earlier commit and the present tree took.
    """

    name: str
    failed: str
    differences: Sequence[Difference]
    seconds: tuple[float, float]

    def equal(self, section: str) -> bool:
        return not self.failed and all(one.section != section for one in self.differences)

    def passed(self, bytes_may_differ: bool) -> bool:
        asked = [one for one in SECTIONS if not (bytes_may_differ and one == BYTES)]
        return all(self.equal(section) for section in asked)


def verdict(old: Outcome, new: Outcome, bytes_vary: int) -> Verdict:
    """The comparison of a plan that both have run."""
    pairs = (("the earlier commit", old), ("the present tree", new))
    failed = "; ".join(f"{who} failed with {one.failed}" for who, one in pairs if one.failed)
    found: list[Difference] = []
    if not failed:
        try:
            found = differences(read_record(old.folder), read_record(new.folder), bytes_vary)
        except (OSError, ValueError, KeyError) as error:
            failed = f"what was left cannot be read: {error}"
    return Verdict(old.name, failed, found, (old.seconds, new.seconds))


def verdicts(plans: Sequence[GoldenPlan], commit: str, schema: int, at: Path) -> Iterator[Verdict]:
    """Each plan's, in order, as soon as both trees have run it."""
    sides = [at / "earlier", at / "present"]
    for side in sides:
        side.mkdir(parents=True)
    sources = [unpack_commit(commit, at / "tree"), ROOT / "src"]
    with ExitStack() as stack:
        runs = []
        for version, source, side in zip((schema, VERSIONS[-1]), sources, sides, strict=True):
            runs.append(Run(plans, version, source, side))
            stack.callback(runs[-1].stop)
        for plan, old, new in zip(plans, *(run.outcomes() for run in runs), strict=True):
            yield verdict(old, new, plan.bytes_vary)


def lines(one: Verdict, width: int, bytes_may_differ: bool) -> Iterator[str]:
    """A row of the table, and below it all differences in bytes after the first."""
    marks = "  ".join(f"{_mark(one, section):<10}" for section in SECTIONS)
    ordered = sorted(one.differences, key=lambda each: bytes_may_differ and each.section == BYTES)
    words = one.failed or (ordered[0].words if ordered else "")
    seconds = "/".join(f"{x:.1f}" for x in one.seconds)
    yield f"{one.name:<{width}}  {marks}  {seconds:<9}  {words}".rstrip()
    for each in ordered[1:]:
        if each.section == BYTES:
            yield f"{'':<{width}}    {each.words}"


def _mark(one: Verdict, section: str) -> str:
    if one.failed:
        return "failed"
    return "equal" if one.equal(section) else "DIFFERS"


def select_plans(
    plans: Sequence[GoldenPlan], only: Sequence[str], slow: bool = False
) -> list[GoldenPlan]:
    """The plans of these names, or all; slow ones only where they are asked for.

    Raises:
      ValueError: there is no plan of that name.
    """
    known = [plan.name for plan in plans]
    for name in only:
        if name not in known:
            raise ValueError(f"there is no plan {name!r}; known: {', '.join(known)}")
    return [plan for plan in plans if plan.name in only or (not only and slow >= plan.slow)]


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.golden",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--against", default=PIN, metavar="COMMIT", help=f"{PIN} if left out")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="repeatable")
    parser.add_argument(
        "--schema", type=int, choices=VERSIONS, default=1, help="of the commit's plans"
    )
    parser.add_argument("--slow", action="store_true", help="the slow plans too")
    parser.add_argument("--bytes-may-differ", action="store_true", help="bytes fail nothing")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for all runs")
    parser.add_argument("--json", action="store_true", help="nothing but JSON on standard output")
    return parser.parse_args(words)


def compare(given: argparse.Namespace, at: Path) -> bool:
    """Run and print everything; return whether all passed."""
    begun, plans = (
        perf_counter(),
        select_plans(read_plans(FILE.read_text()), given.only, given.slow),
    )
    width, found = max(len(plan.name) for plan in plans), []
    if not given.json:
        heads = "  ".join(f"{section:<10}" for section in SECTIONS)
        print(f"{'plan':<{width}}  {heads}  {'CPU s':<9}  the first difference")
    for one in verdicts(plans, given.against, given.schema, at):
        found.append(one)
        if not given.json:
            print("\n".join(lines(one, width, given.bytes_may_differ)), flush=True)
    passed = [one for one in found if one.passed(given.bytes_may_differ)]
    seconds = round(perf_counter() - begun, 1)
    if given.json:
        told = [
            asdict(one) | {section: one.equal(section) for section in SECTIONS} for one in found
        ]
        print(json.dumps({"against": given.against, "seconds": seconds, "plans": told}, indent=2))
    else:
        print(f"{len(passed)} of {len(found)} passed against {given.against}, {seconds:.0f} s")
    return len(passed) == len(found) == len(plans)


def main(words: Sequence[str]) -> int:
    """The command; returns its exit status."""
    given = arguments(words)
    signal(SIGTERM, lambda *_: sys.exit(143))  # so that the temporary folder goes then too
    try:
        if given.keep:
            given.keep.mkdir(parents=True)
            return 0 if compare(given, given.keep.resolve()) else 1
        with TemporaryDirectory(prefix="fedpeft-golden-") as at:
            return 0 if compare(given, Path(at).resolve()) else 1
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
