"""Small configurations of the families of `transformers`."""

from collections.abc import Mapping
from typing import Any

SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim"), 32),
    "projection_size": 32,
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


OWN: Mapping[str, Mapping[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "convnext": {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1], "patch_size": 4},
    "levit": {"image_size": 64, "patch_size": 16},
    "swin": {"num_heads": [2, 4], "depths": [1, 1], "window_size": 2, "patch_size": 4},
    "deepseek_v3": {
        **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim"), 8),
        **{"kv_lora_rank": 8, "q_lora_rank": 16, "n_group": 2, "topk_group": 1},
        "num_key_value_heads": 4,  # latent attention has keys of its own for each head
    },
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
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


def _few(usual: Any) -> Mapping[str, Any]:
    """Keys of models whose own numbers would not fit the small ones."""
    return OWN.get(usual.model_type, {})


def _shrink(config: Any) -> None:
    for key, x in SIZES.items():
        if _positive(getattr(config, key, None)):
            setattr(config, key, x)


def _positive(value: Any) -> bool:
    return isinstance(value, int) and value > 0
