"""The pixels that a model sees are those of its own processor, whatever the picture's shape."""

import json
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import change_config
from PIL import Image
from torch import Tensor

from fedpeft.core.types import Table
from fedpeft.errors import PlanError
from fedpeft.export.inputs import processor as processor_of
from fedpeft.tasks.image_classification import ImageClassification
from fedpeft.tasks.pixels import ImageInput
from tools.models.folders import save_family
from tools.models.small import config_for

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ViT": ("vit", "ViT", {"size": {"height": 32, "width": 32}, "resample": 2}),
    "ViT, wide": ("vit", "ViT", {"size": {"height": 24, "width": 40}}),
    "DeiT": (
        "deit",
        "DeiT",
        {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}},
    ),
    "BEiT": (
        "beit",
        "Beit",
        {
            "size": {"height": 32, "width": 32},
            "crop_size": {"height": 32, "width": 32},
            "do_center_crop": False,
        },
    ),
    "ConvNeXt": ("convnext", "ConvNext", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    "ConvNeXt, warped": ("convnext", "ConvNext", {"size": {"shortest_edge": 384}}),
    "MobileViT": (
        "mobilevit",
        "MobileViT",
        {"size": {"shortest_edge": 30}, "crop_size": {"height": 32, "width": 32}},
    ),
    "LeViT": (
        "levit",
        "Levit",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    ),
    "CLIP": (
        "clip",
        "CLIP",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    ),
    "SigLIP": ("siglip", "Siglip", {"size": {"height": 32, "width": 32}}),
    "MobileNetV2": (
        "mobilenet_v2",
        "MobileNetV2",
        {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}},
    ),
    "PVT": ("pvt", "Pvt", {"size": {"height": 32, "width": 32}}),
    "PoolFormer": (
        "poolformer",
        "PoolFormer",
        {
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
            "crop_pct": 0.9,
        },
    ),
    "DINOv2": (
        "dinov2",
        "Bit",
        {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 28}},
    ),
    "EfficientNet": (
        "efficientnet",
        "EfficientNet",
        {"size": {"height": 34, "width": 34}, "resample": 0},
    ),
    "SegFormer": ("segformer", "Segformer", {"size": {"height": 32, "width": 48}}),
}
SHAPES = ((70, 91), (91, 70), (120, 120), (33, 300))
"""Heights and widths of pictures that are brought to size one by one."""


def save(folder: Path, family: str, kind: str, **keys: Any) -> None:
    config = config_for(family)
    config.save_pretrained(folder)
    told = {"image_processor_type": f"{kind}ImageProcessor", **keys}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))


def noise(height: int, width: int) -> Image.Image:
    draws = torch.Generator().manual_seed(height)
    x = torch.randint(0, 256, (height, width, 3), generator=draws, dtype=torch.uint8)
    return Image.fromarray(x.numpy())


def pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def seen(task: ImageClassification, image: Any) -> Tensor:
    rows = task.prepare(Table({"image": image, "label": torch.zeros(len(image)).long()}))
    x: Tensor = task.batch(rows, None)["pixel_values"]
    return x


def processed(folder: Path, picture: Image.Image) -> Tensor:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    x: Tensor = processor(picture, return_tensors="pt")["pixel_values"]
    return x


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_become_what_a_processor_makes_of_them(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    family, kind, keys = FAMILIES[name]
    save(tmp_path, family, kind, **keys)
    task = ImageClassification(str(tmp_path))
    with caplog.at_level(WARNING, "fedpeft"):
        for shape in SHAPES:
            picture = noise(*shape)
            wanted = processed(tmp_path, picture)
            # a second one of another size, so that no picture waits for its batch
            found = seen(task, [picture, noise(9, 9)])[:1]
            assert torch.allclose(found, wanted, atol=2e-5), shape
    assert not [one for one in caplog.records if one.name == "fedpeft"]


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "ConvNeXt, warped"])
def test_small_pictures_are_enlarged_with_their_batch_by_the_same_rule(
    tmp_path: Path, name: str
) -> None:
    family, kind, keys = FAMILIES[name]
    save(tmp_path, family, kind, **keys)
    task, picture = ImageClassification(str(tmp_path)), noise(12, 16)
    wanted = processed(tmp_path, picture)
    columns = pixels(picture)
    std = torch.tensor(task.input.std).view(-1, 1, 1)
    for image in ([picture], columns):
        # Pillow rounds to 255ths after each side, and cuts off what overshoots in between.
        away = (seen(task, image) - wanted).abs() * std * 255
        assert (away < 2.1).float().mean() > 0.93


