"""Recordings of every width, written byte by byte, and folders of them."""

import csv
import struct
import wave
from collections.abc import Sequence
from pathlib import Path

RATE = 16_000


def write_ints(
    file: Path, samples: Sequence[Sequence[int]], width: int = 2, rate: int = RATE
) -> Path:
    """A WAV file of whole numbers of `width` bytes, one sequence of channels for each sample."""
    file.parent.mkdir(parents=True, exist_ok=True)
    flat = [number for channels in samples for number in channels]
    data = b"".join(number.to_bytes(width, "little", signed=width > 1) for number in flat)
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(len(samples[0]) if samples else 1)
        opened.setsampwidth(width)
        opened.setframerate(rate)
        opened.writeframes(data)
    return file


def write_floats(file: Path, samples: Sequence[float], rate: int = RATE) -> Path:
    """A WAV file of float32, which the standard library neither writes nor reads."""
    data = struct.pack(f"<{len(samples)}f", *samples)
    form = struct.pack("<HHIIHH", 3, 1, rate, 4 * rate, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data))
    file.write_bytes(b"RIFF" + struct.pack("<I", len(body) + len(data)) + body + data)
    return file


def write_hours(file: Path, hours: float, rate: int = RATE) -> Path:
    """A WAV file of so many hours of 16 bits that takes no room: what it holds is a hole."""
    write_ints(file, [(0,)], rate=rate)
    size = int(hours * 3600 * rate) * 2
    with file.open("r+b") as opened:
        opened.seek(4)
        opened.write(struct.pack("<I", 36 + size))
        opened.seek(40)
        opened.write(struct.pack("<I", size))
        opened.truncate(44 + size)
    return file


def write_table(folder: Path, rows: Sequence[tuple[str, str]]) -> Path:
    """metadata.csv of paths and transcripts."""
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "transcription"), *rows])
    return folder
