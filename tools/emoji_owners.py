"""Divide captioned emoji among owners of pairs, of pictures alone and of names alone, and save a
small CLIP without weights beside them.

    python -m tools.emoji_owners --data ../shared/data --out emoji-owners

Of 1,609 emoji 240 pairs are held out. Four owners have 60 pairs each; five have 113 pictures each
and five 112 or 113 names, all with the emoji's category as label. The division is drawn once, by a
seed of its own. The tokenizer is made of the names that are trained on.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from tools.pretrain_emoji import TOKENS, tokenizer_of

HELD_OUT, PAIRS, OWNERS, ALONE = 240, 60, 4, 5
SIDE, WIDTH = 32, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder with `emoji`")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    train, names = write_tables(given.data, given.out)
    save_model(given.out.with_name(f"{given.out.name}-model"), tokenizer_of(names))
    print(f"{len(train):,} examples of {len(set(train))} owners lie in {given.out}, the model beside it")


def write_tables(data: Path, out: Path) -> tuple[list[str], list[str]]:
    """The tables; gives the owner of each example that is trained on, and all their names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(data / "emoji" / "train.parquet").drop_columns(["keywords", "emoji"])
    order = torch.randperm(table.num_rows, generator=torch.Generator().manual_seed(1)).tolist()
    table = table.take(order)
    owners = [_owner(place) for place in range(table.num_rows)]
    empty = {"image": [one.startswith("txt") for one in owners],
             "name": [one.startswith("img") for one in owners]}  # fmt: skip
    fields = list(table.schema)
    columns: dict[str, Any] = {name: table.column(name).combine_chunks() for name in table.schema.names}
    for name, gone in empty.items():
        columns[name] = pa.compute.if_else(pa.array(gone), None, columns[name])
    schema = pa.schema(
        [*fields, pa.field("owner", pa.string()), pa.field("side", pa.string())],
        metadata={k: x for k, x in (table.schema.metadata or {}).items() if k != b"huggingface"},
    )
    sides = [one.partition("-")[0] for one in owners]
    whole = pa.table([*(columns[f.name] for f in fields), pa.array(owners), pa.array(sides)], schema)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(whole.slice(0, HELD_OUT), out / "test.parquet")
    pq.write_table(whole.slice(HELD_OUT), out / "train.parquet")
    known = [name for name in columns["name"].to_pylist()[HELD_OUT:] if name]
    return owners[HELD_OUT:], known


def _owner(place: int) -> str:
    """Whose an emoji is, by its place in the order that was drawn."""
    if place < HELD_OUT:
        return "pair-held-out"
    place -= HELD_OUT
    if place < PAIRS * OWNERS:
        return f"pair-{place // PAIRS}"
    place -= PAIRS * OWNERS
    return f"{('img', 'txt')[place % 2]}-{place // 2 % ALONE}"


def save_model(folder: Path, words: Any) -> None:
    """The settings of a CLIP and what makes its inputs, without weights: plans train it from
    random ones."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPProcessor

    small = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": TOKENS,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    CLIPConfig(
        text_config={**small, **text},
        vision_config={**small, "image_size": SIDE, "patch_size": 8},
        projection_dim=WIDTH,
        architectures=["CLIPModel"],
    ).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size)
    CLIPProcessor(image_processor=pictures, tokenizer=words).save_pretrained(folder)


if __name__ == "__main__":
    main()