def test_arrays_of_the_right_size_are_cut_as_the_processor_does(tmp_path: Path) -> None:
    family, kind, keys = FAMILIES["DeiT"]
    save(tmp_path, family, kind, **keys)
    task, picture = ImageClassification(str(tmp_path)), noise(32, 32)
    columns = pixels(picture)
    away = (seen(task, columns) - processed(tmp_path, picture)).abs() * 255
    # 32 become 36, and the middle 32 are cut out: without that, noise is tens of 255ths away
    assert away.mean() < 3


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_s_processor_does_the_same(tmp_path: Path, name: str) -> None:
    family, kind, keys = FAMILIES[name]
    save(tmp_path, family, kind, **keys)
    task, picture = ImageClassification(str(tmp_path)), noise(70, 91)
    out = tmp_path / "out"
    out.mkdir()
    (out / "preprocessor_config.json").write_text(json.dumps(processor_of(task.input)))
    found = seen(task, [picture, noise(9, 9)])[:1]
    assert torch.allclose(processed(out, picture), found, atol=2e-5)


def test_pixels_from_which_a_processor_takes_one(tmp_path: Path) -> None:
    keys = {"rescale_offset": True, "rescale_factor": 1 / 127.5, "size": {"height": 8, "width": 8}}
    save(tmp_path, "efficientnet", "EfficientNet", **keys)
    picture = noise(20, 30)
    found = seen(ImageClassification(str(tmp_path)), [picture])
    assert torch.allclose(found, processed(tmp_path, picture), atol=2e-5)


def test_a_factor_other_than_a_byte_s_is_followed(tmp_path: Path) -> None:
    keys = {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}
    save(tmp_path, "vit", "ViT", **keys)
    see = ImageClassification(str(tmp_path)).input
    assert (see.mean, see.std) == ((0.5,) * 3, (0.5,) * 3)


def test_the_size_is_what_the_processor_s_file_says_or_else_the_configuration(
    tmp_path: Path,
) -> None:
    save(tmp_path, "dinov2", "Bit", size={"shortest_edge": 20}, do_center_crop=False)
    see = ImageClassification(str(tmp_path)).input
    assert (see.height, see.width, see.resized) == (20, 20, (20, 20))
    save(tmp_path / "clip", "clip", "CLIP")  # its class says 224, and no file does
    see = ImageClassification(str(tmp_path / "clip")).input
    assert (see.height, see.width) == (32, 32)
    save(tmp_path / "wide", "vit", "ViT")
    change_config(tmp_path / "wide", image_size=[32, 48])
    see = ImageClassification(str(tmp_path / "wide")).input
    assert (see.height, see.width) == (32, 48)


def test_a_size_of_the_plan_cuts_as_much_off_in_proportion(tmp_path: Path) -> None:
    save(tmp_path, *FAMILIES["DINOv2"][:2], size={"shortest_edge": 256})
    see = ImageClassification(str(tmp_path), size=112).input
    assert (see.height, see.width, see.resized) == (112, 112, (128, 128))


