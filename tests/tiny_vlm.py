"""Squares in four colours with what is asked of them, for vision-language models of the smallest
size."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tools.models.vision_language import FAMILIES, SIDE

FILMS = pytest.mark.skipif(
    find_spec("torchvision") is None, reason="Qwen-VL's processor needs torchvision"
)
EVERY = [
    "llava",
    *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES[2:]),
    pytest.param("qwen2_vl", marks=[pytest.mark.slow, FILMS]),
]
"""The families as values of a test, of which the normal run tries the first."""
COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 200, 40),
    "blue": (30, 40, 230),
    "white": (255, 255, 255),
}
ASKED = "what colour is this"


def square(colour: str, width: int = SIDE, height: int = SIDE) -> Image.Image:
    return Image.new("RGB", (width, height), COLOURS[colour])


def save_squares(folder: Path, number: int = 24) -> Path:
    """Two owners of pictures, some of them wide, with a question and the colour as its answer."""
    rows = []
    for k in range(number):
        name = list(COLOURS)[k % 4]
        square(name, SIDE * (1 + k % 3 // 2)).save(folder / f"{k}.png")
        rows.append({"image": f"{k}.png", "text": name, "who": "ann" if k % 8 < 4 else "bob"})
    return write_table(folder / "table.jsonl", rows)


def write_table(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def task_of(folder: Path, **settings: Any) -> dict[str, Any]:
    name = {"name": "image-text-to-text", "model": str(folder)}
    return {**name, "prompt": ASKED, "max_length": 32, **settings}


def changes(folder: Path, table: Path, **other: Any) -> dict[str, Any]:
    return {
        "task": task_of(folder),
        "data": {"name": "table", "path": str(table), "label": "none", "test_fraction": 0.25},
        "partition": {"name": "column", "column": "who"},
        "method": {"name": "lora", "rank": 2},
        "local": {"batch_size": 4, "lr": 0.02, "optimizer": "adamw"},
        "rounds": 1,
        "cohort": 2,
        **other,
    }
