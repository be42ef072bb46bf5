"""What a speech model hears of a recording: its feature extractor, and recordings brought to its
rate."""

from functools import cache
from math import gcd
from typing import Any

import numpy as np
from torch import Tensor

from fedpeft.core.sound import Sound
from fedpeft.errors import PlanError
from fedpeft.storage.hub import spare_lookups
from fedpeft.storage.locate import locate
from fedpeft.tasks.pretrained import NO_CODE, config_of
from fedpeft.tasks.text_classification import tokenizer

HEARD = "input_features"


@cache
def extractor(base: str) -> Any:
    """The feature extractor of a model.

    Raises:
      PlanError: it has none, one that does not fill clips up to one length, or one of another
        length than the model's.
    """
    if locate(base) is None:
        spare_lookups()
    from transformers import AutoFeatureExtractor

    try:
        made = AutoFeatureExtractor.from_pretrained(base, **NO_CODE)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise PlanError(
            f"the feature extractor of {base!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from None
    if made.model_input_names[0] != HEARD or not getattr(made, "n_samples", 0):
        raise PlanError(
            f"{base!r} hears through a {type(made).__name__}, and speech-to-text takes models that "
            "hear clips filled up to one length: name one of the kind of Whisper"
        )
    config = config_of(base)
    frames, wanted = made.nb_max_frames, 2 * getattr(config, "max_source_positions", 0)
    if (frames, made.feature_size) != (wanted, getattr(config, "num_mel_bins", 0)):
        raise PlanError(
            f"the feature extractor of {base!r} gives {frames} frames of {made.feature_size} "
            f"numbers, and its model takes {wanted} of {getattr(config, 'num_mel_bins', 0)}: "
            "they do not belong together. Take the preprocessor_config.json that it was trained "
            "with"
        )
    return made


def heard_seconds(base: str) -> float:
    """How long a clip may be."""
    read = extractor(base)
    return float(read.n_samples / read.sampling_rate)


def hear(base: str, sound: Sound) -> Tensor:
    """The model's features of a recording, float32 (numbers, frames)."""
    read = extractor(base)
    samples = resample(sound, read.sampling_rate)
    made = read(samples, sampling_rate=read.sampling_rate, return_tensors="pt")
    features: Tensor = made[HEARD][0]
    return features.float()


def resample(sound: Sound, rate: int) -> Any:
    """A recording's samples at another rate, by SciPy's polyphase filter."""
    if sound.rate == rate:
        return sound.samples
    from scipy.signal import resample_poly

    shared = gcd(sound.rate, rate)
    made = resample_poly(sound.samples, rate // shared, sound.rate // shared)
    return np.asarray(made, dtype=np.float32)


@cache
def speech_tokenizer(base: str, language: str) -> Any:
    """The model's tokenizer; where a language is named, it writes that before each transcript.

    Raises:
      PlanError: it knows no such language, or none at all.
    """
    if not language:
        return tokenizer(base)
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(base, **NO_CODE)  # a copy, whose prefix is its own
    if not hasattr(read, "set_prefix_tokens"):
        raise PlanError(
            f"the tokenizer of {base!r} writes no language before a transcript: leave out "
            "task.language"
        )
    try:
        read.set_prefix_tokens(language=language, task="transcribe")
        read("a")  # it looks the language up when it writes
    except (ValueError, KeyError) as error:
        raise PlanError(f"task.language = {language!r}: {str(error).splitlines()[0]}") from None
    return read


def speech_processor(base: str, language: str) -> Any:
    """Feature extractor and tokenizer together, as `transformers` saves them."""
    from transformers import AutoProcessor

    made = AutoProcessor.from_pretrained(base, **NO_CODE)
    made.tokenizer = speech_tokenizer(base, language)
    return made
