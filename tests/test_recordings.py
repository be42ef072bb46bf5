"""Recordings of all widths and kinds, and the tables that name them."""

import io
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sound_files import RATE, write_floats, write_hours, write_ints, write_table

from fedpeft import DataError, PlanError, read_plan
from fedpeft.core.sound import UnreadableSound
from fedpeft.core.types import Examples
from fedpeft.data.recordings import Clips, read_sound
from fedpeft.data.table import HubTable
from fedpeft.tasks.text_classification import TextClassification

needs_soundfile = pytest.mark.skipif(
    find_spec("soundfile") is None, reason="soundfile is not installed"
)


@pytest.fixture(params=["wave", "soundfile"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of both readers in turn; a name that is None in `sys.modules` is not installed."""
    if request.param == "wave":
        monkeypatch.setitem(sys.modules, "soundfile", None)
    elif find_spec("soundfile") is None:
        pytest.skip("soundfile is not installed")
    return str(request.param)


@pytest.mark.parametrize(
    ("width", "numbers"),
    [
        (1, (0, 64, 128, 192)),
        (2, (-(2**15), -(2**14), 0, 2**14)),
        (3, (-(2**23), -(2**22), 0, 2**22)),
        (4, (-(2**31), -(2**30), 0, 2**30)),
    ],
)
def test_whole_numbers_of_every_width_are_from_minus_one_to_one(
    reader: str, width: int, numbers: tuple[int, ...], tmp_path: Path
) -> None:
    file = write_ints(tmp_path / "a.wav", [(x,) for x in numbers], width)
    sound = Clips([file], [0])[0]
    assert sound.samples.tolist() == [-1.0, -0.5, 0.0, 0.5] and sound.rate == RATE
    assert sound.samples.dtype == np.float32


def test_channels_become_their_mean(reader: str, tmp_path: Path) -> None:
    file = write_ints(tmp_path / "a.wav", [(2**14, 0), (2**14, 2**14), (-(2**14), 2**14)], 2, 8_000)
    clips = Clips([file.read_bytes(), str(file)], [1, 0])
    for at in (0, 1):
        assert clips[at].samples.tolist() == [0.25, 0.5, 0.0]
        assert clips.seconds(at) == 3 / 8_000
    assert (clips.name(0), clips.name(1)) == (str(file), "number 0")


@needs_soundfile
def test_floats_and_flac_are_read_by_soundfile(tmp_path: Path) -> None:
    import soundfile

    file = write_floats(tmp_path / "a.wav", [0.1, -0.7, 0.0])
    np.testing.assert_array_equal(
        Clips([file], [0])[0].samples, np.array([0.1, -0.7, 0.0], np.float32)
    )
    ramp = np.arange(-50, 50) / 64
    soundfile.write(tmp_path / "a.flac", ramp, 44_100, subtype="PCM_24")
    sound = Clips([tmp_path / "a.flac"], [0])[0]
    np.testing.assert_array_equal(sound.samples, ramp.astype(np.float32))
    assert sound.rate == 44_100


def test_what_only_soundfile_reads_is_no_reason_to_leave_it_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Sites with other libraries would train on other data, and tell nobody."""
    monkeypatch.setitem(sys.modules, "soundfile", None)
    (tmp_path / "b").mkdir()
    floats = write_floats(tmp_path / "b" / "a.wav", [0.5]).read_bytes()
    for content in (floats, b"fLaC and so on"):
        with pytest.raises(PlanError, match=r"which soundfile reads: pip install 'fedpeft\[speech"):
            read_sound(io.BytesIO(content))
    with pytest.raises(
        PlanError, match=r"^b/a\.wav: the data have recordings that are no plain WAV"
    ):
        Clips(["b/a.wav"], [0], tmp_path).seconds(0)


def test_what_is_no_recording_says_so(reader: str, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("a text that somebody renamed")
    (tmp_path / "empty.wav").touch()
    write_ints(tmp_path / "fast.wav", [(1,)] * 4, rate=10**9)
    clips = Clips(["text.wav", "empty.wav", "fast.wav", "gone.wav", None], range(5), tmp_path)
    said = []
    for at in range(5):
        for ask in (clips.seconds, clips.__getitem__):
            with pytest.raises(UnreadableSound) as error:
                ask(at)
            said.append(str(error.value))
    assert said[::2] == said[1::2]
    assert said[0] == said[2] == "clips that cannot be read as sound"
    assert said[4] == "clips of a rate beyond 1,000 to 384,000 samples a second"
    assert said[6::2] == ["clips whose file is not there", "clips without a file"]


def test_a_cut_file_gives_what_is_left_of_it(reader: str, tmp_path: Path) -> None:
    file = write_ints(tmp_path / "a.wav", [(2**14, 2**14)] * 10)
    file.write_bytes(file.read_bytes()[:-7])
    assert Clips([file], [0])[0].samples.tolist() == [0.5] * 8


def test_hours_are_told_by_their_head(reader: str, tmp_path: Path) -> None:
    assert Clips([write_hours(tmp_path / "a.wav", 2)], [0]).seconds(0) == 7200


def load(folder: Path, **other: Any) -> Examples:
    return HubTable(str(folder), label="none", **other).load()


def test_a_folder_with_a_table_has_recordings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The audio folder of `datasets`: splits are folders, and so may be speakers."""
    names = ("train/anna/1.wav", "train/ben/2.WAV", "test/anna/3.wav", "train/left.wav")
    for place, name in enumerate(names):
        write_ints(tmp_path / name, [(place * 2**13,)])
    write_table(tmp_path, [(names[0], "one"), (names[1], ""), (names[2], "three")])
    with caplog.at_level(logging.WARNING, "fedpeft"):
        found = load(tmp_path)
    assert "left out: 1 recording that no metadata file names, the first train/left" in (
        caplog.text
    )
    train, test = found.train.columns, found.test.columns
    assert train["transcription"] == ["one", None] and test["transcription"] == ["three"]
    assert train["folder"] == ["anna", "ben"]
    assert [float(one.samples[0]) for one in train["audio"]] == [0.0, 0.25]
    assert float(test["audio"][0].samples[0]) == 0.5
    assert "image" not in train


def test_tables_name_recordings_in_other_ways(tmp_path: Path) -> None:
    import datasets

    file = write_ints(tmp_path / "a.wav", [(2**14,)])
    (tmp_path / "named.csv").write_text("audio,text\na.wav,one\n")
    (tmp_path / "other.csv").write_text("clip,sentence\na.wav,one\n")
    rows = {"sound": [{"bytes": file.read_bytes(), "path": "x.wav"}], "text": ["one"]}
    # what the hub has: the column's type is known, and its bytes lie in the table
    typed = datasets.Dataset.from_dict(rows).cast_column("sound", datasets.Audio(decode=False))
    typed.to_parquet(str(tmp_path / "typed.parquet"))
    for name, other in (("named.csv", {}), ("other.csv", {"audio": "clip"}), ("typed.parquet", {})):
        columns = load(tmp_path / name, test_fraction=0, **other).train.columns
        assert columns["audio"][0].samples.tolist() == [0.5], name
        assert columns["text"] == ["one"] and columns.get("sentence", ["one"]) == ["one"]
        assert ("sentence" in columns) == (name == "other.csv")


def test_texts_beside_recordings_are_classified_as_before(tmp_path: Path) -> None:
    """Some have none, which is the error of the task that reads them."""
    for last in ("two", ""):
        (tmp_path / "a.csv").write_text(f"audio,text,label\na.wav,one,x\na.wav,{last},y\n")
        found = HubTable(str(tmp_path / "a.csv"), test_fraction=0).load()
        assert found.classes == ("x", "y") and found.train.columns["text"] == ["one", last or None]
    with pytest.raises(DataError, match="1 of 2 examples have no 'text'"):
        TextClassification("some/model").prepare(found.train)


def test_a_column_of_other_words_called_audio_stays_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("audio,text\nloud,one\nquiet,two\n")
    columns = HubTable(str(tmp_path / "a.csv"), label="none", test_fraction=0).load().train.columns
    assert columns["audio"] == ["loud", "quiet"] and columns["text"] == ["one", "two"]


def test_a_plan_without_the_key_keeps_its_fingerprint() -> None:
    data = {"name": "table", "path": "x"}
    assert (
        read_plan({"data": data}).fingerprint
        == read_plan({"data": {**data, "audio": ""}}).fingerprint
    )
