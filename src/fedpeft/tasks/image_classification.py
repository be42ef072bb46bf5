"""Image classification with any `transformers` backbone. Pictures are uint8 tensors; what is done to them is batched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, pad

from fedpeft.core.types import Batch, Table, Tensors
from fedpeft.tasks.pretrained import ImageInput, classifier, image_input, resize_positions


@dataclass(frozen=True)
class ImageClassification:
    """Cross entropy over the classes; random crop and mirror image where asked for.

    Attributes:
      model: "micro-vit" (ships with the package), a folder or a hub name.
      size: pixels a side that the model sees; 0 for what it was trained with. Position embeddings are resized.
      crop: pixels of padding, at the size of the model's input, for a random crop.
      flip: whether pictures are mirrored at random.
      mean, std: of the normalisation, one value or one a channel; empty for the model's own.

    Raises:
      ValueError: a value out of range.
    """

    model: str = "micro-vit"
    size: int = 0
    crop: int = 0
    flip: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 0 or self.crop < 0:
            raise ValueError(f"size and crop are pixels and must not be negative, got {self.size} and {self.crop}")

    @property
    def input(self) -> ImageInput:
        """What the model sees."""
        own = image_input(self.model)
        return ImageInput(self.size or own.size, own.channels, self.mean or own.mean, self.std or own.std)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        from transformers import AutoModelForImageClassification

        model = classifier(AutoModelForImageClassification, self.model, classes, pretrained)
        config: Any = model.config
        if self.size and self.size != getattr(config, "image_size", self.size):
            resize_positions(model, config, self.size)
        return model

    def prepare(self, table: Table) -> Tensors:
        """`image` as uint8 (n, channels, height, width), and `label`.

        Pictures of one size that are not larger than the input are kept as they are and enlarged batch by batch.
        """
        image = table.columns["image"]
        if not isinstance(image, Tensor):
            image = self._decoded(image)
        channels = self.input.channels
        if image.shape[1] != channels:
            image = image.float().mean(1, keepdim=True).round().to(torch.uint8) if channels == 1 else image
            image = image.expand(-1, channels, -1, -1) if image.shape[1] == 1 else image[:, :channels]
        return {"image": image, "label": table.columns["label"]}

    def _decoded(self, pictures: Sequence[Any]) -> Tensor:
        import numpy as np
        from PIL import Image

        side, mode = self.input.size, "L" if self.input.channels == 1 else "RGB"
        first = pictures[0].size
        keep = max(first) <= side and first[0] == first[1]
        arrays = []
        for picture in pictures:
            if not keep or picture.size != first:
                picture = picture.convert(mode).resize(first if keep else (side, side), Image.Resampling.BICUBIC)
            arrays.append(np.asarray(picture.convert(mode)).reshape(picture.size[1], picture.size[0], -1))
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        see = self.input
        x = rows["image"].float() / 255
        if x.shape[-2:] != (see.size, see.size):
            x = interpolate(x, (see.size, see.size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        x = (x - torch.tensor(see.mean).view(-1, 1, 1)) / torch.tensor(see.std).view(-1, 1, 1)
        if generator is not None:
            x = _cropped(x, self.crop, generator) if self.crop else x
            x = _mirrored(x, generator) if self.flip else x
        return {"pixel_values": x, "label": rows["label"]}

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(pixel_values=batch["pixel_values"]).logits
        return cross_entropy(logits, batch["label"], reduction="none")

    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        logits = model(pixel_values=batch["pixel_values"]).logits
        return {
            "accuracy": (logits.argmax(-1) == batch["label"]).float(),
            "loss": cross_entropy(logits, batch["label"], reduction="none"),
        }


def _cropped(x: Tensor, by: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros (the mean colour) and cut out the old size at a place of its own for each picture."""
    n, _, height, width = x.shape
    x = pad(x, [by] * 4)
    top, left = torch.randint(0, 2 * by + 1, (2, n, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)  # (n, height), (n, width)
    picture = torch.arange(n)[:, None, None]
    return x.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    chosen = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], x.flip(-1), x)
