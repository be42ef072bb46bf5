"""One round of a plan, merged by every rule for what its clients send anyway.

    python -m tools.merge_once PLAN FILE --set KEY=VALUE --seeds 1 42 3407

The clients of a seed train once, and their very answers are merged by each rule in turn; "class
rows" alone reads how many examples of each class a client has. Rules that ask in another message,
or that train something else, are not among them: their clients would have to train again.
FILE gets a row for each seed and rule; it may be there with fewer rows, and only seeds that it
lacks are trained.
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedpeft.core.types import ClientId, Failure, Job, Reply
from fedpeft.engines.inprocess import InProcess
from fedpeft.evaluation.measure import measure
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import open_site
from fedpeft.wire.frames import frame, unframe
from tools.cell_tables import read_table, write_table

RULES = {
    "mean": "mean",
    "fedex": "fedex",
    "flora": "flora",
    "flexlora": "flexlora",
    "lora fair": "lora_fair",
    "hetlora": "hetlora",
    "ties": "ties",
    "ties, all changes": "{ name = 'ties', density = 1.0 }",
    "agreeing": "agreeing",
    "median": "median",
    "class rows": "class_rows",
}
COUNTING = "class rows"
COLUMNS = ("rule", "seed", "accuracy", "loss", "clients", "rounds", "epochs")


@dataclass
class Remembered:
    """An engine whose clients train when they are first asked, and say the same ever after; `plain`
    drops what they tell beside their update and its weight.

    Raises:
      RuntimeError: a client fails.
    """

    inner: InProcess
    plain: bool = False
    said: dict[ClientId, bytes] = field(default_factory=dict)

    @property
    def clients(self) -> Any:
        return self.inner.clients

    def run(self, jobs: Iterable[Job]) -> Iterator[Reply | Failure]:
        for job in jobs:
            if job.client not in self.said:
                [reply] = self.inner.run([job])
                if isinstance(reply, Failure):
                    raise RuntimeError(f"{job.client} fails: {reply.reason}")
                self.said[job.client] = reply.payload
            payload = self.said[job.client]
            if self.plain:
                (weight, metrics, *_), body = unframe(payload, nested=True)
                payload = frame([weight, metrics], body, nested=True)
            yield Reply(job.client, payload)


def merge_all(plan_file: Path, settings: list[str]) -> Iterator[dict[str, Any]]:
    """The row of each rule."""
    plans = {
        label: read_plan(plan_file, [*settings, f"aggregator={rule}"])
        for label, rule in RULES.items()
    }
    site = open_site(plans[COUNTING])
    engine, begun = Remembered(InProcess(site)), start(site.plan, site.params())
    for label in sorted(plans, key=lambda label: label != COUNTING):
        plan = replace(site.plan, aggregator=plans[label].aggregator)
        engine.plain = label != COUNTING
        [(state, ledger)] = federate(plan, engine, begun)
        if ledger.failed:
            raise RuntimeError(f"{label}: {next(iter(ledger.failed.values()))}")
        found = measure(replace(site, plan=plan), state.flat)
        numbers = {name: round(found[name], 4) for name in ("accuracy", "loss")}
        epochs = getattr(plan.local, "epochs", "")
        told = {"clients": len(ledger.weights), "rounds": plan.rounds, "epochs": epochs}
        yield {"rule": label, "seed": plan.seed, **numbers, **told}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    told = parser.parse_args()
    rows = read_table(told.file)
    for seed in told.seeds:
        if str(seed) in {row["seed"] for row in rows}:
            continue
        settings = [*told.settings, f"seed={seed}", "rounds=1", "evaluate_every=1"]
        for row in merge_all(told.plan, settings):
            rows.append(row)
            print(rows[-1], flush=True)
        write_table(told.file, COLUMNS, rows)


if __name__ == "__main__":
    main()
