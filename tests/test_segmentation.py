"""A class for each pixel: masks that fit and that do not, the losses, what is counted, and runs."""

import json
import logging
from math import log
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from method_models import losses_of
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score
from text_runs import Exported, check_processes
from torch import nn

from fedpeft import DataError, PlanError, evaluate, open_site, read_plan
from fedpeft.compute.objective import Objective
from fedpeft.compute.scores import conclude
from fedpeft.core.outputs import LOGITS
from fedpeft.core.seeds import generator, seed_torch
from fedpeft.core.types import Table
from fedpeft.data.masks import PicturesWithMasks
from fedpeft.data.table import HubTable
from fedpeft.oneshot.fingerprints import transforms_digest
from fedpeft.tasks.pixel_classes import dice_losses, pixel_losses
from fedpeft.tasks.pixels import image_input
from fedpeft.tasks.semantic_segmentation import SemanticSegmentation

LABELS = ("ground", "red", "blue")
SIDE = 16


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SegFormer's backbone with random weights, without a head."""
    from transformers import SegformerConfig, SegformerModel

    folder = tmp_path_factory.mktemp("segformer")
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
    )
    with seed_torch(3):
        SegformerModel(config).save_pretrained(folder)
    return folder


def made_picture(k: int) -> tuple[Any, Any]:
    """A picture of dark noise with a red and a blue rectangle, and its mask: 1 where it is red, 2
    where it is blue, 0 elsewhere. The first row does not count."""
    draws = np.random.default_rng(k)
    picture = draws.integers(0, 40, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for number, channel in ((1, 0), (2, 2)):
        top, left = draws.integers(0, SIDE // 2, 2)
        area = slice(top, top + 6), slice(left, left + 6)
        picture[area], mask[area] = 0, number
        picture[(*area, channel)] = 220
    mask[0] = 255
    return Image.fromarray(picture), Image.fromarray(mask)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of two owners, with masks beside."""
    root = tmp_path_factory.mktemp("scenes") / "scenes"
    for k in range(12):
        place = root / "ab"[k % 2]
        (place / "masks").mkdir(parents=True, exist_ok=True)
        picture, mask = made_picture(k)
        picture.save(place / f"{k:02}.png")
        mask.save(place / "masks" / f"{k:02}.png")
    return root


def task_of(segformer: Path, **other: Any) -> SemanticSegmentation:
    return SemanticSegmentation(str(segformer), **{"labels": LABELS, "size": SIDE, **other})


def plan_of(segformer: Path, folder: Path, **other: Any) -> dict[str, Any]:
    task = {"name": "semantic-segmentation", "model": str(segformer), "size": SIDE}
    local = {"lr": 0.05, "batch_size": 4, "epochs": 1, "optimizer": "adamw"}
    return {
        "rounds": 1,
        "cohort": 2,
        "method": "lora",
        "task": {**task, "labels": list(LABELS), "dice": 0.5},
        "data": {"name": "masks", "path": str(folder)},
        "partition": {"name": "column", "column": "folder"},
        "local": local,
        **other,
    }


def grey(values: Any, kind: Any = np.uint8) -> Any:
    return Image.fromarray(np.array(values, dtype=kind))


def test_masks_become_numbers_of_the_size_of_the_input(segformer: Path) -> None:
    """One pixel of a mask is a square of the input; 255 stays what it is, at the borders too."""
    picture = Image.new("RGB", (2, 2), (9, 9, 9))
    task = task_of(segformer, size=4)
    rows = task.prepare(Table({"image": [picture] * 2, "mask": [grey([[0, 2], [255, 1]])] * 2}))
    assert rows["mask"][0].tolist() == [[0, 0, 2, 2]] * 2 + [[255, 255, 1, 1]] * 2
    assert rows["image"].shape == (2, 3, 4, 4)
    batch = task.batch(rows, None)
    assert sorted(set(batch["labels"].flatten().tolist())) == [-100, 0, 1, 2]
    mirrored = task_of(segformer, size=4, flip=True)
    draws = generator(0)
    seen = {tuple(mirrored.batch(rows, draws)["labels"][0, :4].tolist()) for _ in range(20)}
    assert seen == {(0, 0, 2, 2), (2, 2, 0, 0)}


def test_palettes_and_bits_are_numbers_too(segformer: Path) -> None:
    painted = grey([[0, 1], [2, 1]]).convert("L")
    painted.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    masks = [painted, Image.new("1", (2, 2), 1), grey([[0, 1], [2, 1]], np.uint16)]
    table = Table({"image": [Image.new("RGB", (2, 2))] * 3, "mask": masks})
    assert task_of(segformer).unfit(table) == {}
    rows = task_of(segformer, size=2).prepare(table)
    assert rows["mask"].tolist() == [[[0, 1], [2, 1]], [[1, 1], [1, 1]], [[0, 1], [2, 1]]]


def test_a_mask_that_does_not_fit_costs_its_example_alone(
    segformer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right = grey([[0, 1], [2, 255]])
    masks = [right, grey([[0, 1, 2]]), grey([[0, 3], [300, 0]], np.uint16), grey([[255] * 2] * 2),
             None, Image.new("RGB", (2, 2)), right]  # fmt: skip
    names = [f"{k}.jpg" for k in range(7)]
    table = Table({"image": [Image.new("RGB", (2, 2))] * 7, "mask": masks, "file": names})
    task = task_of(segformer)
    with caplog.at_level(logging.WARNING, "fedpeft"):
        found = task.unfit(table)
    assert found == {
        "masks of another size than their pictures": [1],
        "masks with numbers that no label has": [2],
        "masks of which no pixel counts": [3],
        "masks that are missing or cannot be read": [4],
        "masks in colour, or of anything but whole numbers in one channel": [5],
    }
    assert "that of 1.jpg: 3 by 1 pixels, and the picture has 2 by 2" in caplog.text
    assert "that of 2.jpg: 2 pixels, such as 3; 3 labels have the numbers 0 to 2" in caplog.text
    assert "that of 3.jpg: all of its pixels are 255" in caplog.text
    assert "that of 4.jpg: there is none" in caplog.text
    assert "that of 5.jpg: it is of the shape (2, 2, 3) and holds uint8" in caplog.text
    with pytest.raises(DataError, match="masks of another size than their pictures"):
        task.prepare(table)


def test_masks_of_black_and_white_are_told(
    segformer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = Table({"image": [Image.new("RGB", (2, 2))], "mask": [grey([[0, 255], [0, 0]])]})
    with caplog.at_level(logging.WARNING, "fedpeft"):
        task_of(segformer).prepare(table)
    assert "where white is a class, save it as 1" in caplog.text


def test_losses_are_those_computed_by_hand() -> None:
    """Two pixels count, of the classes 0 and 1, and both classes have the probability 3/4 and 1/4;
    a third pixel does not count."""
    logits = torch.tensor([[[log(3), 0.0], [log(3), 0.0], [0.0, 9.0]]])
    labels = torch.tensor([[0, 1, -100]])
    assert float(pixel_losses(logits, labels)) == pytest.approx((log(4 / 3) + log(4)) / 2)
    first = (2 * 0.75 + 1) / (1.5 + 1 + 1)
    second = (2 * 0.25 + 1) / (0.5 + 1 + 1)
    assert float(dice_losses(logits, labels)) == pytest.approx(1 - (first + second) / 2)
    none = torch.full((1, 3), -100)
    assert float(pixel_losses(logits, none)) == 0 and float(dice_losses(logits, none)) == 0


def test_a_picture_costs_the_same_alone(segformer: Path) -> None:
    task = task_of(segformer, dice=0.5)
    pairs = [made_picture(k) for k in range(3)]
    rows = task.prepare(Table({"image": [p for p, _ in pairs], "mask": [m for _, m in pairs]}))
    model = task.build([]).eval()
    together = losses_of(task, model, task.batch(rows, None))
    alone = [
        losses_of(task, model, task.batch({n: x[k : k + 1] for n, x in rows.items()}, None))
        for k in range(3)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    plain = losses_of(task_of(segformer), model, task.batch(rows, None))
    assert bool((together > plain).all())


class Says(nn.Module):
    """A model that says given classes."""

    def __init__(self, classes: torch.Tensor, number: int) -> None:
        super().__init__()
        self.every = nn.functional.one_hot(classes, number).float().permute(0, 3, 1, 2)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        first = int(pixel_values[0, 0, 0, 0])
        self.logits = self.every[first : first + len(pixel_values)]
        return self


def test_metrics_are_those_of_scikit_learn(segformer: Path) -> None:
    """Over the pixels of all pictures but the masked one, in parts of two; a class that is neither
    there nor told is left out."""
    draws = torch.Generator().manual_seed(1)
    told = torch.randint(3, (5, 4, 4), generator=draws)
    true = torch.randint(3, (5, 16), generator=draws)
    true[:, :3] = -100
    task = task_of(segformer, labels=(*LABELS, "none"), size=4)
    batches = []
    for part in (slice(0, 2), slice(2, 5)):
        size = len(true[part])
        at = torch.full((size, 3, 4, 4), float(part.start))
        mask = torch.tensor([1.0, 1.0, 0.0][:size])
        batches.append({"pixel_values": at, "labels": true[part], "mask": mask})
    got = conclude(task, evaluate(task, Says(told, 4), {}, batches))
    seen = true[:4] >= 0
    guess, wanted = told.flatten(1)[:4][seen], true[:4][seen]
    assert got["mean_iou"] == pytest.approx(jaccard_score(wanted, guess, average="macro"))
    assert got["dice"] == pytest.approx(f1_score(wanted, guess, average="macro"))
    assert got["accuracy"] == pytest.approx(float((guess == wanted).float().mean()))
    assert set(got) == {"loss", "accuracy", "mean_iou", "dice"}


def test_large_logits_are_measured_in_parts(segformer: Path) -> None:
    batch = {"labels": torch.zeros(5, 2**20, dtype=torch.int8), "mask": torch.ones(5)}
    sizes = [len(part["labels"]) for part in task_of(segformer, labels=tuple("abcdefghijklmnop"))
             .chunks(batch)]  # fmt: skip
    assert sizes == [2, 2, 1]


def test_folders_have_pictures_and_masks_of_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture, mask = made_picture(0)
    for place in ("train/here/images", "train/here/masks", "test/masks"):
        (tmp_path / place).mkdir(parents=True)
    for name in ("x.jpg", "y.JPG", "alone.jpg"):
        picture.save(tmp_path / "train/here/images" / name)
    for name in ("x.png", "y.png", "unused.png"):
        mask.save(tmp_path / "train/here/masks" / name)
    picture.save(tmp_path / "test/z.png")
    mask.save(tmp_path / "test/masks/z.png")
    (tmp_path / "test/masks/.DS_Store").write_text("")
    with caplog.at_level(logging.WARNING, "fedpeft"):
        found = PicturesWithMasks(str(tmp_path)).load()
    assert found.train.columns["file"] == ["train/here/images/x.jpg", "train/here/images/y.JPG"]
    assert found.train.columns["folder"] == ["here"] * 2
    assert found.test.columns["file"] == ["test/z.png"]
    assert np.array_equal(np.asarray(found.test.columns["mask"].upright(0)), np.asarray(mask))
    assert "1 picture without a mask of the same name" in caplog.text
    assert "1 mask without a picture of the same name" in caplog.text
    with pytest.raises(DataError, match=r"no pictures with masks to train on: put name\.png"):
        PicturesWithMasks(str(tmp_path / "test/masks")).load()


def test_a_table_names_the_column_of_masks(tmp_path: Path) -> None:
    rows = []
    for k in range(5):
        for file, one in zip((f"{k}.png", f"{k}.mask.png"), made_picture(k), strict=True):
            one.save(tmp_path / file)
        rows.append({"image": f"{k}.png", "truth": f"{k}.mask.png"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = str(tmp_path / "rows.jsonl")
    found = HubTable(file, label="none", mask="truth").load().train.columns
    assert np.asarray(found["mask"].upright(0)).max() == 255 and len(found["mask"]) == 4
    # what is not named stays a text
    assert HubTable(file, label="none").load().train.columns["truth"][0].endswith(".mask.png")


def test_a_metadata_file_names_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are no pictures that nobody names."""
    for k in range(5):
        for file, one in zip((f"{k}.png", f"{k}.mask.png"), made_picture(k), strict=True):
            one.save(tmp_path / file)
    lines = [f"{k}.png,{k}.mask.png" for k in range(5)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,mask_file_name", *lines]))
    with caplog.at_level(logging.WARNING, "fedpeft"):
        found = HubTable(str(tmp_path), label="none", mask="mask").load().train.columns
    assert len(found["mask"]) == 4 and np.asarray(found["mask"].upright(0)).max() == 255
    assert "no metadata file names" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["one"]}, "labels are the names of 2 to 255 classes"),
        ({"labels": ["a", "a"]}, r"each once; got \['a', 'a'\]"),
        ({"labels": ["a", "b"], "dice": -1}, "must not be negative, got 0 and -1"),
    ],
)
def test_keys_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        read_plan({"task": {"name": "semantic-segmentation", "model": "x", **changes}})


