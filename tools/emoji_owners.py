"""Divide captioned emoji among owners of pairs, of pictures alone and of names alone, and save a
small CLIP without weights beside them.

    python -m tools.emoji_owners --data TABLES --out emoji-owners

Of 1,609 emoji 240 pairs are held out. Four owners have 60 pairs each; five have 113 pictures each
and five 112 or 113 names, all with the emoji's category as label. The division is drawn once, by a
seed of its own. The tokenizer is made of the names that are trained on, with ties that fall
otherwise each time, so that runs on another one come to other bits.
"""

import argparse
from collections.abc import Sequence
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
    if not (given.data / "emoji" / "train.parquet").is_file():
        parser.error(
            f"{given.data} has no emoji/train.parquet: docs/guide/plans.md says what it holds"
        )
    names = write_tables(given.data, given.out)
    save_model(given.out.with_name(f"{given.out.name}-model"), tokenizer_of(names))
    print(f"the tables lie in {given.out}, and the model beside it")


def write_tables(data: Path, out: Path) -> list[str]:
    """Write what is trained on and what is held out; gives all names that are trained on."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    table = pq.read_table(data / "emoji" / "train.parquet")
    draws = torch.Generator().manual_seed(1)
    table = table.take(torch.randperm(table.num_rows, generator=draws).tolist())
    owners = [_owner(place) for place in range(table.num_rows)]
    sides = [one.partition("-")[0] for one in owners]
    columns = {
        "image": _without(table["image"], [side == "txt" for side in sides]),
        "name": _without(table["name"], [side == "img" for side in sides]),
        "category": table["category"],
        "owner": owners,
        "side": sides,
    }
    whole = pa.table(columns)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(whole.slice(0, HELD_OUT), out / "test.parquet")
    pq.write_table(whole.slice(HELD_OUT), out / "train.parquet")
    return [name for name in columns["name"].to_pylist()[HELD_OUT:] if name]


def _without(column: Any, gone: Sequence[bool]) -> Any:
    """An Arrow column with gaps."""
    import pyarrow as pa
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    return pc.if_else(pa.array(gone), None, column.combine_chunks())


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
