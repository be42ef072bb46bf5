"""Clips in folders: which frames are chosen, splits, and what is left out."""

from itertools import pairwise
from logging import WARNING
from pathlib import Path

import pytest
import torch
from clips import save_gif
from PIL import Image

from fedpeft import DataError, PlanError
from fedpeft.core.moments import choose_frames
from fedpeft.data.clips import VideoClip, is_clip, read_clip
from fedpeft.data.inspect import inspect
from fedpeft.data.moving import MovingDigits
from fedpeft.data.videos import Videos


def test_frames_are_the_middles_of_equal_parts() -> None:
    assert choose_frames(96, 16) == list(range(3, 96, 6))
    assert choose_frames(4, 4) == [0, 1, 2, 3]
    assert choose_frames(1, 3) == [0, 0, 0]
    assert choose_frames(2, 4) == [0, 0, 1, 1]
    assert choose_frames(5, 2) == [1, 3]


def test_an_animated_picture_gives_its_frames(tmp_path: Path) -> None:
    clip = VideoClip(save_gif(tmp_path / "a.gif", [0, 40, 80, 120, 160, 200]))
    assert [frame.getpixel((0, 0))[0] for frame in clip.frames(3)] == [40, 120, 200]
    assert [frame.getpixel((0, 0))[0] for frame in clip.frames(2)] == [40, 160]
    assert read_clip(clip.path, 0)[1] == 6
    still = VideoClip(save_gif(tmp_path / "b.webp", [90]))
    assert [frame.mode for frame in still.frames(2)] == ["RGB", "RGB"]


def write_clips(root: Path) -> None:
    for k, name in enumerate(("clap", "wave")):
        for place in range(5):
            save_gif(root / name / f"{place}.gif", [40 * k, 50 + 10 * place])


def test_folders_of_clips(tmp_path: Path) -> None:
    write_clips(tmp_path)
    got = Videos(str(tmp_path)).load()
    assert got.classes == ("clap", "wave") and len(got.train) == 8 and len(got.test) == 2
    labels = got.train.labels
    assert labels is not None
    for file, label in zip(got.train.columns["file"], labels.tolist(), strict=True):
        assert file.startswith(got.classes[label])
    first = got.train.columns["video"][0]
    assert first.path == tmp_path / got.train.columns["file"][0]
    assert any("10" in line or "8" in line for line in inspect(got).lines)
    assert len(Videos(str(tmp_path), subset=3).load().train) == 3


def test_splits_are_those_of_folders_of_pictures(tmp_path: Path) -> None:
    write_clips(tmp_path / "Training")
    save_gif(tmp_path / "testing" / "wave" / "x.gif", [1, 2])
    got = Videos(str(tmp_path)).load()
    assert len(got.train) == 10 and got.test.columns["file"] == ["testing/wave/x.gif"]
    save_gif(tmp_path / "testing" / "jump" / "x.gif", [1, 2])
    with pytest.raises(DataError, match="held out, and nothing is trained on"):
        Videos(str(tmp_path)).load()


def test_what_is_no_clip_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_clips(tmp_path)
    (tmp_path / "clap" / "text.gif").write_text("no picture at all")
    (tmp_path / "clap" / "empty.gif").write_bytes(b"")
    (tmp_path / "clap" / "notes.txt").write_text("about these")
    save_gif(tmp_path / "loose.gif", [1])
    (tmp_path / "wave" / ".hidden.gif").write_bytes(b"")
    with caplog.at_level(WARNING, "fedpeft"):
        got = Videos(str(tmp_path)).load()
    assert got.left_out == {
        "videos in no folder of a class": 1,
        ".txt files": 1,
        "hidden files": 1,
        "videos that cannot be read": 2,
    }
    assert len(got.train) + len(got.test) == 10
    [line] = [one for one in caplog.messages if "first " in one]
    assert line.startswith("left out: 2 videos that cannot be read, first ")


