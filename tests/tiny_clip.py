"""A CLIP of the smallest size with random weights, which reads the letters a to d."""

from pathlib import Path

import torch

from fedpeft.tasks.pretrained import quiet

SIDE = 8


def save_clip(folder: Path) -> Path:
    """A CLIP with its processor, as transformers saves them."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    small = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vocabulary = {
        word: k
        for k, word in enumerate(
            ("<|startoftext|>", "<|endoftext|>", *(f"{c}</w>" for c in "abcd"))
        )
    }
    text = {
        "vocab_size": 6,
        "max_position_embeddings": 6,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {"image_size": SIDE, "patch_size": 4}
    config = CLIPConfig(
        text_config={**small, **text}, vision_config={**small, **vision}, projection_dim=8
    )
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
        pictures = CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        )
        words = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=6)
        CLIPProcessor(image_processor=pictures, tokenizer=words).save_pretrained(folder)
    return folder
