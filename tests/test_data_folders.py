"""Folders of pictures as people have them: other names, other formats, other depths, and junk."""

import json
from logging import WARNING
from pathlib import Path

import numpy as np
import pytest
from example_files import save_picture
from PIL import Image

from fedpeft import DataError, PlanError, read_plan
from fedpeft.core.types import Examples
from fedpeft.data.class_order import in_order
from fedpeft.data.divide import divide
from fedpeft.data.folders import endings
from fedpeft.data.images import Images
from fedpeft.data.short_forms import source
from fedpeft.data.splits import split_named
from fedpeft.partitions.iid import IID
from fedpeft.registry import names


def files(examples: Examples) -> tuple[list[str], list[str]]:
    return examples.train.columns["file"], examples.test.columns["file"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("Training", "train"),
        ("TRAIN", "train"),
        ("train_set", "train"),
        ("seg_train", "train"),
        ("Testing", "test"),
        ("test-images", "test"),
        ("validation", "validation"),
        ("Val", "validation"),
        ("trained dogs", ""),
        ("cat", ""),
        ("contest", ""),
    ],
)
def test_names_of_splits(name: str, split: str) -> None:
    assert split_named(name) == split


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("TRAIN", "validation"), ("train_set", "Val"), ("seg_train", "test")],
)
def test_splits_are_no_classes(train: str, test: str, tmp_path: Path) -> None:
    for split, count in ((train, 3), (test, 1)):
        for name in ("glioma", "no tumour"):
            for k in range(count):
                save_picture(tmp_path / split / name / f"{k}.png")
    got = Images(str(tmp_path)).load()
    assert got.classes == ("glioma", "no tumour")
    assert (len(got.train), len(got.test)) == (6, 2)
    assert all(Path(name).parts[0] == test for name in files(got)[1])


def test_a_test_split_goes_before_a_validation_split_which_is_counted(tmp_path: Path) -> None:
    for split in ("train", "test", "val", "extra"):
        for name in ("a", "b"):
            save_picture(tmp_path / split / name / "0.png")
    got = Images(str(tmp_path)).load()
    assert {Path(name).parts[0] for name in files(got)[1]} == {"test"}
    assert got.left_out == {
        "pictures in extra, beside the splits that are used": 2,
        "pictures in val, beside the splits that are used": 2,
    }