def test_folders_of_frames(tmp_path: Path) -> None:
    write_clips(tmp_path)
    place = tmp_path / "clap" / "someone" / "take 1"
    place.mkdir(parents=True)
    # By name 10 would come before 9.
    for number in (8, 9, 10, 11):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(place / f"cam2_{number}.png")
    (place / "cover.png").write_bytes(b"")
    (tmp_path / "wave" / "thumbnails").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "wave" / "thumbnails" / "1.png")
    twice = tmp_path / "wave" / "twice"
    twice.mkdir()
    for name in ("rgb_1.png", "rgb_2.png", "flow_1.png", "flow_2.png"):
        Image.new("RGB", (4, 4)).save(twice / name)
    got = Videos(str(tmp_path), test_fraction=0.0).load()
    assert len(got.train) == 11 and got.left_out == {
        ".png files": 2,
        "folders of frames in which a number comes twice": 1,
    }
    at = got.train.columns["file"].index("clap/someone/take 1")
    clip = got.train.columns["video"][at]
    assert [frame.getpixel((0, 0))[0] for frame in clip.frames(4)] == [8, 9, 10, 11]
    assert [frame.getpixel((0, 0))[0] for frame in clip.frames(2)] == [9, 11]
    for file in place.glob("cam2_1*"):
        file.write_text("no picture")
    with pytest.raises(DataError, match=r"take 1 cannot be read, as one of videos that cannot"):
        clip.frames(4)


def test_numbered_pictures_beside_videos_are_no_clip(tmp_path: Path) -> None:
    write_clips(tmp_path)
    save_gif(tmp_path / "wave" / "more" / "1.gif", [1, 2])
    for number in (1, 2):
        Image.new("RGB", (4, 4)).save(tmp_path / "wave" / "more" / f"{number}.png")
    got = Videos(str(tmp_path), test_fraction=0.0).load()
    assert len(got.train) == 11 and got.left_out == {".png files": 2}


def test_folders_that_hold_no_clips(tmp_path: Path) -> None:
    (tmp_path / "clap").mkdir()
    with pytest.raises(DataError, match="has no videos with labels"):
        Videos(str(tmp_path)).load()
    (tmp_path / "clap" / "a.gif").write_text("text")
    with pytest.raises(DataError, match="no video can be used: left out: 1 video that cannot"):
        Videos(str(tmp_path)).load()
    (tmp_path / "wave").mkdir()
    (tmp_path / "wave" / "a.doc").write_text("text")
    with pytest.raises(DataError, match=r"no videos that fedpeft reads, but 1 \.doc files"):
        Videos(str(tmp_path)).load()
    with pytest.raises(DataError, match="there is no folder"):
        Videos(str(tmp_path / "gone")).load()
    for key in ({"subset": -1}, {"test_fraction": 1.0}):
        with pytest.raises(ValueError, match=r"subset is a number|must be between"):
            Videos("x", **key)


def test_a_clip_that_broke_since_is_named(tmp_path: Path) -> None:
    file = save_gif(tmp_path / "a.gif", [1, 2])
    file.write_text("gone")
    with pytest.raises(DataError, match=r"a\.gif cannot be read, as one of videos that cannot"):
        VideoClip(file).frames(2)


def test_the_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "clap" / "a.mp4"
    file.parent.mkdir()
    file.write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(PlanError, match=r"av reads: pip install 'fedpeft\[video\]'"):
        Videos(str(tmp_path)).load()


def test_names_of_clips() -> None:
    assert is_clip("A.MP4") and is_clip("x.gif") and is_clip("v_Archery_g01_c01.avi")
    assert not is_clip("x.png") and not is_clip(".x.mp4") and not is_clip("mp4")


def test_digits_move_and_no_frame_tells_how() -> None:
    got = MovingDigits().load()
    assert got.classes == ("right", "left", "right fast", "left fast")
    video, label = got.train.columns["video"], got.train.labels
    assert video.shape == (4 * 1438, 8, 1, 8, 8) and len(got.test) == 4 * 359
    assert label is not None and label[:5].tolist() == [0, 1, 2, 3, 0]
    for clip, step in zip(video[40:44], (1, -1, 3, -3), strict=True):
        for before, after in pairwise(clip):
            assert torch.equal(torch.roll(before, step, -1), after)
        # the frames of all four are the same, in other orders
        frames = {tuple(frame.flatten().tolist()) for frame in clip}
        assert len(frames) == 8
        assert frames == {tuple(frame.flatten().tolist()) for frame in video[40]}
    again = MovingDigits(subset=100).load()
    assert len(again.train) == 100 and torch.equal(
        again.test.columns["video"], got.test.columns["video"]
    )
    with pytest.raises(ValueError, match="0 for all, got -1"):
        MovingDigits(subset=-1)
