"""What makes a model's inputs, as the run made them: an image processor, or a tokenizer."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from fedpeft.tasks.chat_templates import chat_template
from fedpeft.tasks.loader import TOKENIZER
from fedpeft.tasks.pixels import ImageInput
from fedpeft.tasks.text_classification import padding_token, tokenizer


def save_inputs(task: object, out: Path) -> None:
    """Write preprocessor_config.json, or the tokenizer's files; and what else a library reads, as
    the task's attribute `extra_files` says it, or its method `save_inputs` writes it."""
    see = getattr(task, "input", None)
    if isinstance(see, ImageInput):
        values = json.dumps(processor(see), indent=2)
        (out / "preprocessor_config.json").write_text(values + "\n", encoding="utf-8")
    if reads_texts(task):
        _save_tokenizer(task, out)
    save: Callable[[Path], None] | None = getattr(task, "save_inputs", None)
    if save is not None:
        save(out)
    for path, values in getattr(task, "extra_files", {}).items():
        (out / path).parent.mkdir(exist_ok=True)
        (out / path).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def reads_texts(task: Any) -> bool:
    """Whether a task's inputs are made by a tokenizer."""
    return getattr(getattr(task, "loader", None), "reader", "") == TOKENIZER


def processor(see: ImageInput) -> dict[str, object]:
    """Pictures are brought to a size, their middle is cut out if need be, and they are
    normalised."""
    return {
        "image_processor_type": _kind(see),
        **({"do_flip_channel_order": True, "do_center_crop": False} if see.reversed else {}),
        "do_convert_rgb": see.channels == 3,
        "do_resize": True,
        "size": {"height": see.height, "width": see.width},
        **_cut(see),
        "resample": see.resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(see.mean)
        if len(see.mean) == see.channels
        else list(see.mean) * see.channels,
        "image_std": list(see.std)
        if len(see.std) == see.channels
        else list(see.std) * see.channels,
    }


def _kind(see: ImageInput) -> str:
    """A processor of `transformers` that does what `see` says, and nothing else."""
    if see.of_clips:
        return "VideoMAEImageProcessor"
    if see.reversed:
        return "MobileViTImageProcessor"
    if see.keeps_shape:
        return "CLIPImageProcessor"
    return "ViTImageProcessor" if see.plain else "DeiTImageProcessor"


def _cut(see: ImageInput) -> dict[str, object]:
    """What a processor is told of the size before the middle is cut out; nothing where nothing is
    cut off."""
    if see.plain and not see.keeps_shape:
        return {"do_center_crop": False} if see.of_clips else {}
    tall, wide = see.resized
    size = {"shortest_edge": tall} if see.keeps_shape else {"height": tall, "width": wide}
    crop = {"height": see.height, "width": see.width}
    return {"size": size, "do_center_crop": True, "crop_size": crop}


def _save_tokenizer(task: Any, out: Path) -> None:
    """The base's, which cuts texts (`truncation=True`) to the length that was trained with, and has
    the chat template that was trained with."""
    base = task.base
    read = deepcopy(getattr(task, "tokenizer", None) or tokenizer(base))
    read.model_max_length = task.max_length
    if read.pad_token_id is None:
        read.pad_token = read.convert_ids_to_tokens(padding_token(base))
    if (template := getattr(task, "template", "none")) != "none":
        read.chat_template = chat_template(base, template)
    read.save_pretrained(str(out))