def test_archives_with_one_folder_more(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            save_picture(tmp_path / "archive" / f"seg_{split}" / f"seg_{split}" / name / "0.png")
    got = Images(str(tmp_path)).load()
    assert got.classes == ("a", "b") and len(got.train) == 2 == len(got.test)


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    """A folder of pictures is a class: a split holds folders."""
    for name in ("train", "bus"):
        for k in range(5):
            save_picture(tmp_path / name / f"{k}.png")
    assert Images(str(tmp_path)).load().classes == ("bus", "train")


def test_splits_without_one_to_train_on(tmp_path: Path) -> None:
    for split in ("Testing", "Val"):
        save_picture(tmp_path / split / "a" / "0.png")
    with pytest.raises(DataError, match="holds the splits Testing, Val, and none to train on"):
        Images(str(tmp_path)).load()


def test_pictures_lie_at_any_depth(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            save_picture(tmp_path / split / name / "patient 1" / "series 2" / "0.png")
    assert source(str(tmp_path), names("data")) == {"name": "images", "path": str(tmp_path)}
    assert len(Images(str(tmp_path)).load().train) == 2


@pytest.mark.parametrize(
    "ending", ["jfif", "jpe", "JPG", "tga", "jp2", "webp", "ico", "pcx", "dib"]
)
def test_what_pillow_reads_is_read(ending: str, tmp_path: Path) -> None:
    assert f".{ending.lower()}" in endings()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(5):
            kind = {"jfif": "jpeg", "jpe": "jpeg", "dib": "bmp"}.get(ending)
            Image.new("RGB", (16, 16), (k, 0, 0)).save(tmp_path / name / f"{k}.{ending}", kind)
    got = Images(str(tmp_path)).load()
    assert len(got.train) + len(got.test) == 10 and got.left_out == {}
    assert [picture.size for picture in got.train.columns["image"]] == [(16, 16)] * 8


def test_what_is_no_picture_is_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        for k in range(5):
            save_picture(tmp_path / name / f"{k}.png")
    save_picture(tmp_path / "a" / "._0.png")
    save_picture(tmp_path / "a" / ".hidden.png")
    save_picture(tmp_path / "a" / "@eaDir" / "0.png" / "thumb.jpg")
    save_picture(tmp_path / "__MACOSX" / "a" / "0.png")
    save_picture(tmp_path / ".cache" / "0.png")
    save_picture(tmp_path / "loose.png")
    for k in range(3):
        (tmp_path / "a" / f"{k}.XML").touch()
    (tmp_path / "Thumbs.db").touch()
    (tmp_path / "b" / "notes").touch()
    expected = {
        "hidden files": 2,
        "files in hidden folders or those of the system": 3,
        ".xml files": 3,
        "files of the system": 1,
        "nameless files": 1,
        "pictures in no folder of a class": 1,
    }
    with caplog.at_level(WARNING, "fedpeft"):
        got = Images(str(tmp_path)).load()
    assert got.classes == ("a", "b") and len(got.train) + len(got.test) == 10
    assert got.left_out == expected
    [line] = [record.getMessage() for record in caplog.records]
    assert "left out:" in line and "3 .xml files" in line and "2 hidden files" in line
    notes = divide(IID(2), got, 1).notes
    assert notes["left out: .xml files"] == 3
    assert source(str(tmp_path), names("data"))["name"] == "images"


def test_an_empty_folder_of_a_known_class_is_none_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog"):
        for k in range(5):
            save_picture(tmp_path / name / f"{k}.png")
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / ".keep").touch()
    with caplog.at_level(WARNING, "fedpeft"):
        got = Images(str(tmp_path)).load()
    assert got.classes == ("cat", "cow", "dog")
    assert "no pictures to train on of the class cow" in caplog.text
    # at an owner whose study knows the class, and in a study that does not
    known = in_order(got, ("cat", "cow", "dog", "hen"), "here")
    assert sorted(set(known.train.columns["label"].tolist())) == [0, 2]
    unknown = in_order(got, ("dog", "cat"), "here")
    assert sorted(set(unknown.train.columns["label"].tolist())) == [0, 1]
    with pytest.raises(DataError, match="does not have that label"):
        in_order(got, ("dog", "cow"), "here")


def test_one_class_alone_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for k in range(5):
        save_picture(tmp_path / "cat" / f"{k}.png")
    with caplog.at_level(WARNING, "fedpeft"):
        Images(str(tmp_path)).load()
    assert "all pictures are of one class" in caplog.text


def test_all_bad_files_are_told_at_once_with_how_to_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, count in (("train", 15), ("test", 3)):
        for name in ("a", "b"):
            for k in range(count):
                save_picture(tmp_path / split / name / f"{k:02}.png")
    bad = [*(tmp_path / "train" / "a" / f"{k:02}.png" for k in range(11)),
           tmp_path / "test" / "b" / "02.png"]  # fmt: skip
    for file in bad:
        file.write_bytes(b"no picture")
    got = Images(str(tmp_path)).load()
    with pytest.raises(DataError) as caught:
        list(got.train.columns["image"])
    text = str(caught.value)
    assert text.startswith("12 of 36 pictures cannot be read:\n")
    assert all(str(file) in text for file in bad[:10]) and "and 2 more" in text
    assert text.endswith("set data.skip_unreadable = true") and text.count("Mend it") == 1
    rest = Images(str(tmp_path), skip_unreadable=True).load()
    assert "left out: 12 pictures that cannot be read" in caplog.text
    assert (len(list(rest.train.columns["image"])), len(rest.test)) == (19, 5)
    assert rest.left_out == {"pictures that cannot be read": 12}


# --- depth


def save_deep(folder: Path, values: dict[str, list[float]], kind: type = np.uint16) -> None:
    """A picture of one row for each class, by name."""
    ending = "png" if kind is np.uint16 else "tif"
    for name, row in values.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([row], dtype=kind)).save(folder / name / f"0.{ending}")


