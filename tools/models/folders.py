"""Models of many families in folders, made from small configurations with random weights, as a user
would have them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from fedpeft.core.seeds import seed_torch
from tools.models.small import config_for

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
SPECIAL = ("[PAD]", "[UNK]", "[EOS]", "[BOS]")


def save_family(folder: Path, family: str, auto: str = "AutoModel", **settings: Any) -> Path:
    """A model of the family, saved by the class `auto`, with a tokenizer of eight words."""
    import transformers

    config = config_for(family, **settings)
    config.architectures = []  # which `transformers` walks through where a family has two heads
    with seed_torch(3):
        getattr(transformers, auto).from_config(config).save_pretrained(folder)
    if hasattr(config, "vocab_size") or hasattr(config, "text_config"):
        save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    words = Tokenizer(
        WordLevel({word: k for k, word in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]")
    )
    words.pre_tokenizer = Whitespace()
    words.add_special_tokens(list(SPECIAL))
    words.post_processor = TemplateProcessing(
        single="$A [EOS]", special_tokens=[("[EOS]", SPECIAL.index("[EOS]"))]
    )
    words.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "unk_token", "eos_token", "bos_token"), SPECIAL, strict=True))
    kept = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
