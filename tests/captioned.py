"""A diffusion model of the smallest size, captioned squares of four colours, and plans of both."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fedpeft.tasks.pretrained import quiet

COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 200, 40),
    "blue": (30, 40, 230),
    "white": (255, 255, 255),
}
SIDE = 8


def save_diffusion(folder: Path) -> Path:
    """A Stable Diffusion of the smallest size with random weights, with the parts that its pipeline
    saves."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vocabulary = {
        word: k
        for k, word in enumerate(
            ("<|startoftext|>", "<|endoftext|>", *(f"{c}</w>" for c in "abcd"))
        )
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            norm_num_groups=2,
            sample_size=SIDE,
        )
        text = CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=8,
            intermediate_size=16,
            projection_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=6,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        parts = {
            "unet": unet,
            "vae": vae,
            "text_encoder": CLIPTextModel(text),
            "tokenizer": CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=6),
            "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
        }
    with quiet():
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    index = {
        name: [type(part).__module__.partition(".")[0], type(part).__name__]
        for name, part in parts.items()
    }
    none = {
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    whole = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        **index,
        **none,
    }
    (folder / "model_index.json").write_text(json.dumps(whole))
    return folder


def save_table(folder: Path) -> Path:
    """Two owners of squares in four colours, each called by a letter."""
    rows = []
    for k in range(24):
        name = list(COLOURS)[k % 4]
        Image.new("RGB", (SIDE + k % 3, SIDE), COLOURS[name]).save(folder / f"{k}.png")
        rows.append({"image": f"{k}.png", "text": "abcd"[k % 4], "who": "ann" if k < 12 else "bob"})
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "table.jsonl"


def changes(diffusion: Path, table: Path, **other: Any) -> dict[str, Any]:
    return {
        "task": {"name": "text-to-image", "model": str(diffusion)},
        "data": {"name": "table", "path": str(table), "label": "none"},
        "partition": {"name": "column", "column": "who"},
        "method": {"name": "lora", "rank": 2},
        "local": {"batch_size": 4, "lr": 0.01, "optimizer": "adamw"},
        "rounds": 1,
        "cohort": 2,
        **other,
    }
