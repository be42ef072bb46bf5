"""Models of many families in folders, made from small configurations with random weights, as a user
would have them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from fedpeft.core.seeds import seeded

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
SPECIAL = ("[PAD]", "[UNK]", "[EOS]", "[BOS]")
SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim"), 32),
    "embedding_size": 32,
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "d_inner"), 64),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("head_dim", "d_kv", "d_head"), 8),
    "vocab_size": 16,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 64),
    "moe_intermediate_size": 32,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    "image_size": 32,
    "patch_size": 8,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": 3,
}


def config_for(family: str, **settings: Any) -> Any:
    """A small configuration of a family; `settings` are keys of its own."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[family]
    usual = cls()
    known = {key: x for key, x in SIZES.items() if _positive(getattr(usual, key, None))}
    absent = {key: SIZES[key] for key in ("pad_token_id",) if hasattr(usual, key)}
    return cls(**{**known, **absent, **settings})


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def save_family(folder: Path, family: str, auto: str = "AutoModel", **settings: Any) -> Path:
    """A model of the family, saved by the class `auto`, with a tokenizer of eight words."""
    import transformers

    config = config_for(family, **settings)
    with seeded(3):
        getattr(transformers, auto).from_config(config).save_pretrained(folder)
    if hasattr(config, "vocab_size"):
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


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite the saved tensors."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


def change_config(folder: Path, **keys: Any) -> None:
    """Rewrite keys of the saved configuration."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
