"""Tags of words made of sentences whose two entities stand between marks (FewRel).

    python -m tools.entity_tags fewrel fewrel-tags/train.parquet

The marks are people's and distant supervision's. A sentence has two marked entities and may have
more, which are tagged "O": what is to be learned is which words are marked, no full list of names.
"""

from argparse import ArgumentParser
from pathlib import Path
from random import Random
from typing import Any

SEED = 1
MOST = {"wiki": 800, "semeval": 800, "pubmed": 400}
"""Sentences of each source, drawn with `SEED`: a small model learns from them within minutes."""
OPENING, CLOSING = ("[E1]", "[E2]"), ("[/E1]", "[/E2]")


def read_marks(text: str) -> tuple[list[str], list[str]]:
    """The words of a marked sentence, and their tags: B-ENT, I-ENT and O.

    Raises:
      ValueError: a mark closes nothing, or is not closed.
    """
    words: list[str] = []
    tags: list[str] = []
    inside, begins = "", False
    for token in text.split():
        if token in OPENING and not inside:
            inside, begins = CLOSING[OPENING.index(token)], True
        elif token == inside:
            inside = ""
        elif token in (*OPENING, *CLOSING):
            raise ValueError(f"{token} is out of place in {text!r}")
        else:
            words.append(token)
            tags.append("O" if not inside else "B-ENT" if begins else "I-ENT")
            begins = False
    if inside:
        raise ValueError(f"{inside} is missing in {text!r}")
    return words, tags


def main() -> None:
    """Read the tables of a folder and write one."""
    from datasets import Dataset

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("table", type=Path)
    given = parser.parse_args()
    draws, rows = Random(SEED), list[dict[str, Any]]()
    for source, most in MOST.items():
        texts = Dataset.from_parquet(str(given.folder / f"{source}.parquet"))["text"]
        for text in draws.sample(list(texts), most):
            words, tags = read_marks(text)
            rows.append({"source": source, "tokens": words, "ner_tags": tags})
    given.table.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows).to_parquet(given.table)
    print(f"{len(rows):,} sentences in {given.table}")


if __name__ == "__main__":
    main()