def test_code_of_a_processor_s_own_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Perceiver's cuts before it resizes, and no key says so
    keys = {"size": {"height": 24, "width": 24}, "crop_size": {"height": 32, "width": 32}}
    save(tmp_path, "vit", "Perceiver", **keys)
    with caplog.at_level(WARNING, "fedpeft"):
        _ = ImageClassification(str(tmp_path)).input
    assert "it does what none of its keys says" in caplog.text


def test_a_processor_that_cannot_be_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, *FAMILIES["DINOv2"][:2])
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Unheard"}')
    with caplog.at_level(WARNING, "fedpeft"):
        see = ImageClassification(str(tmp_path)).input
    assert see.mean == see.std == (0.5,)
    assert "a mean and deviation of 0.5 are taken; task.mean and task.std set" in caplog.text


@pytest.mark.parametrize("family", ["vit", "deit", "ijepa", "siglip", "dinov2", "beit"])
def test_positions_are_interpolated_as_transformers_does(tmp_path: Path, family: str) -> None:
    folder = save_family(tmp_path, family, "AutoModelForImageClassification")
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain: Any = ImageClassification(str(folder)).build(["a", "b"]).eval()
        ours: Any = ImageClassification(str(folder), size=48).build(["a", "b"]).eval()
        ours.load_state_dict(
            {n: t for n, t in plain.state_dict().items() if "position" not in n}, strict=False
        )
        also = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
        wanted = plain(pixel_values=x, **also).logits
        torch.testing.assert_close(ours(pixel_values=x).logits, wanted, rtol=0, atol=1e-5)


def test_a_clip_takes_another_size(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "clip", "AutoModelForImageClassification")
    task = ImageClassification(str(folder), size=48)
    model: Any = task.build(["a", "b"])
    assert model.config.vision_config.image_size == 48
    assert model(pixel_values=torch.zeros(1, 3, 48, 48)).logits.shape == (1, 2)


def test_a_model_that_takes_no_other_size_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "pvt", "AutoModelForImageClassification")
    with pytest.raises(PlanError, match=r"Pvt.* is one for pictures of 32 by 32 .*task.size"):
        ImageClassification(str(folder), size=48).build(["a", "b"])
    vit = save_family(tmp_path / "vit", "vit", "AutoModelForImageClassification")
    with pytest.raises(PlanError, match="size = 30 is no multiple of the model's patch of 8"):
        ImageClassification(str(vit), size=30).build(["a", "b"])


def test_a_wide_model_trains_on_wide_pictures(tmp_path: Path) -> None:
    folder = save_family(
        tmp_path, "vit", "AutoModelForImageClassification", image_size=[32, 48], patch_size=8
    )
    task = ImageClassification(str(folder))
    model: Any = task.build(["a", "b"])
    assert task.example()["pixel_values"].shape == (1, 3, 32, 48)
    assert task.forward(model, task.example())["logits"].shape == (1, 2)


def test_a_line_of_pixels_is_not_enlarged_to_gigabytes() -> None:
    """2 by 60,000 pixels, whose middle alone is seen, would become 64 by 1,920,000."""
    see = ImageInput(48, 48, 3, (0.5,), (0.5,), resized=(64, 64), keeps_shape=True)
    line = np.zeros((2, 60_000, 3), dtype=np.uint8)
    line[:, 30_000:] = 255
    for picture in (line, line.swapaxes(0, 1)):
        left, top, right, below = see.reach(*picture.shape[:2])
        assert sorted((right - left, below - top)) == [2, 32]
        found = np.asarray(see.fit(Image.fromarray(np.ascontiguousarray(picture))))
        x = see.fit_tensor(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255)
        for middle in (found[..., 0] / 255, x[0, 0].numpy()):
            assert middle.shape == (48, 48)
            half = middle if picture is line else middle.T
            assert half[:, :5].max() < 0.01 and half[:, 43:].min() > 0.99
    assert see.reach(100, 1600) == (0, 0, 1600, 100)
    assert ImageInput(48, 48, 3, (0.5,), (0.5,)).reach(1, 9000) == (0, 0, 9000, 1)
