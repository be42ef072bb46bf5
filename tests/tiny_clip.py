"""A CLIP and a SigLIP of the smallest size with random weights, which read the letters a to d."""

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


def save_siglip(folder: Path) -> Path:
    """A SigLIP with what makes its inputs; its captions have six tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessorPil,
        SiglipModel,
    )

    small = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {"vocab_size": 6, "max_position_embeddings": 6, "projection_size": 8}
    config = SiglipConfig(
        text_config={**small, **text, "pad_token_id": 1, "eos_token_id": 1, "bos_token_id": 0},
        vision_config={**small, "image_size": SIDE, "patch_size": 4},
    )
    words = {"<s>": 0, "</s>": 1, **{letter: 2 + k for k, letter in enumerate("abcd")}}
    made = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        SiglipModel(config).save_pretrained(folder)
        SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token="</s>", pad_token="</s>", model_max_length=6
        ).save_pretrained(folder)
    return folder
