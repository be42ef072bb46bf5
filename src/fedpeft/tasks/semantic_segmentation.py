"""A class for each pixel of a picture, with any `transformers` model that segments."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedpeft.core.outputs import COUNTED, LOGITS, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors, Weighted
from fedpeft.errors import DataError, PlanError
from fedpeft.tasks.loader import READS_PICTURES, Loader
from fedpeft.tasks.pixel_classes import (
    IOU,
    NO_MASK,
    NO_NUMBERS,
    UNCOUNTED,
    as_picture,
    as_recorded,
    class_numbers,
    conclude_overlaps,
    count_overlaps,
    dice_losses,
    picture_size,
    pixel_losses,
    why_unfit,
)
from fedpeft.tasks.pixels import ImageInput, image_input
from fedpeft.tasks.positions import fit_size
from fedpeft.tasks.pretrained import classifier
from fedpeft.tasks.scoring import column

MEASURED = 2**25
"""Numbers of logits that are measured at once, 128 MiB in float32."""
SEGMENTER = Loader(
    "AutoModelForSemanticSegmentation",
    "AutoImageProcessor",
    "image-segmentation",
    usage=(
        "from torch.nn.functional import interpolate",
        READS_PICTURES,
        "size = inputs['pixel_values'].shape[-2:]",
        "logits = interpolate(model(**inputs).logits, size, mode='bilinear', align_corners=False)",
        "print(logits.argmax(1))  # a class for each pixel, as in model.config.id2label",
    ),
    unit="pixels",
)


@dataclass(frozen=True)
class SemanticSegmentation:
    """Cross entropy of each pixel's class, and Dice where asked for. Of one picture, the mean over
    its pixels.

    It reads `image` and `mask`: a picture of one channel whose values count the labels from 0. A
    value of 255 does not count. Pictures and masks are brought to the size of the model's input,
    masks without a filter, and the model's logits are enlarged to that size.

    Attributes:
      model: a folder or a hub name of a model that segments, such as SegFormer
        (arXiv:2105.15203), or of its backbone. The head is new in any case.
      labels: the classes' names, in the order of their numbers.
      dice: what the soft Dice loss (Milletari et al., 2016, arXiv:1606.04797, without the squares)
        counts beside the cross entropy; 0 leaves it out.
      size: pixels a side that the model sees; 0 for what it was trained with.
      flip: whether pictures are mirrored at random, with their masks.

    Raises:
      ValueError: a value out of range, or labels that are none.
    """

    model: str
    labels: tuple[str, ...] = ()
    dice: float = 0.0
    size: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if not 2 <= len(set(self.labels)) == len(self.labels) <= UNCOUNTED:
            raise ValueError(
                f"labels are the names of 2 to {UNCOUNTED} classes that all sites agree on, such "
                f'as ["background", "road"], each once; got {list(self.labels)}'
            )
        if self.size < 0 or self.dice < 0:
            raise ValueError(
                f"size and dice must not be negative, got {self.size} and {self.dice}: 0 leaves "
                "them out"
            )

    @property
    def loader(self) -> Loader:
        """How `transformers` loads the models."""
        return replace(SEGMENTER, outputs=self.labels)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the metrics, as `metrics` gives them: a sum for each class among them."""
        return ("loss", "accuracy", *(f"{IOU}{k}" for k in range(len(self.labels))))

    @property
    def input(self) -> ImageInput:
        """What the model sees."""
        own = image_input(self.model)
        return own.scaled(self.size, self.size) if self.size else own

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """The classes of the data, if they have some, are no matter of the model's."""
        from transformers import AutoModelForSemanticSegmentation as Auto

        model = classifier(Auto, self.model, self.labels, pretrained)
        fit_size(model, self.input)
        return model

    def unfit(self, table: Table) -> Mapping[str, list[int]]:
        """By reason the examples whose masks cannot be learned from; the log names the first of
        each reason. All pictures and masks are decoded once more for it."""
        found: dict[str, list[int]] = {}
        if not {"image", "mask"} <= table.columns.keys():  # `prepare` says what is missing
            return found
        names = table.columns.get("file")
        for row in range(len(table)):
            why, what = self._fault(table, row)
            if not why:
                continue
            if why not in found:
                name = f"example {row}" if names is None else names[row]
                getLogger("fedpeft").warning("%s; the first is that of %s: %s", why, name, what)
            found.setdefault(why, []).append(row)
        return found

    def _fault(self, table: Table, row: int) -> tuple[str, str]:
        """Why nothing is learned of an example, and what was found; two empty texts if it is."""
        try:
            size = picture_size(as_recorded(table.columns["image"], row))
        except DataError:  # the picture's own error says more, and `prepare` raises it
            return "", ""
        try:
            mask = as_recorded(table.columns["mask"], row)
        except DataError as error:
            return NO_MASK, str(error)
        try:
            numbers = class_numbers(mask)
        except DataError as error:
            return NO_MASK if mask is None else NO_NUMBERS, str(error)
        return why_unfit(numbers, size, len(self.labels))

    def prepare(self, table: Table) -> Tensors:
        """`image`, uint8 (n, channels, height, width), and `mask`, uint8 (n, height, width), both
        of the size of the model's input; `label` if any.

        Raises:
          DataError: a column is not there, a picture cannot be read, or a mask does not fit.
        """
        import numpy as np

        for name in ("image", "mask"):
            column(table, name, "semantic segmentation")
        see = self.input
        # a filter would make classes between two classes
        apart, mode = replace(see, resample=0), "L" if see.channels == 1 else "RGB"
        images, masks = [], []
        for row, picture in enumerate(table.columns["image"]):
            numbers = class_numbers(as_recorded(table.columns["mask"], row))
            why, what = why_unfit(numbers, picture_size(picture), len(self.labels))
            if why:
                raise DataError(f"{why}; the first is that of example {row}: {what}")
            images.append(np.asarray(see.fit(as_picture(picture).convert(mode))))
            # what is cut out of nothing is black in a picture, and no class in a mask: so masks
            # are cut out of their numbers + 1, of which 0 is the black
            shifted = as_picture(torch.from_numpy(numbers.astype(np.uint8))[None] + 1)
            masks.append(np.asarray(apart.fit(shifted)) - np.uint8(1))
        stacked = torch.from_numpy(np.stack(images))
        image = stacked[:, None] if mode == "L" else stacked.permute(0, 3, 1, 2).contiguous()
        rows = {"image": image, "mask": torch.from_numpy(np.stack(masks))}
        _tell_black_and_white(rows["mask"])
        return rows if table.labels is None else {**rows, "label": table.labels}

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """`pixel_values` (n, channels, height, width), and `labels` (n, pixels), -100 where a pixel
        does not count."""
        x, mask = self.input.normalised(rows["image"].float() / 255), rows["mask"].long()
        if generator is not None and self.flip:
            chosen = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
            x = torch.where(chosen[:, None, None, None], x.flip(-1), x)
            mask = torch.where(chosen[:, None, None], mask.flip(-1), mask)
        return {
            "pixel_values": x,
            "labels": torch.where(mask == UNCOUNTED, -100, mask).flatten(1),
        }

    def example(self) -> Batch:
        """One black picture of the first class."""
        see = self.input
        sides = (see.height, see.width)
        image = torch.zeros(1, see.channels, *sides, dtype=torch.uint8)
        return self.batch({"image": image, "mask": torch.zeros(1, *sides, dtype=torch.uint8)}, None)

    def chunks(self, batch: Batch) -> Iterator[Batch]:
        """Some pictures at a time: logits of large ones would fill the memory."""
        rows, pixels = batch["labels"].shape
        some = max(1, MEASURED // (pixels * len(self.labels)))
        for at in range(0, rows, some):
            yield {name: x[at : at + some] for name, x in batch.items()}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        """`logits` are (n, pixels, classes), at the size of the model's input.

        Raises:
          PlanError: what comes into the head is asked for, and it is several maps.
        """
        x = batch["pixel_values"]
        with head_input(model, head) as seen:
            logits: Tensor = model(pixel_values=x).logits
        if not all(isinstance(one, Tensor) for one in seen.values()):
            raise PlanError(
                f"{head!r} of {self.model!r} reads several maps of features, and a term or an "
                "algorithm of the plan needs one row of features an example: leave it out"
            )
        logits = interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
        return {LOGITS: logits.flatten(2).mT, COUNTED: batch["labels"] >= 0, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        found = pixel_losses(outputs[LOGITS], batch["labels"])
        if self.dice:
            found = found + self.dice * dice_losses(outputs[LOGITS], batch["labels"])
        return found

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
        """The loss of each picture; the others are counted over the pixels of all pictures."""
        guess = outputs[LOGITS].argmax(-1)
        counted = batch["labels"] >= 0
        right = (guess == batch["labels"]) & counted
        return {
            "loss": self.losses(outputs, batch),
            "accuracy": Summed(right.sum(1), counted.sum(1)),
            **count_overlaps(guess, batch["labels"], len(self.labels)),
        }

    def conclude(self, sums: Mapping[str, Weighted]) -> dict[str, float]:
        """The metrics as numbers, with `mean_iou` and `dice`; see `conclude_overlaps`."""
        return conclude_overlaps(sums)


def _tell_black_and_white(mask: Tensor) -> None:
    """Say that masks of black and white have one class."""
    if torch.unique(mask).tolist() == [0, UNCOUNTED]:
        getLogger("fedpeft").warning(
            "all masks hold 0 and %s alone, of which %s does not count, so that there is nothing "
            "to tell apart: where white is a class, save it as 1",
            UNCOUNTED, UNCOUNTED,
        )  # fmt: skip