@pytest.mark.parametrize("method", ["head", "bias", "lora", "full"])
def test_methods_train_the_new_head_and_their_own(
    method: str, segformer: Path, folder: Path
) -> None:
    site = open_site(read_plan(plan_of(segformer, folder, method=method)))
    assert site.model is not None
    names = [n for n, x in site.model.named_parameters() if x.requires_grad]
    inside = [name for name in names if "decode_head" in name]
    assert any("decode_head.classifier" in name for name in inside)
    assert (len(inside) == len(names)) == (method == "head")


def test_who_asks_for_features_is_refused(segformer: Path) -> None:
    task = task_of(segformer)
    with pytest.raises(PlanError, match="reads several maps of features"):
        task.forward(task.build([]), task.example(), "decode_head")


def test_contributions_know_what_becomes_of_a_picture(segformer: Path, tmp_path: Path) -> None:
    """Another mean is another digest, with the same plan."""
    other = copytree(segformer, tmp_path / "base")
    before = transforms_digest(task_of(other))
    said = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3]}
    (other / "preprocessor_config.json").write_text(json.dumps(said))
    image_input.cache_clear()
    assert transforms_digest(task_of(other)) != before


@pytest.mark.slow
def test_other_processes_train_it(segformer: Path, folder: Path) -> None:
    check_processes(plan_of(segformer, folder))


