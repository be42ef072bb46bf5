"""Clips for the tests of videos: folders of animated pictures, and models of three families."""

from pathlib import Path
from typing import Any

from PIL import Image

from tools.models.folders import save_family

AUTO = "AutoModelForVideoClassification"
SIZES: dict[str, dict[str, Any]] = {
    "videomae": {"num_frames": 4, "image_size": 16, "patch_size": 8, "tubelet_size": 2},
    "vivit": {"num_frames": 4, "image_size": 16, "tubelet_size": [2, 8, 8]},
    "timesformer": {"num_frames": 4, "image_size": 16, "patch_size": 8},
    "vjepa2": {
        **{"frames_per_clip": 4, "crop_size": 16, "patch_size": 8, "tubelet_size": 2},
        **{"mlp_ratio": 2.0, "num_pooler_layers": 1, "pred_num_hidden_layers": 1},
        **{"pred_hidden_size": 32, "pred_num_attention_heads": 2, "pred_mlp_ratio": 2.0},
    },
}


def save_video_model(folder: Path, family: str, **settings: Any) -> Path:
    """A small model of the family, of random weights, for four frames of 16 pixels a side."""
    return save_family(folder, family, AUTO, **{**SIZES[family], **settings})


def greys(values: list[int], size: tuple[int, int] = (6, 4)) -> list[Any]:
    """A frame of one grey for each value."""
    return [Image.new("RGB", size, (value,) * 3) for value in values]


def save_gif(file: Path, values: list[int], size: tuple[int, int] = (6, 4)) -> Path:
    """An animated picture of these greys."""
    file.parent.mkdir(parents=True, exist_ok=True)
    first, *others = greys(values, size)
    first.save(file, save_all=True, append_images=others)
    return file
