"""What pictures an image model sees, as its processor says it, and how others become such."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from fedpeft.errors import DataError, reason_of
from fedpeft.storage.locate import locate
from fedpeft.tasks.pretrained import NO_CODE, config_of

BICUBIC = 3
"""Filters are counted as Pillow does."""
SIDES = ("image_size", "crop_size")
"""What configurations call the size of pictures; the second is V-JEPA 2's."""
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
FILTERS: Mapping[str, int] = MappingProxyType(
    {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
)
TORCH_FILTERS: Mapping[int, Mapping[str, Any]] = MappingProxyType(
    {
        0: {"mode": "nearest-exact"},
        2: {"mode": "bilinear", "align_corners": False, "antialias": True},
        3: {"mode": "bicubic", "align_corners": False, "antialias": True},
    }
)
WARPED_FROM = 384
"""Pixels a side from which ConvNeXt's processor, and timm's rule behind it, cuts nothing off."""
LEVIT = 256 / 224
"""LeViT's processor enlarges by this before it cuts; none of its attributes says so."""
NARROW = 16
"""How many times the shorter side the longer one may be; what lies beyond is cut off before a
picture is enlarged, since only its middle is seen, and a line of pixels would fill the memory."""
FAR = 0.1
"""Deviations of a channel by which a model's own processor may differ from what is made here, in
the mean over the pixels of a picture of noise, before the log tells it."""


@dataclass(frozen=True)
class ImageInput:
    """What an image model sees: pixels, channels, and the normalisation of pixels in [0, 1]; and
    how a picture becomes that: it is brought to another size, and its middle is cut out.

    Attributes:
      height, width: pixels of what the model sees.
      reversed: whether blue comes first and red last (MobileViT).
      resized: height and width that a picture is brought to; empty for those that the model sees.
      keeps_shape: whether a picture keeps its shape, so that only the shorter of its sides gets the
        pixels that `resized` says.
      resample: the filter, in Pillow's counting.
      of_clips: whether it is a frame of those that a model sees together.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reversed: bool = False
    resized: tuple[int, ...] = ()
    keeps_shape: bool = False
    resample: int = BICUBIC
    of_clips: bool = False

    @property
    def plain(self) -> bool:
        """Whether a picture of the right size is left as it is."""
        return self.resized in ((), (self.height, self.width))

    def scaled(self, height: int, width: int) -> "ImageInput":
        """The same for another size; as much is cut off, in proportion."""
        if (height, width) == (self.height, self.width):
            return self
        by = height / self.height, width / self.width
        if self.keeps_shape:  # the sides of `resized` stay equal
            by = (max(by),) * 2
        sides = tuple(round(side * more) for side, more in zip(self.resized, by, strict=False))
        return replace(self, height=height, width=width, resized=sides)

    def enlarged(self, height: int, width: int) -> tuple[int, int]:
        """The size to which a picture of a size is brought before its middle is cut out."""
        tall, wide = self.resized or (self.height, self.width)
        if not self.keeps_shape:
            return tall, wide
        if width <= height:
            return int(tall * height / width), tall
        return tall, int(tall * width / height)

    def reach(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The part of a picture of a size that is enlarged: its left, upper, right and lower
        end."""
        most = NARROW * min(height, width) if self.keeps_shape else max(height, width)
        tall, wide = min(height, most), min(width, most)
        left, top = (width - wide) // 2, (height - tall) // 2
        return left, top, left + wide, top + tall

    def fit(self, picture: Any) -> Any:
        """The same of a PIL picture. Where there is nothing to cut out of, there is black."""
        part = self.reach(picture.height, picture.width)
        if part != (0, 0, picture.width, picture.height):
            picture = picture.crop(part)
        tall, wide = self.enlarged(picture.height, picture.width)
        if (tall, wide) != (picture.height, picture.width):
            picture = picture.resize((wide, tall), self.resample)
        if (tall, wide) == (self.height, self.width):
            return picture
        top, left = (tall - self.height) // 2, (wide - self.width) // 2
        return picture.crop((left, top, left + self.width, top + self.height))

    def fit_tensor(self, x: Tensor) -> Tensor:
        """The same of pictures in [0, 1], shape (n, channels, height, width), which stay on their
        device. Filters that torch lacks are replaced by the bicubic one."""
        left, top, right, below = self.reach(*x.shape[-2:])
        x = x[..., top:below, left:right]
        size = self.enlarged(*x.shape[-2:])
        if size != tuple(x.shape[-2:]):
            how = TORCH_FILTERS.get(self.resample, TORCH_FILTERS[BICUBIC])
            x = interpolate(x, size, **how).clamp(0, 1)
        top, left = (size[0] - self.height) // 2, (size[1] - self.width) // 2
        if top == left == 0 and size == (self.height, self.width):
            return x
        below, right = size[0] - top - self.height, size[1] - left - self.width
        # what is negative is cut off, what is positive is put there
        return pad(x, (-left, -right, -top, -below))

    def normalised(self, x: Tensor) -> Tensor:
        """Pictures in [0, 1] as numbers for the model."""
        mean, std = (
            torch.tensor(values, device=x.device).view(-1, 1, 1) for values in (self.mean, self.std)
        )
        x = (x - mean) / std
        return x.flip(1) if self.reversed else x


@cache
def image_input(name: str) -> ImageInput:
    """What the image model `name` expects, as its processor says, and its configuration where the
    processor's file leaves the size out; 0.5 / 0.5 and 224 pixels where neither says anything."""
    from transformers import AutoImageProcessor

    config = config_of(name)
    seen = getattr(config, "vision_config", config)  # CLIP's keys are a level deeper
    channels = int(getattr(seen, "num_channels", 3))
    own = side_key(seen)[1]
    place = str(locate(name) or name)
    try:
        processor = AutoImageProcessor.from_pretrained(place, **NO_CODE)
        told = type(processor).get_image_processor_dict(place, **NO_CODE)[0]
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        if any((Path(place) / file).exists() for file in PROCESSOR_FILES):
            getLogger("fedpeft").warning(
                "%s has a processor that cannot be read here: a mean and deviation of 0.5 are "
                "taken; task.mean and task.std set others (%s)", name, reason_of(error),
            )  # fmt: skip
        return ImageInput(*(own or (224, 224)), channels, (0.5,), (0.5,))
    mean, std = _normalisation(processor)
    see = ImageInput(
        *_geometry(processor, own),
        channels,
        mean[:channels],
        std[:channels],
        bool(getattr(processor, "do_flip_channel_order", False)),
    )
    see = replace(see, **_resizing(processor, see), resample=_filter(processor))
    if own and not ({"size", "crop_size"} & told.keys()):  # the size is its class's, no model's
        see = see.scaled(*own)
    else:
        _tell_difference(processor, see, name)
    return see


def side_key(config: Any) -> tuple[str, tuple[int, int] | None]:
    """What a configuration calls the size of pictures, and that size; None where it has none."""
    found = ((key, sides(getattr(config, key, None))) for key in SIDES)
    return next((one for one in found if one[1]), (SIDES[0], None))


def sides(size: Any) -> tuple[int, int] | None:
    """Height and width of what a configuration says; None where it says nothing."""
    if not size:
        return None
    if isinstance(size, int):
        return size, size
    every = [int(one) for one in size]
    return every[0], every[-1]


def _sides_of(size: Any) -> tuple[int, int] | None:
    """Height and width that a processor's `size` or `crop_size` says."""
    if isinstance(size, int):
        return size, size
    told = size if isinstance(size, Mapping) else vars(size) if hasattr(size, "__dict__") else {}
    if told.get("height") and told.get("width"):
        return int(told["height"]), int(told["width"])
    return None


def _shortest(size: Any) -> int:
    told = size if isinstance(size, Mapping) else vars(size) if hasattr(size, "__dict__") else {}
    return int(told.get("shortest_edge") or 0)


def _geometry(processor: Any, own: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of what a processor makes of a square."""
    size = getattr(processor, "size", None)
    cut = getattr(processor, "do_center_crop", False)
    crop = _sides_of(getattr(processor, "crop_size", None)) if cut else None
    if not getattr(processor, "do_resize", True):
        return crop or own or (224, 224)
    short = _shortest(size)
    return crop or _sides_of(size) or ((short, short) if short else None) or own or (224, 224)


def _resizing(processor: Any, see: ImageInput) -> dict[str, Any]:
    """What a picture is brought to before its middle is cut out."""
    if not getattr(processor, "do_resize", True):
        return {}
    size, share = getattr(processor, "size", None), getattr(processor, "crop_pct", None)
    short, both = _shortest(size), _sides_of(size)
    if share and getattr(processor, "do_center_crop", False):
        short, both = _before_cut(share, short, both)
    elif share and short:
        if short >= WARPED_FROM:
            return {"resized": (short, short)}
        short = int(short / share)
    elif type(processor).__name__.startswith("Levit"):
        short = int(LEVIT * short)
    if short:
        return {"resized": (short, short), "keeps_shape": True}
    return {} if both in (None, (see.height, see.width)) else {"resized": both}


def _before_cut(
    share: float, short: int, both: tuple[int, int] | None
) -> tuple[int, tuple[int, int] | None]:
    """The shorter side, or both, of which a cut leaves the share; PoolFormer's takes equal sides
    for the shorter one."""
    tall, wide = both or (short, short)
    if tall == wide:
        return int(tall / share), None
    return 0, (int(tall / share), int(wide / share))


def _filter(processor: Any) -> int:
    """The filter of a processor, which some versions give by number, and some by name."""
    how = getattr(processor, "resample", None)
    how = getattr(how, "value", how)
    if isinstance(how, str):
        return FILTERS.get(how.removesuffix("-exact"), BICUBIC)
    return FILTERS["bilinear"] if how is None else int(how)


def _normalisation(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels from 0 to 1, whatever numbers the processor makes of them
    first."""
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if not getattr(processor, "do_normalize", True) or mean is None or std is None:
        mean, std = (0.0,), (1.0,)
    elif getattr(processor, "include_top", False):  # EfficientNet's divides by it twice
        std = tuple(x * x for x in std)
    by, less = _scale(processor)
    return tuple((x + less) / by for x in mean), tuple(x / by for x in std)


def _scale(processor: Any) -> tuple[float, float]:
    """What a processor makes of a white pixel, and what it takes from all of them then."""
    if not getattr(processor, "do_rescale", True):
        return 255.0, 0.0
    factor = getattr(processor, "rescale_factor", None) or 1 / 255
    # ViViT's calls it otherwise
    less = getattr(processor, "rescale_offset", False) or getattr(processor, "offset", False)
    return 255 * factor, 1.0 if less else 0.0


def _tell_difference(processor: Any, see: ImageInput, name: str) -> None:
    """Compare with the processor on one picture: some have code of their own that no attribute
    tells of."""
    from PIL import Image

    if see.channels != 3 or not getattr(processor, "do_resize", True):
        return
    draws = torch.Generator().manual_seed(1)
    size = 2 * see.height + 9, 2 * see.width + 9
    noise = torch.randint(0, 256, (size[0] // 8, size[1] // 8, 3), generator=draws)
    picture = Image.fromarray(noise.byte().numpy()).resize((size[1], size[0]))
    try:
        theirs = processor(picture, return_tensors="pt")["pixel_values"]
    except Exception as error:  # foreign code; what it cannot do, its user sees elsewhere
        getLogger("fedpeft").warning("the processor of %r cannot be compared: %s", name, error)
        return
    theirs = theirs.flatten(0, theirs.ndim - 4)  # those of videos make a clip of it
    ours = see.normalised(_as_tensor(see.fit(picture)))
    if theirs.shape != ours.shape:
        what = f"pixels of shape {list(theirs.shape[1:])}, here they are {list(ours.shape[1:])}"
    elif (far := float((theirs - ours).abs().mean())) > FAR:
        what = f"other pixels, on average by {far:.2g}"
    else:
        return
    getLogger("fedpeft").warning(
        "the processor of %r makes %s: it does what none of its keys says", name, what
    )


def _as_tensor(picture: Any) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def with_channels(image: Tensor, channels: int) -> Tensor:
    """Grey for a model of one channel, grey repeated or what is beyond colour (opacity) dropped for
    one of more.

    Args:
      image: uint8 (n, channels, height, width).

    Raises:
      DataError: neither makes so many channels.
    """
    has = image.shape[1]
    if channels == has:
        return image
    colours = image[:, : has - 1] if has in (2, 4) else image
    if channels == 1:
        return colours.float().mean(1, keepdim=True).round().to(torch.uint8)
    if colours.shape[1] in (1, channels):
        return colours.expand(-1, channels, -1, -1)
    raise DataError(f"the pictures have {has} channels, the model takes {channels}")
