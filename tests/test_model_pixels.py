"""The pixels that a model sees are those of its own processor."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fedpeft.errors import PlanError
from fedpeft.tasks.image_classification import ImageClassification
from tools.models.small import config_for

FAMILIES = (
    *(("vit", "ViT"), ("deit", "DeiT"), ("beit", "Beit"), ("convnext", "ConvNext")),
    *(("mobilevit", "MobileViT"), ("levit", "Levit"), ("clip", "CLIP"), ("siglip", "Siglip")),
    *(("mobilenet_v2", "MobileNetV2"), ("pvt", "Pvt"), ("poolformer", "PoolFormer")),
    *(("dinov2", "Bit"), ("efficientnet", "EfficientNet")),
)


def save(folder: Path, family: str, kind: str, **keys: Any) -> None:
    config = config_for(family)
    config.save_pretrained(folder)
    told = {"image_processor_type": f"{kind}ImageProcessor", **keys}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


@pytest.mark.parametrize(("family", "kind"), FAMILIES)
def test_the_pixels_of_a_processor(tmp_path: Path, family: str, kind: str) -> None:
    assert farthest_pixel(tmp_path, family, kind) < 1e-5


def test_pixels_from_which_a_processor_takes_one(tmp_path: Path) -> None:
    keys = {"rescale_offset": True, "rescale_factor": 1 / 127.5}
    assert farthest_pixel(tmp_path, "efficientnet", "EfficientNet", **keys) < 1e-5


def farthest_pixel(folder: Path, family: str, kind: str, **keys: Any) -> float:
    """How far the task's pixels are from the processor's, of a picture that has the size already; a
    processor's crop is for others."""
    from transformers import AutoImageProcessor

    save(folder, family, kind, do_resize=False, do_center_crop=False, crop_pct=1.0, **keys)
    draws = torch.Generator().manual_seed(1)
    picture = torch.randint(0, 256, (32, 32, 3), generator=draws, dtype=torch.uint8)
    processor = AutoImageProcessor.from_pretrained(folder)
    wanted = processor(Image.fromarray(picture.numpy()), return_tensors="pt")["pixel_values"]
    task = ImageClassification(str(folder), size=32)
    rows = {"image": picture.permute(2, 0, 1)[None], "label": torch.zeros(1).long()}
    return float((task.batch(rows, None)["pixel_values"] - wanted).abs().max())


def test_a_factor_other_than_a_byte_s_is_followed(tmp_path: Path) -> None:
    keys = {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}
    save(tmp_path, "vit", "ViT", **keys)
    see = ImageClassification(str(tmp_path)).input
    assert (see.mean, see.std) == ((0.5,) * 3, (0.5,) * 3)


def test_the_size_is_the_configuration_s_or_the_processor_s(tmp_path: Path) -> None:
    save(tmp_path, "resnet", "ConvNext", size={"shortest_edge": 96})
    assert ImageClassification(str(tmp_path)).input.size == 96
    save(tmp_path / "clip", "clip", "CLIP")
    assert ImageClassification(str(tmp_path / "clip")).input.size == 32


def test_pictures_that_are_not_square_are_refused(tmp_path: Path) -> None:
    save(tmp_path, "vit", "ViT")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_size": [32, 48]}))
    with pytest.raises(PlanError, match=r"takes pictures of \[32, 48\] pixels"):
        _ = ImageClassification(str(tmp_path)).input
