"""Video files, which `av` writes here and reads: frames, what is cut off, turned pictures."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from fedpeft import DataError
from fedpeft.data.clips import VideoClip, read_clip
from fedpeft.data.videos import Videos

av = pytest.importorskip("av", reason="fedpeft[video] is not installed")


def save_video(
    file: Path, values: list[int], codec: str = "mpeg4", size: tuple[int, int] = (64, 48)
) -> Path:
    """A video of a frame of one grey for each value."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as out:
        stream = out.add_stream(codec, rate=Fraction(8))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for value in values:
            pixels = np.full((size[1], size[0], 3), value, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    return file


def levels(file: Path, wanted: int) -> list[float]:
    return [float(np.asarray(frame).mean()) for frame in VideoClip(file).frames(wanted)]


VALUES = list(range(20, 220, 10))


@pytest.mark.parametrize(
    ("ending", "codec"),
    [(".mp4", "h264"), (".avi", "mpeg4"), (".mkv", "h264"), (".webm", "libvpx-vp9")],
)
def test_frames_of_videos(tmp_path: Path, ending: str, codec: str) -> None:
    file = save_video(tmp_path / f"a{ending}", VALUES, codec)
    wanted = [VALUES[k] for k in (2, 7, 12, 17)]
    assert np.abs(np.array(levels(file, 4)) - wanted).max() < 4
    assert read_clip(file, 0)[1] == 20
    one, other = (np.stack([np.asarray(x) for x in VideoClip(file).frames(8)]) for _ in range(2))
    assert np.array_equal(one, other), "reading a file twice gives the same bytes"
    assert one.shape == (8, 48, 64, 3)


def test_short_and_odd_videos(tmp_path: Path) -> None:
    one = save_video(tmp_path / "one.mp4", [100])
    assert len(VideoClip(one).frames(4)) == 4 and abs(levels(one, 4)[3] - 100) < 4
    odd = save_video(tmp_path / "odd.mkv", VALUES, "ffv1", (35, 21))
    assert VideoClip(odd).frames(1)[0].size == (35, 21)


def test_videos_that_cannot_be_read(tmp_path: Path) -> None:
    for k in range(5):
        save_video(tmp_path / "clap" / f"{k}.mp4", VALUES)
        save_video(tmp_path / "wave" / f"{k}.avi", VALUES)
    (tmp_path / "clap" / "text.mp4").write_text("no video at all")
    (tmp_path / "clap" / "empty.mp4").write_bytes(b"")
    whole = (tmp_path / "clap" / "0.mp4").read_bytes()
    (tmp_path / "clap" / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index is at the end
    with av.open(str(tmp_path / "wave" / "sound.mkv"), "w") as out:
        sound = out.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        silence.sample_rate = 8000
        out.mux(sound.encode(silence))
    got = Videos(str(tmp_path)).load()
    assert len(got.train) + len(got.test) == 10
    assert got.left_out == {"videos that cannot be read": 3, "videos without a frame": 1}
    with pytest.raises(DataError, match=r"cut\.mp4 cannot be read"):
        VideoClip(tmp_path / "clap" / "cut.mp4").frames(4)


def test_a_video_that_is_cut_off_gives_what_it_has(tmp_path: Path) -> None:
    whole = save_video(tmp_path / "a.mkv", VALUES, "mpeg4").read_bytes()
    cut = tmp_path / "b.mkv"
    cut.write_bytes(whole[: int(len(whole) * 0.7)])
    total = read_clip(cut, 0)[1]
    assert 1 <= total < 20
    found = levels(cut, 4)
    assert found == sorted(found) and found[-1] < VALUES[-1]


def test_lying_pictures_are_turned(tmp_path: Path) -> None:
    """The matrix of a track in an .mp4 says how phones held it: here by a quarter."""
    plain = save_video(tmp_path / "a.mp4", VALUES)
    assert VideoClip(plain).frames(1)[0].size == (64, 48)
    content = plain.read_bytes()
    one, last = (0x10000).to_bytes(4, "big"), (0x40000000).to_bytes(4, "big")
    zero, less = bytes(4), (-0x10000).to_bytes(4, "big", signed=True)
    straight = one + zero * 3 + one + zero * 3 + last
    quarter = zero + one + zero + less + zero * 4 + last
    assert straight in content
    track = content.index(straight, content.index(b"tkhd"))
    turned = tmp_path / "b.mp4"
    turned.write_bytes(content[:track] + quarter + content[track + len(straight) :])
    assert VideoClip(turned).frames(1)[0].size == (48, 64)
