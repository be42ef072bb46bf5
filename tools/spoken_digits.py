"""Spoken digits that nobody spoke: clips in which a pair of tones stands for each digit, as a
telephone's keys have them, and a small Whisper with random weights that can learn to write them.

    python -m tools.spoken_digits FOLDER

writes FOLDER/spoken-digits (WAV files and metadata.csv, one folder a speaker and split) and
FOLDER/tiny-whisper. They show that training works, without a download; they are no speech, and
nothing about speech can be concluded from them.
"""

import csv
import sys
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LOW, HIGH = (697.0, 770.0, 852.0, 941.0), (1209.0, 1336.0, 1477.0)
KEYS = ((3, 1), *((row, column) for row in range(3) for column in range(3)))
"""Row and column of each digit on a telephone's keys."""
SPEAKERS = {"anna": (1.0, 16_000), "ben": (0.8, 8_000), "carla": (1.3, 22_050)}
"""By speaker how high all tones are, and the samples a second of the microphone."""
SECONDS, PAUSE = 0.18, 0.06


def speak(
    digits: list[int], pitch: float, rate: int, draw: np.random.Generator
) -> NDArray[np.float64]:
    """The samples (n,) of some digits one after another, with a little noise."""
    parts = []
    for digit in digits:
        row, column = KEYS[digit]
        at = np.arange(int(rate * SECONDS * draw.uniform(0.9, 1.1))) / rate
        tones = sum(np.sin(2 * np.pi * pitch * tone * at) for tone in (LOW[row], HIGH[column]))
        parts += [0.3 * draw.uniform(0.7, 1.3) * tones, np.zeros(int(rate * PAUSE))]
    sound = np.concatenate(parts)
    return sound + 0.01 * draw.standard_normal(len(sound))


def write_wav(file: Path, samples: NDArray[np.float64], rate: int) -> None:
    """A WAV file of 16 bits and one channel."""
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = (samples.clip(-1, 1) * 32767).astype("<i2")
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes(numbers.tobytes())


def write_clips(folder: Path, clips: int = 80, held_out: int = 20, seed: int = 1) -> None:
    """So many clips of each speaker, of one to three digits, and metadata.csv, as the audio folders
    of `datasets` have it."""
    draw = np.random.default_rng(seed)
    rows = []
    for speaker, (pitch, rate) in SPEAKERS.items():
        for number in range(clips + held_out):
            split = "train" if number < clips else "test"
            digits = [int(k) for k in draw.integers(0, 10, draw.integers(1, 4))]
            name = f"{split}/{speaker}/{number:03}.wav"
            write_wav(folder / name, speak(digits, pitch, rate, draw), rate)
            rows.append((name, " ".join(WORDS[digit] for digit in digits), speaker))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "transcription", "speaker"), *rows])


def write_model(folder: Path, width: int = 64, seed: int = 1) -> None:
    """A Whisper of two layers a side that hears one second, with random weights, and a tokenizer of
    one token a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    vocabulary = {word: k for k, word in enumerate(("<pad>", "<unk>", "<s>", "</s>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    named = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=40, chunk_length=1).save_pretrained(folder)
    layers = {f"{side}_layers": 2 for side in ("encoder", "decoder")}
    heads = {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
    wide = {f"{side}_ffn_dim": 2 * width for side in ("encoder", "decoder")}
    config = WhisperConfig(
        vocab_size=len(vocabulary),
        num_mel_bins=40,
        d_model=width,
        init_std=0.1,  # with 0.02 a model so narrow learns how long answers are, and not to listen
        max_source_positions=50,
        max_target_positions=16,
        decoder_start_token_id=2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **layers,
        **heads,
        **wide,
    )
    torch.manual_seed(seed)
    WhisperForConditionalGeneration(config).save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.spoken_digits FOLDER")
    write_clips(Path(sys.argv[1]) / "spoken-digits")
    write_model(Path(sys.argv[1]) / "tiny-whisper")
