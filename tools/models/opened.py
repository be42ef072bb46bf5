"""Tasks whose models are tried as a user's plan opens them: by the task itself, from a folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpeft.registry import build
from tools.models.folders import save_family
from tools.models.small import config_for
from tools.models.vision_language import FAMILIES, save_vlm

CLASSES = ("a", "b", "c")
AUTO = "AutoModel"
HEARS = "AutoModelForSpeechSeq2Seq"


@dataclass(frozen=True)
class Kind:
    """A task of the house, and how small models for it are made.

    Attributes:
      families: as `transformers` names them in `model_type`.
      save: writes a model of a family into a folder.
      settings: keys of the task beside `model`.
    """

    families: tuple[str, ...]
    save: Callable[[Path, str], object]
    settings: Mapping[str, Any] = field(default_factory=dict)


KEYS: Mapping[str, Mapping[str, Any]] = {
    "beit": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
    "dpt": {
        **{"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
        **{"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16, "is_hybrid": False},
    },
    "segformer": {"decoder_hidden_size": 32},
    "vjepa2": {
        **{"crop_size": 32, "frames_per_clip": 4, "pred_num_hidden_layers": 1},
        **{"pred_hidden_size": 32, "pred_num_attention_heads": 4, "num_pooler_layers": 1},
    },
}
"""Keys of the small configurations of these tasks alone."""


def saved_by(auto: str, **keys: Any) -> Callable[[Path, str], Path]:
    """What saves a small model by this class of `transformers`."""
    return lambda folder, family: save_family(folder, family, auto, **keys, **KEYS.get(family, {}))


def save_hearing(folder: Path, family: str) -> None:
    """A model that hears clips of a second, with what makes its inputs."""
    from transformers import SpeechT5FeatureExtractor, WhisperFeatureExtractor

    start = {"decoder_start_token_id": 3}
    if family == "whisper":
        save_family(folder, family, HEARS, max_source_positions=50, **start)
        bands = config_for(family).num_mel_bins
        WhisperFeatureExtractor(feature_size=bands, chunk_length=1).save_pretrained(folder)
        return
    save_family(folder, family, HEARS, **start)
    SpeechT5FeatureExtractor().save_pretrained(folder)


KINDS: Mapping[str, Kind] = {
    "token-classification": Kind(
        (
            *("bert", "roberta", "distilbert", "deberta", "deberta-v2", "albert", "electra"),
            *("modernbert", "xlnet", "t5", "gpt2", "bloom", "mistral", "qwen2", "qwen3"),
        ),
        saved_by("AutoModelForTokenClassification"),
        {"labels": CLASSES},
    ),
    "seq2seq": Kind(
        ("t5", "mt5", "bart", "mbart", "pegasus", "marian", "led"),
        saved_by("AutoModelForSeq2SeqLM", decoder_start_token_id=0),
    ),
    "semantic-segmentation": Kind(
        ("segformer", "beit", "dpt", "upernet", "mobilevit", "mobilenet_v2"),
        saved_by("AutoModelForSemanticSegmentation"),
        {"labels": CLASSES},
    ),
    "video-classification": Kind(
        ("videomae", "vivit", "timesformer", "vjepa2"),
        saved_by("AutoModelForVideoClassification"),
    ),
    "speech-to-text": Kind(("whisper", "moonshine", "speech_to_text"), save_hearing),
    "image-text": Kind(("clip", "siglip", "siglip2", "align", "chinese_clip"), saved_by(AUTO)),
    "image-text-to-text": Kind(FAMILIES, save_vlm),
}


def open_small(kind: str, family: str, folder: Path) -> Any:
    """The task of a small model that is saved into the folder, or why there is none."""
    made = KINDS[kind]
    try:
        made.save(folder, family)
    except Exception as error:  # a library that is not installed, numbers that do not fit together
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90]}"
    return build("task", {"name": kind, "model": str(folder), **made.settings})
