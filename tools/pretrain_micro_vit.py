"""Pre-train the micro vision transformer that ships with the package.

    python tools/pretrain_micro_vit.py --out src/fedpeft/assets/micro-vit

The classes are printed letters and symbols in the fonts that come with matplotlib, and no digits:
what is learned later (handwritten digits) differs in labels and in domain. Glyphs are drawn once,
then warped, blurred and made noisy in batches. Needs `torch transformers matplotlib pillow`; about
20 minutes on two cores. A kill loses at most `--save-every` steps: the same command goes on from
`--checkpoint`.
"""

import argparse
import math
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, avg_pool2d, cross_entropy, grid_sample, interpolate
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

CHARACTERS = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    "!#$%&()*+/<=>?@[]{}~^αβγδεθλμπφψωΓΔΘΛΞΠΣΦΨΩ"
)
FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
CANVAS = 48  # pixels a side of a drawn glyph
SIDE = 24  # pixels a side of the model's input


def draw(character: str, font: Path) -> np.ndarray | None:
    """The glyph, white on black, scaled to two thirds of a (CANVAS, CANVAS) uint8 canvas; None if
    the font lacks it."""
    face = ImageFont.truetype(str(font), 64)
    box = face.getbbox(character)
    if face.getmask(character).getbbox() is None or bytes(face.getmask(character)) == bytes(
        face.getmask("\ufffe")
    ):
        return None
    image = Image.new("L", (int(box[2] - box[0]), int(box[3] - box[1])))
    ImageDraw.Draw(image).text((-box[0], -box[1]), character, fill=255, font=face)
    scale = CANVAS * 2 / 3 / max(image.size)
    image = image.resize(
        [max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR
    )
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(image, ((CANVAS - image.width) // 2, (CANVAS - image.height) // 2))
    return np.asarray(canvas)


def glyphs() -> tuple[Tensor, Tensor]:
    """All glyphs in all fonts: images (n, 1, CANVAS, CANVAS) in [0, 1] and labels (n,)."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = sorted(
        f for f in folder.glob("*.ttf") if f.stem.startswith(FONTS) and "Display" not in f.stem
    )
    drawn = [(draw(c, font), k) for k, c in enumerate(CHARACTERS) for font in fonts]
    images = [(image, label) for image, label in drawn if image is not None]
    print(f"{len(CHARACTERS)} classes, {len(fonts)} fonts, {len(images)} glyphs")
    x = torch.from_numpy(np.stack([image for image, _ in images]))[:, None].float() / 255
    return x, torch.tensor([label for _, label in images])


def distort(x: Tensor, rng: torch.Generator) -> Tensor:
    """Random affine and bend, stroke contrast, resolution loss, noise; (n, 1, CANVAS, CANVAS) ->
    (n, 1, SIDE, SIDE)."""
    n = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=rng) * (high - low) + low

    angle, shear = uniform(-0.35, 0.35), uniform(-0.4, 0.4)
    sx, sy = uniform(0.65, 1.25), uniform(0.65, 1.1)
    rows = [
        torch.stack([angle.cos() * sx, (shear - angle.sin()) * sx, uniform(-0.12, 0.12)], 1),
        torch.stack([angle.sin() * sy, angle.cos() * sy, uniform(-0.12, 0.12)], 1),
    ]
    grid = affine_grid(torch.stack(rows, 1), [n, 1, SIDE * 2, SIDE * 2], align_corners=False)
    bend = torch.randn(n, 2, 4, 4, generator=rng) * 0.07
    grid = grid + interpolate(bend, SIDE * 2, mode="bicubic", align_corners=False).permute(
        0, 2, 3, 1
    )
    x = grid_sample(x, grid, align_corners=False)
    side = int(torch.randint(7, SIDE + 1, (1,), generator=rng))  # one resolution for the batch
    x = interpolate(avg_pool2d(x, 2), side, mode="area")
    x = interpolate(x, SIDE, mode="bilinear", align_corners=False)
    x = (x * uniform(0.7, 2.2, 1, 1, 1)).clamp(0, 1)
    return (x + torch.randn(x.shape, generator=rng) * uniform(0, 0.12, 1, 1, 1)).clamp(0, 1)


def build() -> ViTForImageClassification:
    names = dict(enumerate(CHARACTERS))
    return ViTForImageClassification(
        ViTConfig(
            image_size=SIDE,
            patch_size=4,
            num_channels=1,
            hidden_size=128,
            num_hidden_layers=5,
            num_attention_heads=4,
            intermediate_size=512,
            id2label=names,
            label2id={name: k for k, name in names.items()},
        )
    )


def keep(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rng: torch.Generator, step: int
) -> None:
    part = path.with_suffix(".part")
    whole = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": rng.get_state(),
        "step": step,
    }
    torch.save(whole, part)
    part.rename(path)


def train(args: argparse.Namespace) -> ViTForImageClassification:
    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed + 1)
    x, y = glyphs()
    model = build()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, weight_decay=0.05, betas=(0.9, 0.98)
    )
    first = 0
    if args.checkpoint.exists():
        kept = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        rng.set_state(kept["rng"])
        first = kept["step"]
    began, right, seen = time.monotonic(), 0, 0
    for step in range(first, args.steps):
        rate = (
            args.lr * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        pick = torch.randint(len(x), (args.batch,), generator=rng)
        batch = (distort(x[pick], rng) - 0.5) / 0.5
        logits = model(pixel_values=batch).logits
        loss = cross_entropy(logits, y[pick], label_smoothing=0.1)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        right, seen = right + int((logits.argmax(1) == y[pick]).sum()), seen + args.batch
        if (step + 1) % 100 == 0:
            spent = time.monotonic() - began
            told = f"loss {loss.item():.3f} accuracy {right / seen:.3f} {spent:.0f} s"
            print(f"step {step + 1}/{args.steps} {told}", flush=True)
            right = seen = 0
        if (step + 1) % args.save_every == 0:
            keep(args.checkpoint, model, optimizer, rng, step + 1)
    return model


def save(model: ViTForImageClassification, out: Path) -> None:
    """A transformers folder, weights in float16; the config asks for float32 on loading."""
    out.mkdir(parents=True, exist_ok=True)
    model.config.dtype = torch.float32
    model.save_pretrained(out)
    file = out / "model.safetensors"
    save_file(
        {n: t.half().contiguous() for n, t in load_file(file).items()},
        file,
        metadata={"format": "pt"},
    )
    half = [0.5]
    ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        resample=2,
        do_convert_rgb=False,
        image_mean=half,
        image_std=half,
    ).save_pretrained(out)
    print(f"{file}: {file.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("src/fedpeft/assets/micro-vit"))
    parser.add_argument("--checkpoint", type=Path, default=Path("micro-vit.pt"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500)
    args = parser.parse_args()
    save(train(args), args.out)


if __name__ == "__main__":
    main()
