"""Pre-train the small latent diffusion model that plans and studies of captioned emoji begin with.

    python tools/pretrain_emoji.py --data TABLES --out studies/weights/emoji-diffusion

Three categories of emoji are learned here (faces, people, symbols), each picture by its name and
now and then two of its keywords; what a federation learns later (animals, food, travel, activities,
objects) is never seen. Latents are TAEF2's (`taef2` in the folder of the data), 32x8x8. A byte-pair
tokenizer is made from the same captions; a CLIP text encoder of two layers and a
UNet2DConditionModel are trained together from random weights to predict v (Salimans and Ho, 2022,
arXiv:2202.00512), one caption in ten left out. What is saved is the moving average, in float16, as
`diffusers` has it. Needs `fedpeft[diffusion]`; a step takes a third of a second of one core. A kill
loses at most `--save-every` steps: the same command goes on from `--checkpoint`, and with `--until`
ends before the learning rate is at zero.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fedpeft.tasks.taef2 import Taef2

CATEGORIES = ("Smileys & Emotion", "People & Body", "Symbols")
TOKENS = 16  # of a caption, with those that begin and end it
VOCABULARY = 512
WIDTH = 64  # of the text encoder
LEFT_OUT = 0.1  # captions, so that a sampler may weigh with and without
AVERAGED = 0.995


def examples(data: Path) -> tuple[Tensor, list[tuple[str, list[str]]]]:
    """Latents (n, 32, 8, 8), and of each picture its name and its keywords."""
    import numpy as np
    from datasets import load_dataset
    from PIL import Image

    table = load_dataset(
        "parquet", data_files=str(data / "emoji" / "train.parquet"), split="train", streaming=True
    )
    kept = [row for row in table if row["category"] in CATEGORIES]
    pictures: list[Image.Image] = [row["image"] for row in kept]
    x = torch.from_numpy(np.stack([np.array(picture.convert("RGB")) for picture in pictures]))
    autoencoder = Taef2.load(data / "taef2")
    with torch.no_grad():
        latents = [
            autoencoder.encode(part.permute(0, 3, 1, 2).float() / 255)
            for part in torch.split(x, 32)
        ]
    return torch.cat(latents), [(row["name"], list(row["keywords"])) for row in kept]


def tokenizer_of(captions: list[str]) -> Any:
    """CLIP's kind of tokenizer over a vocabulary of its own."""
    from tokenizers import Tokenizer, trainers
    from tokenizers.models import BPE
    from transformers import CLIPTokenizer

    blank = CLIPTokenizer()._tokenizer
    made = Tokenizer(BPE(end_of_word_suffix="</w>"))
    made.normalizer, made.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789"),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    made.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(made.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=made.get_vocab(), merges=merges, model_max_length=TOKENS)


