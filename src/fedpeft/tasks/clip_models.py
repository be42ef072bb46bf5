"""Models of clips: those of videos, and those of images that see one frame after another."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from fedpeft.core.outputs import evaluation_mode
from fedpeft.core.seeds import seed_torch
from fedpeft.errors import PlanError
from fedpeft.tasks.pixels import ImageInput, side_key
from fedpeft.tasks.positions import fit_size
from fedpeft.tasks.pretrained import classifier, config_of

FRAMES = ("num_frames", "frames_per_clip")
"""What configurations call the number of frames; the second is V-JEPA 2's."""
SILENT = (*FRAMES, "crop_size")
"""Keys to which a model must be made, since it raises no error for other clips: TimeSformer takes
other frames for patches, and V-JEPA 2 counts places on the grid of its configuration."""
OF_AN_IMAGE_MODEL = 8
"""Frames of a clip that an image model sees where nobody says how many."""


@cache
def is_video_model(name: str) -> bool:
    """Whether `transformers` has the model for classifying videos."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING

    return type(config_of(name)) in MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING


@cache
def usual_frames(name: str) -> int:
    """The number of frames that a model was trained with."""
    config = config_of(name)
    return next((int(n) for key in FRAMES if (n := getattr(config, key, 0))), OF_AN_IMAGE_MODEL)


def build_clip_model(
    name: str, classes: Sequence[str], pretrained: bool, frames: int, see: ImageInput
) -> nn.Module:
    """A model with a new head for clips of so many frames of this size.

    A video model may be one for others. Where only the size is another, it is asked whether it
    takes these as it is, as TimeSformer does. Else it is made for them, which VideoMAE can be,
    since its positions are computed.

    Raises:
      PlanError: it takes no such clips.
    """
    from transformers import AutoModelForImageClassification, AutoModelForVideoClassification

    if not is_video_model(name):
        model = classifier(AutoModelForImageClassification, name, classes, pretrained)
        fit_size(model, see)
        return model
    auto = AutoModelForVideoClassification
    _check_tubelets(name, frames)
    model = classifier(auto, name, classes, pretrained)
    changes = _changes(model.config, frames, see)
    if not any(key in changes for key in SILENT) and (
        not changes or not _refusal(model, frames, see)
    ):
        return model
    try:
        model = classifier(auto, name, classes, pretrained, changes=changes)
        why = _refusal(model, frames, see)
    except PlanError as error:
        why = str(error)
    if why:
        raise PlanError(
            f"model {name!r} does not take {frames} frames of {see.height} by {see.width} pixels: "
            f"{why.rstrip('.')}. Leave out task.frames and task.size"
        )
    return model


def _check_tubelets(name: str, frames: int) -> None:
    """Raises PlanError where the last frames would not be seen."""
    size = getattr(config_of(name), "tubelet_size", 1)
    length = int(size if isinstance(size, int) else size[0])
    if frames % length:
        raise PlanError(
            f"task.frames = {frames}: model {name!r} reads {length} frames at a time; set it to a "
            f"multiple of {length}"
        )


def _changes(config: Any, frames: int, see: ImageInput) -> Mapping[str, Any]:
    """The keys of a configuration that say something else."""
    found: dict[str, Any] = {}
    for key in FRAMES:
        if getattr(config, key, frames) != frames:
            found[key] = frames
    key, own = side_key(config)
    if own not in (None, (see.height, see.width)):
        square = see.height == see.width
        found[key] = see.height if square else [see.height, see.width]
    return found


def _refusal(model: nn.Module, frames: int, see: ImageInput) -> str:
    """What a model says of a black clip; "" where it takes it."""
    device = next(model.parameters()).device
    black = torch.zeros(1, frames, see.channels, see.height, see.width, device=device)
    name = str(getattr(model, "main_input_name", "pixel_values"))
    try:
        with torch.no_grad(), evaluation_mode(model), seed_torch(0):
            model(**{name: black})
    except (RuntimeError, ValueError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return ""
