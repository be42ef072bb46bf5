"""Vision-language models: their weights, their parts, and how others load what comes of them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedpeft.compute.trainable import mark_parts
from fedpeft.core.types import Tensors
from fedpeft.errors import PlanError
from fedpeft.storage.locate import locate
from fedpeft.tasks import text_classification, vocabulary
from fedpeft.tasks.chat_templates import OWN, chat_template
from fedpeft.tasks.loader import Loader
from fedpeft.tasks.picture_processor import picture_processor, placeholder
from fedpeft.tasks.pretrained import config_of, language_model

AUTO, READER = "AutoModelForImageTextToText", "AutoProcessor"
LANGUAGE, VISION = "language", "vision"
"""What the parts of a model are called, where a method says into which it goes."""
ANSWERS = (
    "out = model.generate(**inputs, max_new_tokens=100)",
    "print(processor.decode(out[0], skip_special_tokens=True))",
)
SIDE = 64
"""Pixels a side of the picture that stands for any."""


def find_model(model: str) -> str:
    """The folder or hub name of a model."""
    found = locate(model)
    return str(found) if found else model


def picture_model(base: str, pretrained: bool, quantize: str | None) -> nn.Module:
    """The model with its output layer, its parts marked on it; see `language_model`.

    Raises:
      PlanError: no such model, or one that sees no pictures.
    """
    from transformers import AutoModelForImageTextToText

    if type(config := config_of(base)) not in AutoModelForImageTextToText._model_mapping:
        raise PlanError(
            f"model {base!r} ({config.model_type}) is none that sees a picture and writes, as "
            "LLaVA, Qwen-VL, SmolVLM and Gemma 3 do"
        )
    model = language_model(base, pretrained, quantize, AUTO)
    mark_parts(model, _find_parts(model))
    return model


def _find_parts(model: Any) -> dict[str, str]:
    """The modules that read pictures and texts, as far as the model's class tells them."""
    names = {id(module): name for name, module in model.named_modules() if name}
    found = {LANGUAGE: model.get_decoder(), VISION: model.get_encoder(modality="image")}
    inner = {id(model), id(model.base_model)}  # what a model gives that knows no such part
    return {
        part: names[id(module)]
        for part, module in found.items()
        if id(module) in names and id(module) not in inner
    }


def grey_picture() -> Any:
    """A picture of all greys."""
    from PIL import Image

    return Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")


def padding(base: str) -> int:
    """The token that fills a row up.

    Raises:
      PlanError: the tokenizer has neither a padding nor an end token.
    """
    return text_classification.padding_token(base)


def most_tokens(base: str) -> int:
    """How many tokens a model takes, a picture's among them; 0 where it has no limit."""
    return text_classification.longest_text(base)


def check_text_length(model: str, base: str, length: int) -> None:
    """Raises PlanError for texts longer than the model takes."""
    text_classification.check_length(model, base, length)


def check_vocabulary(model: str, base: str, rows: Tensors) -> None:
    """Raises what `vocabulary.check_tokens` does, for rows of `input_ids`."""
    read = picture_processor(base).tokenizer
    ids: Tensor = rows["input_ids"]
    vocabulary.check_tokens(model, base, read, ids, rows["attention_mask"])


def processor_settings(base: str, template: str) -> dict[str, Any]:
    """What a processor does to pictures and texts, as plain values."""
    made = picture_processor(base)
    return {
        "processor": {key: x for key, x in made.to_dict().items() if key not in _APART},
        "pictures": {k: x for k, x in made.image_processor.to_dict().items() if k not in _APART},
        "tokenizer": text_classification.tokenizer_settings(made.tokenizer),
        "chat_template": chat_template(base, template, made.tokenizer),
    }


_APART = (
    "image_processor",
    "tokenizer",
    "video_processor",
    "chat_template",
    "image_processor_type",
)
"""What is told apart; and the class of the image processor, which differs with what is installed
while what it does should not."""


def save_processor(base: str, template: str, folder: Path) -> None:
    """Write the processor's files, with this chat template."""
    made = deepcopy(picture_processor(base))
    made.chat_template = made.tokenizer.chat_template = chat_template(
        base, template, made.tokenizer
    )
    made.save_pretrained(str(folder))


def loader(base: str, template: str) -> Loader:
    """How `transformers` loads the models, and the lines that use one as it was trained."""
    return Loader(
        AUTO,
        READER,
        "image-text-to-text",
        classifies=False,
        usage=(*_asking(base, template), *ANSWERS),
        unit="tokens of answers",
    )


def _asking(base: str, template: str) -> tuple[str, ...]:
    if template == OWN:
        return (
            'parts = [{"type": "image", "image": picture}, {"type": "text", "text": "..."}]',
            "inputs = processor.apply_chat_template(",
            '    [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=True,',
            '    return_dict=True, return_tensors="pt"',
            ")",
        )
    mark = placeholder(picture_processor(base))
    return (
        f'messages = [{{"role": "user", "content": "{mark}\\n..."}}]',
        "text = processor.apply_chat_template(messages, add_generation_prompt=True)",
        'first = processor.tokenizer.bos_token or "\\n"',
        "inputs = processor(",
        "    text=[text], images=[picture], add_special_tokens=not text.startswith(first),",
        '    return_tensors="pt"',
        ")",
    )
