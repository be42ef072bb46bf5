"""Recordings that are decoded when they are asked for, so that hours of sound never lie in memory
decoded.

The library `soundfile` reads WAV, FLAC, OGG, MP3 and what else its libsndfile knows. Without it the
standard library reads WAV files of whole numbers, of 8 to 32 bits, to the same samples.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedpeft.core.sound import Sound, UnreadableSound
from fedpeft.errors import PlanError, explain_install

ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf")
"""How the names of recordings end, in small letters."""
OTHER_FORMATS = (b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff", b"RF64")
"""How files begin that are recordings, and that the standard library does not read."""
SLOWEST, FASTEST = 1_000, 384_000
"""Samples a second. A filter that resamples is as long as the rate: a broken head must not make it
a thousand times longer."""
UNREAD = "clips that cannot be read as sound"


def is_sound(name: str) -> bool:
    """Whether a file is a recording, by its name."""
    return Path(name).suffix.lower() in ENDINGS and not Path(name).name.startswith(".")


@dataclass(frozen=True)
class SoundHead:
    """What a file says of itself: the length of a channel in samples, and samples a second."""

    length: int
    rate: int


@dataclass(frozen=True, eq=False)
class Clips:
    """A sequence of recordings of one channel, over files or over a column of an Arrow table.

    Attributes:
      items: paths, or Arrow scalars: bytes, a path, or a struct of `bytes` and `path` as `datasets`
        keeps them.
      index: which of the items, in order.
      folder: what relative paths are relative to.
    """

    items: Any
    index: Sequence[int]
    folder: Path = Path()

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Sound]:
        return (self[at] for at in range(len(self)))

    def __getitem__(self, at: int) -> Sound:
        """One recording, its channels' mean.

        Raises:
          UnreadableSound: why there is none.
          PlanError: `soundfile` is missing for it.
        """
        with self._opened(at) as file:
            return read_sound(file)

    def seconds(self, at: int) -> float:
        """How long a recording is by its head.

        Raises:
          UnreadableSound: why that cannot be told.
          PlanError: `soundfile` is missing for it.
        """
        with self._opened(at) as file:
            head = read_head(file)
        return head.length / head.rate

    def name(self, at: int) -> str:
        """What a log calls a recording: its path, or its number."""
        return str(self._held(at).get("path") or f"number {self.index[at]}")

    def _held(self, at: int) -> dict[str, Any]:
        item = self.items[self.index[at]]
        plain = item.as_py() if hasattr(item, "as_py") else item
        if isinstance(plain, dict):
            return plain
        return {"path" if isinstance(plain, str | Path) else "bytes": plain}

    @contextmanager
    def _opened(self, at: int) -> Iterator[BinaryIO]:
        """Its file. An error that ends the command names the recording."""
        try:
            with self._file(at) as file:
                yield file
        except PlanError as error:
            raise PlanError(f"{self.name(at)}: {error}") from None

    @contextmanager
    def _file(self, at: int) -> Iterator[BinaryIO]:
        held = self._held(at)
        content, path = held.get("bytes"), held.get("path")
        if not content and not path:
            raise UnreadableSound("clips without a file")
        if content:
            yield BytesIO(content)
            return
        # tables that were written on Windows have backslashes in their paths
        places = (self.folder / str(path), self.folder / str(path).replace("\\", "/"))
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise UnreadableSound("clips whose file is not there")
        try:
            file = found.open("rb")
        except OSError:
            raise UnreadableSound(UNREAD) from None
        with file:
            yield file


def read_head(file: BinaryIO) -> SoundHead:
    """The head of a file, whose samples stay where they are.

    Raises:
      UnreadableSound, PlanError: see `Clips`.
    """
    return _checked(_soundfile_head(file) if _has_soundfile() else _wave(file, whole=False)[0])


def read_sound(file: BinaryIO) -> Sound:
    """A file as samples.

    Raises:
      UnreadableSound, PlanError: see `Clips`.
    """
    head, samples = _soundfile(file) if _has_soundfile() else _wave(file, whole=True)
    mono = samples.mean(axis=1, dtype=np.float32) if samples.shape[1] > 1 else samples[:, 0]
    return Sound(np.ascontiguousarray(mono), _checked(head).rate)


def _checked(head: SoundHead) -> SoundHead:
    if not SLOWEST <= head.rate <= FASTEST:
        raise UnreadableSound(f"clips of a rate beyond {SLOWEST:,} to {FASTEST:,} samples a second")
    return head


def _has_soundfile() -> bool:
    return find_spec("soundfile") is not None


def _soundfile_head(file: BinaryIO) -> SoundHead:
    import soundfile

    try:
        told = soundfile.info(file)
    except (RuntimeError, TypeError, ValueError, OSError):  # the library's errors are RuntimeErrors
        raise UnreadableSound(UNREAD) from None
    return SoundHead(int(told.frames), int(told.samplerate))


def _soundfile(file: BinaryIO) -> tuple[SoundHead, NDArray[np.float32]]:
    import soundfile

    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (RuntimeError, TypeError, ValueError, OSError):
        raise UnreadableSound(UNREAD) from None
    return SoundHead(len(samples), int(rate)), samples


def _wave(file: BinaryIO, whole: bool) -> tuple[SoundHead, NDArray[np.float32]]:
    """What the standard library reads of a WAV file: its head, and its samples (n, channels) where
    they are wanted."""
    import wave

    start = file.read(4)
    file.seek(0)
    if start.startswith(OTHER_FORMATS):
        raise _missing()
    try:
        with wave.open(file, "rb") as opened:
            form = opened.getparams()
            data = opened.readframes(form.nframes) if whole else b""
    except (wave.Error, EOFError) as error:
        if "unknown format" in str(error):  # floats, or compressed
            raise _missing() from None
        raise UnreadableSound(UNREAD) from None
    if form.sampwidth not in (1, 2, 3, 4):
        raise UnreadableSound(UNREAD)
    samples = _from_bytes(data, form.sampwidth)
    channels = len(samples) // form.nchannels * form.nchannels
    return SoundHead(form.nframes, form.framerate), samples[:channels].reshape(-1, form.nchannels)


def _from_bytes(data: bytes, width: int) -> NDArray[np.float32]:
    """Whole numbers of `width` bytes, little-endian, as numbers from -1 to 1. Those of one byte
    have no sign and their middle at 128."""
    data = data[: len(data) // width * width]
    if width == 1:
        unsigned = np.frombuffer(data, np.uint8).astype(np.int16)
        return np.asarray((unsigned - 128) / 128, dtype=np.float32)
    if width == 3:
        # the three bytes become the upper ones of four, so that the sign is where it belongs
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, width = wide.tobytes(), 4
    numbers = np.frombuffer(data, f"<i{width}")
    return np.asarray(numbers / 2 ** (8 * width - 1), dtype=np.float32)


def _missing() -> PlanError:
    return PlanError(
        "the data have recordings that are no plain WAV file, which soundfile reads: "
        f"{explain_install('speech')}. Or take these files away"
    )
