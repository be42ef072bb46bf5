"""The processor of a vision-language model: what makes its inputs of a picture and a text."""

from functools import cache
from typing import Any

from fedpeft.errors import PlanError
from fedpeft.storage.hub import spare_lookups
from fedpeft.storage.locate import locate
from fedpeft.tasks.pretrained import NO_CODE, quiet
from fedpeft.tasks.vocabulary import check_words

PLACES = ("boi_token", "image_token")
"""How processors call what stands for a picture in a text; the first one that is there is it."""
AROUND = ("<|vision_start|>", "<|vision_end|>")
"""What Qwen's models expect around it, which no attribute of their processors tells."""


@cache
def picture_processor(base: str) -> Any:
    """The processor of a model, with its chat template on its tokenizer.

    Raises:
      PlanError: there is none, or one that reads no pictures or no texts.
    """
    if locate(base) is None:
        spare_lookups()
    from transformers import AutoProcessor

    try:
        with quiet():
            made: Any = AutoProcessor.from_pretrained(base, **NO_CODE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise PlanError(_explain(base, error)) from None
    parts = [name for name in ("image_processor", "tokenizer") if not hasattr(made, name)]
    if parts:
        raise PlanError(
            f"{base!r} has no processor of pictures and texts (what is there has no "
            f"{' and no '.join(parts)}): put processor_config.json, preprocessor_config.json and "
            "the tokenizer's files into the model's folder"
        )
    check_words(base, made.tokenizer)
    # an older folder has the template in a file that only the processor reads
    if getattr(made, "chat_template", None):
        made.tokenizer.chat_template = made.chat_template
    return made


def _explain(base: str, error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    hint = "put the processor's files into the model's folder, or name a model that has them"
    if "torchvision" in str(error) or "VIDEO_PROCESSOR" in str(error):
        hint = "its part for films needs torchvision: pip install torchvision"
    return f"the processor of {base!r} cannot be loaded ({first}): {hint}"


def placeholder(processor: Any) -> str:
    """What stands for a picture in a text that no template of the model's own has made."""
    found = next((getattr(processor, name) for name in PLACES if hasattr(processor, name)), "")
    words = processor.tokenizer.get_vocab()
    if all(sign in words for sign in AROUND):
        return f"{AROUND[0]}{found}{AROUND[1]}"
    return str(found)


def special_tokens(processor: Any, text: str) -> dict[str, bool]:
    """Whether the tokenizer is to add its own beginning, as `apply_chat_template` of a processor
    has it: unless the text begins with that already."""
    first = processor.tokenizer.bos_token
    return {"add_special_tokens": not (first and text.startswith(first))}
