"""Pre-train the micro vision transformer as a masked autoencoder (He et al., 2022,
arXiv:2111.06377).

    python -m tools.pretrain_mae --out studies/weights/micro-vit-mae

The same drawn letters as `tools/pretrain_micro_vit.py`, without their labels: the encoder sees a
quarter of the patches, a small decoder fills in the pixels of the others, each patch normalised.
What is saved is the encoder as the folder of an image classifier; its head is new whenever it is
used. Needs `torch transformers matplotlib pillow`; about five minutes on a core that is free.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.pretrain_micro_vit import SIDE, build, distort, glyphs, save

PATCH = 4
PATCHES = (SIDE // PATCH) ** 2
WIDTH = 64
"""Of the decoder."""


class Decoder(nn.Module):
    """Visible tokens (n, 1 + seen, hidden), mask tokens in the gaps, and out come pixels (n,
    PATCHES, PATCH²)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(hidden, WIDTH)
        self.gap = nn.Parameter(torch.randn(WIDTH) * 0.02)
        self.place = nn.Parameter(torch.randn(1 + PATCHES, WIDTH) * 0.02)
        self.block = nn.TransformerEncoderLayer(
            WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.pixels = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PATCH * PATCH))

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        x = self.narrow(tokens)
        seen = x.shape[1] - 1
        gaps = self.gap.expand(len(x), PATCHES - seen, WIDTH)
        patches = torch.cat([x[:, 1:], gaps], 1).gather(
            1, order.argsort(1)[..., None].expand(-1, -1, WIDTH)
        )
        x = self.block(torch.cat([x[:, :1], patches], 1) + self.place)
        pixels: Tensor = self.pixels(x[:, 1:])
        return pixels


def encode(vit: Any, pixels: Tensor, visible: Tensor) -> Tensor:
    """The class token and the visible patches (n, seen) through the encoder, (n, 1 + seen,
    hidden)."""
    embed = vit.embeddings
    x = embed.patch_embeddings(pixels) + embed.position_embeddings[:, 1:]
    x = x.gather(1, visible[..., None].expand(-1, -1, x.shape[2]))
    first = (embed.cls_token + embed.position_embeddings[:, :1]).expand(len(x), -1, -1)
    x = torch.cat([first, x], 1)
    for layer in vit.layers:
        x = layer(x)
    encoded: Tensor = vit.layernorm(x)
    return encoded


def targets(pixels: Tensor) -> Tensor:
    """Each patch's pixels with mean 0 and variance 1, (n, PATCHES, PATCH²)."""
    patches = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(4).flatten(2, 3)[:, 0]
    return (patches - patches.mean(-1, keepdim=True)) / (
        patches.var(-1, keepdim=True) + 1e-2
    ).sqrt()


def train(args: argparse.Namespace) -> Any:
    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed + 1)
    x, _ = glyphs()
    model: Any = build()
    decoder = Decoder(model.config.hidden_size)
    trained = [*model.vit.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.05, betas=(0.9, 0.95))
    seen, began = round(PATCHES * (1 - args.masked)), time.monotonic()
    for step in range(args.steps):
        rate = (
            args.lr * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        pick = torch.randint(len(x), (args.batch,), generator=rng)
        pixels = (distort(x[pick], rng) - 0.5) / 0.5
        order = torch.rand(args.batch, PATCHES, generator=rng).argsort(1)
        guessed = decoder(encode(model.vit, pixels, order[:, :seen]), order)
        error = (guessed - targets(pixels)).square().mean(-1).gather(1, order[:, seen:])
        loss = error.mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(
                f"step {step + 1}/{args.steps} loss {loss.item():.3f} "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("studies/weights/micro-vit-mae"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--masked", type=float, default=0.75)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    save(train(args), args.out)


if __name__ == "__main__":
    main()
