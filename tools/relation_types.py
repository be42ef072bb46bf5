"""Relations of FewRel for clients with few types each, at one number of sentences in all.

    python -m tools.relation_types fewrel few-rel/8 --types 8

writes train.parquet, equally many sentences of so many types of `wiki` and `semeval` and, by the
column `client`, which types each client has; and test.parquet, the types of `pubmed`, which nobody
trains on.
"""

from argparse import ArgumentParser
from pathlib import Path
from random import Random
from typing import Any

SENTENCES, CLIENTS = 1600, 8


def draw_types(rows: list[dict[str, Any]], types: int, seed: int) -> list[dict[str, Any]]:
    """`SENTENCES` of so many relations, which clients hold in turn.

    Raises:
      ValueError: too few relations have so many sentences.
    """
    draws, each = Random(seed), SENTENCES // types
    of: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        of.setdefault(row["relation"], []).append(row)
    enough = sorted(name for name, some in of.items() if len(some) >= each)
    if len(enough) < types:
        raise ValueError(f"{len(enough)} relations have {each} sentences, and {types} are asked")
    return [
        {"text": row["text"], "relation": relation, "client": f"c{k % CLIENTS}"}
        for k, relation in enumerate(draws.sample(enough, types))
        for row in draws.sample(of[relation], each)
    ]


def main() -> None:
    """Read the tables of a folder and write two."""
    from datasets import Dataset

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--types", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    read = {
        name: [
            {"text": row["text"], "relation": row["relation"]}
            for row in Dataset.from_parquet(str(given.folder / f"{name}.parquet"))
        ]
        for name in ("wiki", "semeval", "pubmed")
    }
    train = draw_types(read["wiki"] + read["semeval"], given.types, given.seed)
    test = [{**row, "client": ""} for row in read["pubmed"]]
    given.out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        Dataset.from_list(rows).to_parquet(given.out / f"{name}.parquet")
        print(f"{len(rows):,} sentences in {given.out / name}.parquet")


if __name__ == "__main__":
    main()