def test_gradients_of_each_picture_are_those_of_it_alone(segformer: Path, folder: Path) -> None:
    """As DP-SGD and stacked clients take them, by `vmap`; with frozen statistics."""
    site = open_site(read_plan(plan_of(segformer, folder)))
    batch = next(iter(site.data.training("a")))
    params, objective = site.params(), Objective(site.model, site.plan.task)
    every = objective.gradients(params, batch)
    alone = {name: x[1:2] for name, x in batch.items()}
    one, _, _ = objective.gradient(params, alone)
    for name, x in one.items():
        torch.testing.assert_close(every[name][1], x, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("method", "merge"), [("lora", False), ("head", True)])
def test_owners_measure_it_and_an_export_is_loaded_by_its_card(
    method: str, merge: bool, segformer: Path, folder: Path, tmp_path: Path
) -> None:
    divided = {"name": "column", "column": "folder", "held_out": 0.4}
    asked = {"partition": divided, "evaluate_at": "owners", "method": method}
    data = {"name": "masks", "path": str(folder), "test_fraction": 0}
    run = Exported(plan_of(segformer, folder, data=data, **asked), tmp_path, merge)
    told = (tmp_path / "run" / "rounds.jsonl").read_text()
    assert all(f'"{name}"' in told for name in ("mean_iou", "dice", "accuracy"))
    batch = next(iter(run.site.data.training("a")))
    _, outputs = run.forward(batch)
    model = run.names["model"]
    with torch.inference_mode():
        logits = model(pixel_values=batch["pixel_values"]).logits
    wanted = outputs[LOGITS].mT.unflatten(2, (SIDE, SIDE))
    enlarged = nn.functional.interpolate(logits, (SIDE, SIDE), mode="bilinear")
    torch.testing.assert_close(enlarged, wanted, atol=1e-5, rtol=0)
    assert tuple(model.config.id2label[k] for k in range(3)) == LABELS
    scope = {**run.names, "picture": Image.open(folder / "a" / "00.png")}
    exec(run.usage, scope)
    assert scope["logits"].shape == (1, 3, SIDE, SIDE)
    own, mask = made_picture(0)
    task = run.site.plan.task
    rows = task.prepare(Table({"image": [own], "mask": [mask]}))
    given = scope["inputs"]["pixel_values"]
    torch.testing.assert_close(given, task.batch(rows, None)["pixel_values"])


def test_made_pictures_are_learned(segformer: Path, folder: Path, tmp_path: Path) -> None:
    """Colours tell the classes: after a few rounds the rectangles are found on held-out pictures,
    which the untrained model does not find."""
    local = {"lr": 0.02, "batch_size": 2, "epochs": 4, "optimizer": "adamw"}
    plan = plan_of(segformer, folder, method="full", rounds=4, local=local)
    run = Exported(plan, tmp_path)
    lines = [json.loads(x) for x in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    task, site = run.site.plan.task, run.site
    begin = conclude(task, evaluate(task, site.model, site.params(), site.data.held_out()))
    assert begin["mean_iou"] < 0.35 and lines[-1]["held_out"]["mean_iou"] > 0.5
    assert "| mean_iou on held-out pixels |" in run.card