def read(folder: Path, window: str | tuple[float, float] | None = None) -> list[list[int]]:
    got = Images(str(folder), window=window).load()
    return [np.asarray(picture)[0].tolist() for picture in got.train.columns["image"]]


def both(folder: Path, values: dict[str, list[float]], kind: type = np.uint16) -> Path:
    for split in ("train", "test"):
        save_deep(folder / split, values, kind)
    return folder


def test_twelve_bits_in_sixteen_keep_their_grey_levels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    every = [float(x) for x in range(4096)]
    both(tmp_path, {"a": every, "b": [0.0] * 4096})
    with caplog.at_level(WARNING, "fedpeft"):
        first, _ = read(tmp_path)
    assert len(set(first)) == 256 and (first[0], first[2048], first[4095]) == (0, 128, 255)
    [line] = [r.getMessage() for r in caplog.records]
    assert line.startswith(
        "2 pictures to train on have more than 8 bits, with values from 0 to 4095: 0 becomes"
    )
    assert "4095 white" in line and "data.window" in line


@pytest.mark.parametrize(
    ("largest", "white"), [(255, 255), (256, 1023), (1024, 4095), (4096, 16383), (20000, 65535)]
)
def test_the_window_is_the_depth_that_holds_all(largest: int, white: int, tmp_path: Path) -> None:
    """The largest value of the whole set decides, so that pictures stay comparable."""
    both(tmp_path, {"a": [0, largest], "b": [100, 200]})
    (black, most), other = read(tmp_path)
    assert (black, most) == (0, round(largest * 255 / white))
    assert other == [round(100 * 255 / white), round(200 * 255 / white)]


def test_the_held_out_pictures_have_the_window_of_the_others(tmp_path: Path) -> None:
    save_deep(tmp_path / "train", {"a": [0, 4095], "b": [0, 1]})
    save_deep(tmp_path / "test", {"a": [0, 255], "b": [9000, 1]})
    test = Images(str(tmp_path)).load().test.columns["image"]
    assert [np.asarray(picture)[0].tolist() for picture in test] == [[0, 16], [255, 0]]


def test_windows_of_the_plan(tmp_path: Path) -> None:
    both(tmp_path, {"a": [100, 200, 300, 400], "b": [0, 0, 0, 0]})
    assert read(tmp_path, "minmax") == [[0, 85, 170, 255], [0, 0, 0, 0]]
    assert read(tmp_path, (200.0, 300.0)) == [[0, 0, 255, 255], [0, 0, 0, 0]]


def test_percentiles_pass_over_outliers(tmp_path: Path) -> None:
    row = [0.0, *(1000.0 + k for k in range(998)), 65535.0]
    both(tmp_path, {"a": row, "b": row})
    (first, *_) = read(tmp_path, "percentile")
    assert (first[0], first[-1]) == (0, 255) and len(set(first)) > 200
    assert len(set(read(tmp_path, "minmax")[0])) < 10


def test_hounsfield_units_and_fractions(tmp_path: Path) -> None:
    ct = both(tmp_path / "ct", {"a": [-1000, 0, 1000], "b": [0, 0, 0]}, np.int32)
    assert read(ct) == [[0, 128, 255], [128, 128, 128]]
    fractions = both(tmp_path / "part", {"a": [0.0, 0.25], "b": [0.5, float("nan")]}, np.float32)
    assert read(fractions) == [[0, 64], [128, 0]]


def test_pictures_of_eight_bits_are_left_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for split in ("train", "test"):
            save_picture(tmp_path / split / name / "0.png", (10, 20, 30))
    got = Images(str(tmp_path), window="minmax").load()
    assert [picture.getpixel((0, 0)) for picture in got.train.columns["image"]] == [
        (10, 20, 30)
    ] * 2


def test_bad_windows(tmp_path: Path) -> None:
    data = {"name": "images", "path": "x"}
    for window in ("middle", [2, 1], [1, 1]):
        with pytest.raises(PlanError, match="window"):
            read_plan({"data": {**data, "window": window}})
    plan = read_plan({"data": {**data, "window": [-160, 240]}})
    assert read_plan(plan.toml()) == plan
    assert "window" not in read_plan({"data": data}).toml()
    assert json.dumps(plan.fingerprint)
