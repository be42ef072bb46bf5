"""The task on pictures: sizes and channels fitted to the model."""

from pathlib import Path

import pytest
import torch
from method_models import losses_of
from PIL import Image
from running import SMALL

from fedpeft import DataError
from fedpeft.compute.feature_cache import FEATURES
from fedpeft.core.seeds import generator
from fedpeft.core.types import Table
from fedpeft.data.client_data import Partitioned
from fedpeft.data.table import HubTable
from fedpeft.plan.reading import read_plan
from fedpeft.rounds.site import open_site
from fedpeft.tasks.image_classification import ImageClassification

LABEL = torch.tensor([0, 1, 2])


def test_pictures_of_one_small_size_are_kept_and_others_are_brought_to_the_input() -> None:
    task = ImageClassification(size=16)
    grey = [Image.new("L", (8, 8), k) for k in range(3)]
    kept = task.prepare(Table({"image": grey, "label": LABEL}))["image"]
    assert kept.shape == (3, task.input.channels, 8, 8)
    assert kept[:, 0, 0, 0].tolist() == [0, 1, 2]
    for sizes in (
        [(8, 8), (8, 8), (40, 30)],
        [(8, 8), (9, 9), (8, 8)],
        [(40, 30), (8, 8), (16, 16)],
    ):
        mixed = [Image.new("RGB", size, (9, 9, 9)) for size in sizes]
        image = task.prepare(Table({"image": mixed, "label": LABEL}))["image"]
        assert image.shape[2:] == (16, 16), sizes
        assert torch.unique(image).tolist() == [9]


def test_channels_are_fitted_to_the_model() -> None:
    task, label = ImageClassification(), LABEL[:1]
    wanted = task.input.channels
    for has in (1, 2, 3, 4):
        image = torch.full((1, has, 8, 8), 7, dtype=torch.uint8)
        if has in (2, 4):
            image[:, -1] = 255  # opacity
        got = task.prepare(Table({"image": image, "label": label}))["image"]
        assert got.shape == (1, wanted, 8, 8)
        assert torch.unique(got).tolist() == [7]


def test_pictures_are_changed_where_the_model_is_with_the_same_draws() -> None:
    """The device "meta" computes shapes only, and refuses as a GPU does to mix its tensors with
    those of the CPU."""
    task = ImageClassification(model="micro-vit", size=12, crop=2, flip=True)
    rows = {
        "image": torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8),
        "label": torch.arange(6),
    }
    parts, here, there = {"a": torch.arange(6)}, generator(0), generator(0)
    for device, draws in (("cpu", here), ("meta", there)):
        data = Partitioned(task, rows, rows, parts, device=device)
        for batch in (
            *data.batches("a", 4, 2, draws),
            *data.training("a"),
            data.chosen("a", torch.tensor([1]), draws),
        ):
            assert batch["pixel_values"].shape[1:] == (1, 12, 12)
            assert {name: x.device.type for name, x in batch.items()} == {
                "pixel_values": device,
                "label": "cpu",
                "mask": "cpu",
            }
    assert torch.equal(here.get_state(), there.get_state())


def test_pictures_that_have_features_stay_where_they_are() -> None:
    rows = {
        "image": torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        "label": torch.arange(2),
        FEATURES: torch.ones(2, 3),
    }
    data = Partitioned(
        ImageClassification(model="micro-vit"), rows, rows, {"a": torch.arange(2)}, device="meta"
    )
    assert next(iter(data.training("a")))["pixel_values"].device.type == "cpu"


def test_the_data_of_a_site_know_its_device() -> None:
    site = open_site(read_plan({**SMALL, "server": "average", "local": {}, "vote": [1.0]}), "meta")
    assert isinstance(site.data, Partitioned) and isinstance(site.apart, Partitioned)
    assert (site.data.device, site.apart.device) == ("meta", "meta")


def test_data_without_pictures_are_refused() -> None:
    task = ImageClassification()
    with pytest.raises(DataError, match="learns from a column 'image'; the data have label, text"):
        task.prepare(Table({"text": ["a"], "label": LABEL[:1]}))
    with pytest.raises(DataError, match=r"uint8 tensors .* not float32 of shape \(1, 1, 8, 8\)"):
        task.prepare(Table({"image": torch.ones(1, 1, 8, 8), "label": LABEL[:1]}))


def test_vit_tiny_sees_cifar100_at_another_size(real_data: Path) -> None:
    data = HubTable(str(real_data / "cifar100"), subset=8)
    task = ImageClassification(str(real_data / "vit-tiny"), size=64)
    examples = data.load()
    rows = task.prepare(examples.train)
    assert rows["image"].shape == (8, 3, 32, 32)
    batch = task.batch(rows, None)
    assert batch["pixel_values"].shape == (8, 3, 64, 64)
    assert losses_of(task, task.build(examples.classes).eval(), batch).shape == (8,)
