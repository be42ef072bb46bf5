"""Names for what two sites must have alike: labels, frozen weights, transforms."""

import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import torch
from torch import nn

from fedpeft.compute.trainable import tensors_of
from fedpeft.export.inputs import processor, reads_texts
from fedpeft.plan.plan import Plan
from fedpeft.plan.values import quantizes
from fedpeft.registry import describe
from fedpeft.tasks.chat_templates import OWN, chat_template
from fedpeft.tasks.pixels import ImageInput
from fedpeft.tasks.text_classification import tokenizer, tokenizer_settings
from fedpeft.tasks.text_to_image import TextToImage


def digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def labels_digest(classes: tuple[str, ...]) -> str:
    return digest(json.dumps(list(classes)).encode())


def base_fingerprint(plan: Plan, model: nn.Module | None = None) -> str:
    """A name for the frozen weights, and for nothing else: what is trained is not looked at.

    Of text to image also those of the text encoder and the autoencoder, which make its examples.
    """
    model = plan.model(plan.classes) if model is None else model
    trained, found = set(plan.method.names(model)), blake2b(digest_size=16)
    every = tensors_of(model)
    if quantizes(plan.task):  # what the codes stand for is in the state alone
        every |= model.state_dict()
    if isinstance(plan.task, TextToImage):
        every |= plan.task.beside()
    for name, x in sorted(every.items()):
        if name not in trained:
            # Names, shapes and types count too, since equal bytes may be other weights.
            plain = x.detach().cpu().contiguous()
            found.update(json.dumps([name, list(plain.shape), str(plain.dtype)]).encode())
            found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def transforms_digest(task: Any) -> str:
    """A name for what becomes of an example before the model sees it, as it is here: also what
    comes with the model."""
    parts: list[Any] = []
    see = getattr(task, "input", None)
    if isinstance(see, ImageInput):
        parts.append(processor(see))
    if reads_texts(task):
        read = tokenizer_settings(getattr(task, "tokenizer", None) or tokenizer(task.base))
        if getattr(task, "template", "") == OWN:
            read = {**read, "chat_template": chat_template(task.base, OWN)}
        parts.append(read)
    settings: Callable[[], dict[str, Any]] | None = getattr(task, "input_settings", None)
    if settings is not None:
        parts.append(settings())
    # of one part the form is that of earlier versions, whose names of transforms still count
    own = parts[0] if len(parts) == 1 else parts or None
    return digest(json.dumps([describe("task", task), own], sort_keys=True, default=str).encode())
