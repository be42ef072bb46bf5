"""The parts of a diffusion model as `diffusers` saves it: a folder or a hub name with `unet`,
`vae`, `text_encoder`, `tokenizer` and `scheduler`. Only safetensors are read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedpeft.compute.feature_cache import folder
from fedpeft.errors import PlanError, RunError, explain_install
from fedpeft.storage.files import dump_tensors, load_tensors
from fedpeft.storage.hub import spare_lookups
from fedpeft.storage.locate import locate
from fedpeft.tasks.pretrained import NO_CODE, quiet
from fedpeft.tasks.taef2 import Taef2

Loaded = TypeVar("Loaded")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
READ_TOGETHER = 64
"""Captions that go through the text encoder at once."""
PIXELS = 2**18
"""Of the pictures that go through the autoencoder at once."""


def denoiser(model: str, pretrained: bool = True) -> Any:
    """The `UNet2DConditionModel` in float32; with `pretrained = false` from torch's default
    generator.

    Raises:
      PlanError: see `denoiser_config`.
    """
    unet: Any = library().UNet2DConditionModel
    if not pretrained:
        return unet.from_config(denoiser_config(model))
    return _part(
        model, "unet", lambda place: unet.from_pretrained(place, subfolder="unet", **_FLOAT32)
    )


@cache
def denoiser_config(model: str) -> dict[str, Any]:
    """The denoiser's settings.

    Raises:
      PlanError: there is none, or it must be told more than a time and a caption.
    """
    unet: Any = library().UNet2DConditionModel
    config: dict[str, Any] = _part(
        model, "unet", lambda place: unet.load_config(place, subfolder="unet")
    )
    for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if config.get(key) is not None:
            raise PlanError(
                f"the denoiser of {model!r} must be told more than a caption ({key} = "
                f"{config[key]!r}, as that of SDXL): this task takes those of Stable Diffusion 1 "
                "and 2"
            )
    return config


@dataclass(frozen=True)
class Noising:
    """How pictures become noise: x_t = √ᾱ_t·x + √(1 − ᾱ_t)·ε, and what of it the denoiser is to
    tell.

    Attributes:
      alphas: ᾱ, (times,).
      tells: "epsilon" for ε, "sample" for x, "v_prediction" for √ᾱ_t·ε − √(1 − ᾱ_t)·x
        (arXiv:2202.00512).
    """

    alphas: Tensor
    tells: str

    def __call__(self, x: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents and what is to be told of them, as `noise` (..., c, h, w); `time` is
        (...)."""
        kept, lost = (
            a.sqrt()[..., None, None, None] for a in (self.alphas[time], 1 - self.alphas[time])
        )
        told = {
            "epsilon": noise,
            "sample": x.expand_as(noise),
            "v_prediction": kept * noise - lost * x,
        }
        return kept * x + lost * noise, told[self.tells]


def scheduler_config(model: str) -> dict[str, Any]:
    """The settings of the scheduler.

    Raises:
      PlanError: there is none, or it is not one of noise that is added by a schedule of betas.
    """
    reader: Any = library().DDPMScheduler
    config: dict[str, Any] = _part(
        model, "scheduler", lambda place: reader.load_config(place, subfolder="scheduler")
    )
    tells = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or tells not in PREDICTIONS:
        raise PlanError(
            f"the scheduler of {model!r} ({config.get('_class_name')}, prediction_type = "
            f"{tells!r}) adds no noise by a schedule of betas, as flow matching does not: "
            "this task takes models such as Stable Diffusion 1 and 2"
        )
    return config


@cache
def read_schedule(model: str) -> Noising:
    """The schedule that the model was trained with."""
    config = scheduler_config(model)
    made: Any = library().DDPMScheduler.from_config(config)
    return Noising(made.alphas_cumprod, config.get("prediction_type", "epsilon"))