def build(words: Any) -> tuple[Any, Any]:
    """The text encoder and the denoiser."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    denoiser = UNet2DConditionModel(
        sample_size=8,
        in_channels=32,
        out_channels=32,
        block_out_channels=(40, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,  # the number of heads, as the library has it
        norm_num_groups=8,
    )
    return CLIPTextModel(text), denoiser


def scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def told(caption: tuple[str, list[str]], rng: torch.Generator) -> str:
    """A caption: the name, in one case of three with two keywords, in one of ten nothing."""
    name, keywords = caption
    drawn = torch.rand(2, generator=rng).tolist()
    if drawn[0] < LEFT_OUT:
        return ""
    if drawn[1] < 1 / 3 and keywords:
        pick = torch.randperm(len(keywords), generator=rng)[:2].tolist()
        return ", ".join([name, *(keywords[k] for k in pick)])
    return name


def keep(path: Path, parts: dict[str, Any], step: int, rng: torch.Generator) -> None:
    part = path.with_suffix(".part")
    torch.save(
        {
            **{name: one.state_dict() for name, one in parts.items()},
            "step": step,
            "rng": rng.get_state(),
        },
        part,
    )
    part.rename(path)


def restored(path: Path, parts: Mapping[str, Any], rng: torch.Generator) -> int:
    """Put what was kept into the parts; the steps that were done."""
    kept = torch.load(path, weights_only=True)
    for name, one in parts.items():
        one.load_state_dict(kept[name])
    rng.set_state(kept["rng"])
    return int(kept["step"])


def denoising_loss(
    both: nn.ModuleDict, clean: Tensor, ids: Tensor, alphas: Tensor, rng: torch.Generator
) -> Tensor:
    """The squared error of v = √α·noise − √(1 − α)·clean, at a time of its own for each example."""
    time_steps = torch.randint(len(alphas), (len(clean),), generator=rng)
    noise = torch.randn(clean.shape, generator=rng)
    share = alphas[time_steps].view(-1, 1, 1, 1)
    kept, lost = share.sqrt(), (1 - share).sqrt()
    told_of = both["text_encoder"](ids).last_hidden_state
    guess = both["unet"](kept * clean + lost * noise, time_steps, told_of).sample
    loss: Tensor = (guess - (kept * noise - lost * clean)).square().mean()
    return loss


def train(args: argparse.Namespace) -> tuple[Any, nn.ModuleDict]:
    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed + 1)
    latents, captions = examples(args.data)
    words = tokenizer_of([text for name, keywords in captions for text in (name, *keywords)])
    text, denoiser = build(words)
    both = nn.ModuleDict({"text_encoder": text, "unet": denoiser})
    moving: Any = get_ema_multi_avg_fn(AVERAGED)  # type: ignore[no-untyped-call]
    average: Any = AveragedModel(both, multi_avg_fn=moving)
    print(
        f"{len(captions)} pictures, {len(words)} tokens, "
        f"{sum(map(Tensor.numel, both.parameters())):,} parameters"
    )
    optimizer = torch.optim.AdamW(
        both.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99)
    )
    parts: dict[str, Any] = {"both": both, "average": average, "optimizer": optimizer}
    first = restored(args.checkpoint, parts, rng) if args.checkpoint.exists() else 0
    alphas = scheduler().alphas_cumprod
    began, seen = time.monotonic(), 0.0
    for step in range(first, args.until or args.steps):
        warm, fallen = min(1, (step + 1) / 100), 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm * fallen
        pick = torch.randint(len(latents), (args.batch,), generator=rng)
        said = [told(captions[k], rng) for k in pick.tolist()]
        ids = words(said, padding="max_length", truncation=True)["input_ids"]
        loss = denoising_loss(both, latents[pick], torch.tensor(ids), alphas, rng)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(both)
        seen += loss.item()
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1}/{args.steps} loss {seen / 50:.4f} {time.monotonic() - began:.0f} "
                "s",
                flush=True,
            )
            seen = 0.0
        if (step + 1) % args.save_every == 0:
            keep(args.checkpoint, parts, step + 1, rng)
    return words, average.module


def save(words: Any, both: nn.ModuleDict, out: Path) -> None:
    """Folders as `diffusers` has them, weights in float16; the text encoder's configuration asks
    for float32."""
    models: dict[str, Any] = dict(both.items())
    models["text_encoder"].config.dtype = torch.float32
    for name, model in models.items():
        model.save_pretrained(out / name)
        file = next((out / name).glob("*.safetensors"))
        save_file(
            {n: x.half().contiguous() for n, x in load_file(file).items()}, file, {"format": "pt"}
        )
        print(f"{file}: {file.stat().st_size:,} bytes")
    words.save_pretrained(out / "tokenizer")
    scheduler().save_pretrained(out / "scheduler")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("studies/weights/emoji-diffusion"))
    parser.add_argument("--checkpoint", type=Path, default=Path("emoji-diffusion.pt"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--until", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=200)
    args = parser.parse_args()
    words, both = train(args)
    save(words, both, args.out)


if __name__ == "__main__":
    main()
