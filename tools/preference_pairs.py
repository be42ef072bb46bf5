"""Pairs of answers made of instructions with their answers: the right one is chosen, another
instruction's of the same client and category is rejected.

    python -m tools.preference_pairs dolly/train.parquet dolly-pairs/train.parquet

What such pairs teach is which answer belongs to a question, and nothing of taste: a check of
preference tuning whose truth is known.
"""

from argparse import ArgumentParser
from pathlib import Path
from random import Random
from typing import Any

SEED = 1
LONGEST = 200
"""Characters of a prompt with its longer answer; a small model sees most of them whole."""


def make_pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs, in the order of the rows; of rows that are too long, or whose client has no other
    answer of their category, none."""
    short = [row for row in rows if 0 < len(row["response"]) <= LONGEST and not row["context"]]
    short = [row for row in short if len(row["instruction"]) + len(row["response"]) <= LONGEST]
    draws, groups = Random(SEED), dict[tuple[Any, Any], list[str]]()
    for row in short:
        groups.setdefault((row["client"], row["category"]), []).append(row["response"])
    pairs = []
    for row in short:
        group = groups[row["client"], row["category"]]
        other = draws.choice(group)
        if other != row["response"]:
            about = {"client": row["client"], "prompt": row["instruction"]}
            pairs.append({**about, "chosen": row["response"], "rejected": other})
    return pairs


def main() -> None:
    """Read one table and write the other."""
    from datasets import Dataset

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("pairs", type=Path)
    given = parser.parse_args()
    pairs = make_pairs(Dataset.from_parquet(str(given.table)).to_list())
    given.pairs.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(pairs).to_parquet(given.pairs)
    print(f"{len(pairs):,} pairs in {given.pairs}")


if __name__ == "__main__":
    main()
