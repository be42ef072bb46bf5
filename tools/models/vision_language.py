"""Vision-language models of the smallest size with random weights, of four families."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from fedpeft.core.seeds import seed_torch

FAMILIES = ("llava", "qwen2_vl", "idefics3", "gemma3")
SIDE = 16
"""Pixels a side, of which each family makes four tokens or more."""
SIGNS = {
    "llava": ("<image>",),
    "qwen2_vl": ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>"),
    "idefics3": (
        *("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"),
        *(f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)),
    ),
    "gemma3": ("<start_of_image>", "<image_soft_token>", "<end_of_image>"),
}
FIRST = ("<pad>", "<unk>", "<s>", "</s>")
WORDS = (
    *("user", "assistant", "system", "what", "colour", "is", "this", "a", "square"),
    *("red", "green", "blue", "white"),
)
TEMPLATE = (
    "{{% for m in messages %}}{{{{ m['role'] + ' ' }}}}{{% if m['content'] is string %}}"
    "{{{{ m['content'] }}}}{{% else %}}{{% for part in m['content'] %}}"
    "{{% if part['type'] == 'image' %}}{{{{ '{image} ' }}}}"
    "{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}"
    "{{{{ ' </s> ' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ 'assistant ' }}}}{{% endif %}}"
)
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}


def save_vlm(folder: Path, family: str, template: bool = True, **text: int) -> Path:
    """The model and its processor; `template` is whether there is a chat template, and `text` are
    other sizes of the part that writes."""
    read = _tokenizer(family)
    ids = {sign: read.convert_tokens_to_ids(sign) for sign in SIGNS[family]}
    with seed_torch(4):
        _MODELS[family](ids, {**TEXT, **text, "vocab_size": len(read)}).save_pretrained(folder)
    placeholder = "".join(SIGNS[family][k] for k in _WRITTEN[family])
    chat = TEMPLATE.format(image=placeholder) if template else None
    _PROCESSORS[family](read, chat).save_pretrained(folder)
    return folder


_WRITTEN = {"llava": (0,), "qwen2_vl": (0, 1, 3), "idefics3": (1,), "gemma3": (0,)}
"""Which of the signs stand for a picture in a template."""


def _tokenizer(family: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    every = (*FIRST, *SIGNS[family], *WORDS)
    words = Tokenizer(
        models.WordLevel({word: k for k, word in enumerate(every)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(one, special=True) for one in (*FIRST, *SIGNS[family])])
    named = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), FIRST, strict=True))
    more: dict[str, Any] = {}
    if family == "gemma3":
        start, soft, end = SIGNS[family]
        more["extra_special_tokens"] = {"boi_token": start, "image_token": soft, "eoi_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=words, **named, **more)


def _llava(ids: dict[str, int], text: dict[str, Any]) -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**text),
            image_token_id=ids["<image>"],
            vision_feature_layer=-1,
        )
    )


def _qwen(ids: dict[str, int], text: dict[str, Any]) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {key: x for key, x in text.items() if key != "head_dim"}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={
                "depth": 2,
                "embed_dim": 16,
                "hidden_size": 16,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": 4,
            },
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
    )


def _idefics(ids: dict[str, int], text: dict[str, Any]) -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

    return Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config={**VISION, "patch_size": 4},
            text_config=LlamaConfig(**text),
            image_token_id=ids["<image>"],
            scale_factor=2,
            pad_token_id=0,
        )
    )


def _gemma(ids: dict[str, int], text: dict[str, Any]) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={
                **text,
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            vision_config=VISION,
            mm_tokens_per_image=4,
            boi_token_index=ids["<start_of_image>"],
            eoi_token_index=ids["<end_of_image>"],
            image_token_index=ids["<image_soft_token>"],
        )
    )
    # which begins at zero, so that nothing would be seen of a picture
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model


def _see_llava(read: Any, chat: str | None) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    pixels = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return LlavaProcessor(
        pixels,
        read,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat,
    )


def _see_qwen(read: Any, chat: str | None) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    size = {"shortest_edge": SIDE**2, "longest_edge": 4 * SIDE**2}
    pixels = Qwen2VLImageProcessor(patch_size=4, size=size)
    films = Qwen2VLVideoProcessor(patch_size=4, size=size)
    return Qwen2VLProcessor(pixels, read, films, chat_template=chat)


def _see_idefics(read: Any, chat: str | None) -> Any:
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    pixels = Idefics3ImageProcessor(
        size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
    )
    return Idefics3Processor(pixels, read, image_seq_len=4, chat_template=chat)


def _see_gemma(read: Any, chat: str | None) -> Any:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    pixels = Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE})
    return Gemma3Processor(pixels, read, chat_template=chat, image_seq_length=4)


_MODELS = {"llava": _llava, "qwen2_vl": _qwen, "idefics3": _idefics, "gemma3": _gemma}
_PROCESSORS = {
    "llava": _see_llava,
    "qwen2_vl": _see_qwen,
    "idefics3": _see_idefics,
    "gemma3": _see_gemma,
}
