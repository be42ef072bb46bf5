"""Small configurations of the families of `transformers`."""

from collections.abc import Mapping
from typing import Any

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
    config = cls(**{**known, **absent, **_few(usual), **settings})
    for inner in ("vision_config", "text_config"):
        if inner not in settings and hasattr(config, inner):
            _shrink(getattr(config, inner))
    return config


def _few(usual: Any) -> dict[str, Any]:
    """Keys of models in stages that take one number a stage."""
    if usual.model_type == "resnet":
        return {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return {}


def _shrink(config: Any) -> None:
    for key, x in SIZES.items():
        if _positive(getattr(config, key, None)):
            setattr(config, key, x)


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0
