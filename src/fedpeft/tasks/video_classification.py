"""Classification of clips, by a video model of `transformers` or by an image model whose logits are
averaged over frames."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedpeft.core.outputs import LOGITS, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors, Weighted
from fedpeft.tasks import scoring
from fedpeft.tasks.clip_models import build_clip_model, is_video_model, usual_frames
from fedpeft.tasks.frames import clips_of, frames_fitted
from fedpeft.tasks.loader import CLIPS, FRAMES, Loader
from fedpeft.tasks.pixels import ImageInput, image_input

AT_A_TIME = 16
"""Held-out clips that are measured together: a clip is as large as its frames are together."""


@dataclass(frozen=True)
class VideoClassification:
    """Cross entropy over the classes of clips.

    Models of `AutoModelForVideoClassification` (VideoMAE, ViViT, TimeSformer) see all frames
    together. Of any other image model the logits of the frames are averaged: it cannot tell their
    order.

    Attributes:
      model: a folder or a hub name; "micro-vit" ships with the package and takes images.
      frames: of a clip, evenly over its time; 0 for what the model was trained with, and 8 for an
        image model. A clip of fewer frames gives some of them several times.
      size: pixels a side that the model sees; 0 for what it was trained with.
      flip: whether clips are mirrored at random, all frames of a clip alike.
      mean, std: of the normalisation, one value or one a channel; empty for the model's own.

    Raises:
      ValueError: a value out of range.
    """

    model: str = "micro-vit"
    frames: int = 0
    size: int = 0
    flip: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.frames < 0 or self.size < 0:
            raise ValueError(
                f"frames and size must not be negative, got {self.frames} and {self.size}; 0 is "
                "for what the model was trained with"
            )

    @property
    def tells_classes(self) -> bool:
        """Classes are learned of which one is right."""
        return True

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return scoring.SCORES

    @property
    def loader(self) -> Loader:
        """How `transformers` loads the models."""
        return CLIPS if is_video_model(self.model) else FRAMES

    @property
    def seen_frames(self) -> int:
        """The number of frames that the model sees of a clip."""
        return self.frames or usual_frames(self.model)

    @property
    def input(self) -> ImageInput:
        """What the model sees of each frame."""
        own = image_input(self.model)
        if self.size:
            own = own.scaled(self.size, self.size)
        mean, std = self.mean or own.mean, self.std or own.std
        return replace(own, mean=mean, std=std, of_clips=is_video_model(self.model))

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        return build_clip_model(self.model, classes, pretrained, self.seen_frames, self.input)

    def prepare(self, table: Table) -> Tensors:
        """`video` as uint8 (n, frames, channels, height, width), at the size that the model sees,
        and `label`.

        Raises:
          DataError: there are no videos, or one cannot be read.
        """
        video = scoring.column(table, "video", "video classification")
        label = scoring.column(table, "label", "video classification")
        number, see = self.seen_frames, self.input
        found = (
            frames_fitted(video, number, see)
            if isinstance(video, Tensor)
            else (clips_of(video, number, see))
        )
        return {"video": found, "label": label}

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        x = rows["video"].float() / 255
        x = self.input.normalised(x.flatten(0, 1)).reshape(x.shape)
        if generator is not None and self.flip:
            chosen = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
            x = torch.where(chosen[:, None, None, None, None], x.flip(-1), x)
        return {"pixel_values": x, "label": rows["label"]}

    def example(self) -> Batch:
        """One black clip."""
        see = self.input
        shape = (1, self.seen_frames, see.channels, see.height, see.width)
        black = torch.zeros(shape, dtype=torch.uint8)
        return self.batch({"video": black, "label": torch.zeros(1, dtype=torch.int64)}, None)

    def chunks(self, batch: Batch) -> Iterator[Batch]:
        """A few clips at a time."""
        for at in range(0, len(batch["label"]), AT_A_TIME):
            yield {name: x[at : at + AT_A_TIME] for name, x in batch.items()}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        x = batch["pixel_values"]
        if is_video_model(self.model):
            # V-JEPA 2 calls its input otherwise
            name = str(getattr(model, "main_input_name", "pixel_values"))
            with head_input(model, head) as seen:
                logits: Tensor = model(**{name: x}).logits
            return {LOGITS: logits, **seen}
        with head_input(model, head) as seen:
            each: Tensor = model(pixel_values=x.flatten(0, 1)).logits
        # a linear head makes of mean features the mean of the logits
        every = {LOGITS: each, **seen}
        return {key: y.reshape(*x.shape[:2], *y.shape[1:]).mean(1) for key, y in every.items()}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return scoring.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
        return scoring.scores(outputs, batch)

    def conclude(self, sums: Mapping[str, Weighted]) -> dict[str, float]:
        """The metrics as numbers; see `scoring.derive_metrics`."""
        return scoring.derive_metrics(sums)
