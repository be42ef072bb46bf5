"""Films that users like, each user a client: what mixed rows and factors of a user's own come to.

    python -m tools.film_ratings RATINGS FILE

RATINGS is a table of comma-separated values with userId, movieId and rating, such as ratings.csv of
GroupLens' ml-latest-small, which is not among the data here. Films with 20 ratings and more are
kept, and of the users with 60 such ratings and more the 60 with the fewest. A film is liked at 4
and more. FILE gets, by variant and seed, the log loss and the accuracy on a fifth of each user's
own ratings. It may be there with fewer rows; only those that it lacks are run.
"""

import csv
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.evaluation.own_held_out import own_held_out
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.loop import federate, start
from fedpeft.rounds.site import Site, open_site
from fedpeft.storage.client_memory import Folder
from tools.cell_tables import read_table, write_table

OF_A_FILM, OF_A_USER, USERS, LIKED = 20, 60, 60, 4.0
SEEDS = (1, 42, 3407)
# The rate is one of 0.003, 0.01 and 0.03, by the log loss of own factors on seed 1.
LOCAL: Mapping[str, Any] = {"epochs": 1, "batch_size": 16, "lr": 0.03, "optimizer": "adamw"}
OWN = [{"name": "personal", "patterns": ["own_*"]}]
MIXUP = {"name": "mixup", "alpha": 0.5}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "own factors": {"own": True, "routing": OWN},
    "own factors, folded mixup": {
        "own": True,
        "routing": OWN,
        "augments": [{**MIXUP, "fold": True}],
    },
    "own factors, mixup": {"own": True, "routing": OWN, "augments": [MIXUP]},
    "user's factors shared by all": {"own": True},
    "no user's factors": {},
}
COLUMNS = ("variant", "seed", "log loss", "accuracy", "users", "films", "ratings")


def read_chosen(source: Path) -> list[tuple[int, int, float]]:
    """User, film and rating of the users and films that are kept."""
    with source.open(encoding="utf-8-sig", newline="") as file:
        found = csv.DictReader(file)
        rows = [(int(x["userId"]), int(x["movieId"]), float(x["rating"])) for x in found]
    seen = Counter(film for _, film, _ in rows)
    rows = [row for row in rows if seen[row[1]] >= OF_A_FILM]
    given = Counter(user for user, _, _ in rows)
    enough = [user for user, times in given.items() if times >= OF_A_USER]
    chosen = set(sorted(enough, key=lambda user: (given[user], user))[:USERS])
    return [row for row in rows if row[0] in chosen]


def select_ratings(source: Path, to: Path) -> dict[str, int]:
    """Write the chosen ratings, with films numbered from 0, and count them."""
    rows = read_chosen(source)
    number = {film: k for k, film in enumerate(sorted({film for _, film, _ in rows}))}
    with to.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("user", "film", "liked"))
        for user, film, rating in rows:
            table.writerow((f"u{user:04}", number[film], "yes" if rating >= LIKED else "no"))
    users = len({user for user, _, _ in rows})
    return {"users": users, "films": len(number), "ratings": len(rows)}


def open_variant(ratings: Path, films: int, variant: str, seed: int) -> Site:
    changes = VARIANTS[variant]
    own = changes.get("own", False)
    plan = {
        "method": "full",
        "engine": "cohort",
        "task": {"name": "factorization", "columns": ["film"], "sizes": [films], "own": own},
        "data": {"name": "table", "path": str(ratings), "label": "liked", "test_fraction": 0},
        "partition": {"name": "column", "column": "user", "held_out": 0.2},
        "local": {**LOCAL, "augments": changes.get("augments", [])},
        "routing": changes.get("routing", []),
        "cohort": USERS,
        "rounds": 15,
        "seed": seed,
    }
    return open_site(read_plan(plan))


def run_cell(site: Site) -> dict[str, Any]:
    """The numbers of one run.

    Raises:
      RuntimeError: an answer was not counted.
    """
    with TemporaryDirectory() as folder:
        store = Folder(Path(folder))
        begin = start(site.plan, site.params())
        ends = list(federate(site.plan, Cohort(site, store), begin))
        found = own_held_out(site, ends[-1][0], store)
    if found is None or any(ledger.failed or ledger.note for _, ledger in ends):
        raise RuntimeError(f"{ends[-1][1].failed} {ends[-1][1].note}")
    told = {name: found["metrics"][name]["weighted"] for name in ("loss", "accuracy")}
    return {"log loss": round(told["loss"], 4), "accuracy": round(100 * told["accuracy"], 2)}


def main() -> None:
    source, file = map(Path, sys.argv[1:3])
    rows = read_table(file)
    known = {(row["variant"], row["seed"]) for row in rows}
    with TemporaryDirectory() as folder:
        ratings = Path(folder) / "ratings.csv"
        counted = select_ratings(source, ratings)
        cells = [(name, seed) for seed in SEEDS for name in VARIANTS]
        for name, seed in (cell for cell in cells if (cell[0], str(cell[1])) not in known):
            found = run_cell(open_variant(ratings, counted["films"], name, seed))
            rows.append({"variant": name, "seed": seed, **found, **counted})
            print(rows[-1], flush=True)
            write_table(file, COLUMNS, rows)


if __name__ == "__main__":
    main()
