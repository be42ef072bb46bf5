"""Image classification with any `transformers` backbone. Pictures are uint8 tensors; they are
changed by the batch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import LOGITS, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors, Weighted
from fedpeft.errors import DataError
from fedpeft.registry import unwritten
from fedpeft.tasks import scoring
from fedpeft.tasks.loader import IMAGES, Loader
from fedpeft.tasks.pixels import ImageInput, image_input, with_channels
from fedpeft.tasks.positions import fit_size
from fedpeft.tasks.pretrained import classifier
from fedpeft.tasks.targets import LEARNED, ONE, Target


@dataclass(frozen=True)
class ImageClassification:
    """Cross entropy over the classes, or what `problem_type` says; random crop and mirror image
    where asked for.

    Attributes:
      model: "micro-vit" (ships with the package), a folder or a hub name.
      size: pixels a side that the model sees; 0 for what it was trained with. Position embeddings
        are resized.
      crop: pixels of padding, at the size of the model's input, for a random crop.
      flip: whether pictures are mirrored at random.
      mean, std: of the normalisation, one value or one a channel; empty for the model's own.
      problem_type, labels, target: what is learned, as of the task `text-classification`.

    Raises:
      ValueError: a value out of range.
    """

    model: str = "micro-vit"
    size: int = 0
    crop: int = 0
    flip: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    problem_type: str = unwritten(ONE)
    labels: tuple[str, ...] = unwritten(())
    target: str = unwritten("label")

    def __post_init__(self) -> None:
        Target(self.problem_type, self.labels, self.target)
        if self.size < 0 or self.crop < 0:
            raise ValueError(
                f"size and crop are pixels and must not be negative, got {self.size} and "
                f"{self.crop}"
            )

    @property
    def learned(self) -> Target:
        """What is learned of a picture."""
        return Target(self.problem_type, self.labels, self.target)

    @property
    def offers(self) -> frozenset[Fact]:
        """No logits of classes where no class is learned."""
        return self.learned.offers

    @property
    def tells_classes(self) -> bool:
        """Whether classes are learned of which one is right."""
        return Fact.NO_LOGITS not in self.offers

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return self.learned.measures

    @property
    def loader(self) -> Loader:
        """How `transformers` loads the models."""
        return self.learned.loader(IMAGES)

    @property
    def input(self) -> ImageInput:
        """What the model sees."""
        own = image_input(self.model)
        if self.size:
            own = own.scaled(self.size, self.size)
        return replace(own, mean=self.mean or own.mean, std=self.std or own.std)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        from transformers import AutoModelForImageClassification

        names, problem = self.learned.names(classes), self.learned.configured
        model = classifier(AutoModelForImageClassification, self.model, names, pretrained, problem)
        fit_size(model, self.input)
        return model

    def prepare(self, table: Table) -> Tensors:
        """`image` as uint8 (n, channels, height, width), and `label` or `target`.

        Pictures of one size that are not larger than the input are kept as they are and enlarged
        batch by batch; all others are brought to the input's size here.

        Raises:
          DataError: there are no pictures, or one cannot be read.
        """
        image = scoring.column(table, "image", "image classification")
        ready = not isinstance(image, Tensor)
        if ready:
            image = self._decoded(image)
        if image.dtype != torch.uint8 or image.ndim != 4:
            raise DataError(
                "pictures are uint8 tensors of shape (n, channels, height, width), not "
                f"{str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}"
            )
        see = self.input
        if not (ready or see.plain) and image.shape[-2:] == (see.height, see.width):
            # The batch takes pictures of this size for ready ones.
            image = (see.fit_tensor(image.float() / 255) * 255).round().to(torch.uint8)
        wanted = self.learned.read(table, "image classification")
        return {"image": with_channels(image, self.input.channels), **wanted}

    def _decoded(self, pictures: Iterable[Any]) -> Tensor:
        import numpy as np

        see = self.input
        mode = "L" if see.channels == 1 else "RGB"
        kept = []
        for picture in pictures:
            plain = picture.convert(mode)
            kept.append(plain if self._waits(plain.height, plain.width) else see.fit(plain))
        wanted = (see.width, see.height)
        if len({picture.size for picture in kept}) > 1:
            kept = [picture if picture.size == wanted else see.fit(picture) for picture in kept]
        stacked = torch.from_numpy(np.stack([np.asarray(picture) for picture in kept]))
        return stacked[:, None] if mode == "L" else stacked.permute(0, 3, 1, 2).contiguous()

    def _waits(self, height: int, width: int) -> bool:
        """Whether a picture is kept as it is, and brought to the input's size with its batch."""
        see = self.input
        inside = height <= see.height and width <= see.width
        # Of the right size are those that are ready, so no other may be.
        return inside and (height, width) != (see.height, see.width)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        see = self.input
        x = rows["image"].float() / 255
        if x.shape[-2:] != (see.height, see.width):
            x = see.fit_tensor(x)
        x = see.normalised(x)
        if generator is not None:
            x = _crop(x, self.crop, generator) if self.crop else x
            x = _mirror(x, generator) if self.flip else x
        return {"pixel_values": x, **{n: rows[n] for n in LEARNED if n in rows}}

    def example(self) -> Batch:
        """One black picture."""
        see = self.input
        rows = {"image": torch.zeros(1, see.channels, see.height, see.width, dtype=torch.uint8)}
        return self.batch({**rows, **self.learned.empty()}, None)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            logits: Tensor = model(pixel_values=batch["pixel_values"]).logits
        return {LOGITS: logits, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return scoring.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
        return scoring.scores(outputs, batch)

    def conclude(self, sums: Mapping[str, Weighted]) -> dict[str, float]:
        """The metrics as numbers; see `scoring.derive_metrics`."""
        return scoring.derive_metrics(sums)


def _crop(x: Tensor, by: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros (the mean colour) and cut out the old size at a place of its own for each
    picture."""
    (n, _, height, width), device = x.shape, x.device
    x = pad(x, [by] * 4)
    top, left = torch.randint(0, 2 * by + 1, (2, n, 1), generator=generator).to(device)
    # (n, side).
    rows, columns = (
        top + torch.arange(height, device=device),
        left + torch.arange(width, device=device),
    )
    picture = torch.arange(n, device=device)[:, None, None]
    return x.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirror(x: Tensor, generator: torch.Generator) -> Tensor:
    chosen = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(chosen[:, None, None, None], x.flip(-1), x)
