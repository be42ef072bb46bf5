"""Folders of pictures, written here."""

import os
from pathlib import Path

import numpy as np
import pytest
from example_files import save_picture
from PIL import Image

from fedpeft import DataError
from fedpeft.data.images import Images


def test_an_image_is_turned_upright_and_16_bits_become_8(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (6, 4))
    exif = sideways.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    for name in "ab":
        (tmp_path / name).mkdir()
    sideways.save(tmp_path / "a" / "1.jpg", exif=exif)
    Image.fromarray(np.full((4, 6), 0x8040, dtype=np.uint16)).save(tmp_path / "b" / "1.png")
    sideways.save(tmp_path / "b" / "2.jpg")
    got = Images(str(tmp_path), test_fraction=0.34).load()
    pictures = {
        file: picture
        for side in (got.train, got.test)
        for file, picture in zip(side.columns["file"], side.columns["image"], strict=True)
    }
    assert pictures[os.path.join("a", "1.jpg")].size == (4, 6)
    assert pictures[os.path.join("b", "1.png")].getpixel((0, 0)) == 0x80


def test_folders_of_pictures(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        for k, name in enumerate(("dog", "cat")):
            for i in range(count):
                save_picture(tmp_path / split / name / f"{i}.png", (k, i, 7))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
    got = Images(str(tmp_path)).load()
    assert got.classes == ("cat", "dog")
    assert got.train.columns["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert [picture.getpixel((0, 0)) for picture in got.train.columns["image"]][2:4] == [
        (1, 2, 7),
        (0, 0, 7),
    ]
    assert got.test.columns["file"] == [
        os.path.join("test", "cat", "0.png"),
        os.path.join("test", "dog", "0.png"),
    ]
    whole = Images(str(tmp_path / "train"), test_fraction=0.34).load()
    assert (len(whole.train), len(whole.test), whole.classes) == (4, 2, ("cat", "dog"))
    assert sorted(whole.test.columns["label"].tolist()) == [0, 1]


def test_unreadable_pictures_are_an_error_or_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("cat", "dog"):
        for k in range(3):
            save_picture(tmp_path / name / f"{k}.png")
    (tmp_path / "dog" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        got = Images(str(tmp_path), test_fraction=0.5).load()
        list(got.train.columns["image"]) + list(got.test.columns["image"])
    got = Images(str(tmp_path), test_fraction=0.4, skip_unreadable=True).load()
    [told] = [m for m in caplog.messages if "the first" in m]
    assert told.startswith("left out: 1 of 6 pictures; the first: ") and "1.png" in told
    assert len(got.train) + len(got.test) == 5


def test_bad_folders_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder 'nowhere'"):
        Images("nowhere").load()
    with pytest.raises(DataError, match="no pictures with labels"):
        Images(str(tmp_path)).load()
    save_picture(tmp_path / "train" / "cat" / "0.png")
    save_picture(tmp_path / "test" / "cow" / "0.png")
    with pytest.raises(DataError, match="nothing is trained on: no class called 'cow'"):
        Images(str(tmp_path)).load()
    (tmp_path / "train" / "dog").mkdir()
    (tmp_path / "train" / "dog" / "1.xml").touch()
    with pytest.raises(
        DataError, match=r"dog has no pictures that Pillow reads, but 1 \.xml files"
    ):
        Images(str(tmp_path)).load()