class PictureAutoencoder(nn.Module):
    """An autoencoder of `diffusers` as one from pictures in [0, 1] to what the denoiser sees, and
    back."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        self.channels = int(module.config.latent_channels)
        self.factor = int(2 ** (len(module.config.block_out_channels) - 1))
        self.scale = float(module.config.scaling_factor)

    def encode(self, pictures: Tensor) -> Tensor:
        """The middle of what the encoder gives, which is drawn from nowhere."""
        out = self.module.encode(2 * pictures - 1)
        latents: Tensor = out.latents if hasattr(out, "latents") else out.latent_dist.mode()
        return latents * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        pictures: Tensor = self.module.decode(latents / self.scale).sample
        return (pictures / 2 + 0.5).clamp(0, 1)


def autoencoder(model: str, vae: str) -> PictureAutoencoder | Taef2:
    """The model's own, or the one in the folder `vae`: of `diffusers`, or TAEF2.

    Raises:
      PlanError: there is none.
    """
    place = locate(vae) if vae else None
    if place and (place / "encoder.safetensors").is_file():
        try:
            return Taef2.load(place)
        except (OSError, RuntimeError, RunError) as error:
            raise PlanError(f"vae = {vae!r} is no TAEF2: {str(error).splitlines()[0]}") from None
    auto: Any = library().AutoModel
    where = {} if vae else {"subfolder": "vae"}
    made: Any = _part(
        vae or model,
        "vae",
        lambda place: auto.from_pretrained(place, **where, **_FLOAT32, **NO_CODE),
    )
    return PictureAutoencoder(made.requires_grad_(False).eval())


def caption_tokenizer(model: str) -> Any:
    """What makes tokens of captions.

    Raises:
      PlanError: there is none.
    """
    from transformers import CLIPTokenizer

    return _part(
        model,
        "tokenizer",
        lambda place: CLIPTokenizer.from_pretrained(place, subfolder="tokenizer", **NO_CODE),
    )


def text_encoder(model: str) -> Any:
    """The encoder of captions, in float32.

    Raises:
      PlanError: there is none.
    """
    from transformers import CLIPTextModel

    settings = {"subfolder": "text_encoder", "dtype": torch.float32, "use_safetensors": True}
    made: Any = _part(
        model,
        "text_encoder",
        lambda place: CLIPTextModel.from_pretrained(place, **settings, **NO_CODE),
    )
    return made.eval()


def read_captions(model: str, texts: Sequence[str]) -> Tensor:
    """What the text encoder makes of captions, (n, tokens, width); what does not fit is cut off."""
    words, encoder = caption_tokenizer(model), text_encoder(model)
    ids = words(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return torch.cat([encoder(part)[0] for part in ids.split(READ_TOGETHER)])


def latents_of(pictures: Sequence[Any], size: int, module: PictureAutoencoder | Taef2) -> Tensor:
    """Latents (n, c, h, w) of pictures, cut to a square and scaled to `size` a side; kept in files.

    A file is named after the pixels, the autoencoder's weights and what computes; it may be deleted
    any time.
    """
    base = blake2b(
        f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}".encode(), digest_size=16
    )
    base.update(f"{torch.get_num_threads()} {getattr(module, 'module', module)}".encode())
    for x in module.state_dict().values():
        base.update(x.contiguous().view(-1).view(torch.uint8).numpy().data)
    place = folder().with_name("latents")
    made = []
    for part in squares(pictures, size):
        name = base.copy()
        name.update(part.numpy().data)
        made.append(_kept(place / f"{name.hexdigest()}.safetensors", module, part))
    return torch.cat(made)


def squares(pictures: Sequence[Any], size: int) -> Iterator[Tensor]:
    """Some pictures at a time, uint8 (few, 3, size, size)."""
    import numpy as np
    from PIL import Image, ImageOps

    few = max(1, PIXELS // size**2)
    for at in range(0, len(pictures), few):
        chosen = (pictures[k] for k in range(at, min(at + few, len(pictures))))
        square = [
            ImageOps.fit(one.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
            for one in chosen
        ]
        yield (
            torch.from_numpy(np.stack([np.asarray(one) for one in square]))
            .permute(0, 3, 1, 2)
            .contiguous()
        )


def _kept(file: Path, module: Any, part: Tensor) -> Tensor:
    try:
        return load_tensors(file)[0]["latent"]
    except (OSError, RunError, KeyError):
        with torch.no_grad():
            # As from the file: a convolution's last bits depend on how rows lie.
            made: Tensor = module.encode(part.float() / 255).contiguous()
        with suppress(OSError):  # a full disk costs time and nothing else
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            dump_tensors(file, {"latent": made}, {})
        return made


_FLOAT32 = {"torch_dtype": torch.float32, "use_safetensors": True}


def library() -> Any:
    """`diffusers`, which only this task needs.

    Raises:
      PlanError: it is not installed.
    """
    try:
        import diffusers
    except ImportError:
        raise PlanError(
            f"the task text-to-image needs diffusers: {explain_install('diffusion')}"
        ) from None
    return diffusers


def _part(model: str, name: str, load: Callable[[str], Loaded]) -> Loaded:
    """A part of the model.

    Raises:
      PlanError: it cannot be read.
    """
    try:
        with quiet():
            if (found := locate(model)) is None:
                spare_lookups()
            return load(str(found or model))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise PlanError(
            f"{model!r} has no {name} that can be read; a diffusion model is a folder (looked for "
            "here, in $FEDPEFT_DATA and in the package) or a hub name with unet, vae, "
            f"text_encoder, tokenizer and scheduler, as diffusers saves them: {first}"
        ) from None
