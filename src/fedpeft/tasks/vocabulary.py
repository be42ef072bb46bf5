"""Whether a tokenizer belongs to a model and to the texts."""

from typing import Any

from torch import Tensor

from fedpeft.errors import DataError, PlanError
from fedpeft.tasks.pretrained import config_of

MOST_UNKNOWN = 0.9
"""Of the tokens of all texts, the share that may be unknown."""


def check_words(base: str, read: Any) -> None:
    """Raises PlanError for a tokenizer that knows no word, as one without its files does."""
    special = set(read.all_special_tokens)
    if not any(word not in special for word in read.get_vocab()):
        raise PlanError(
            f"the tokenizer of {base!r} knows no word: its vocabulary is empty except for "
            f"{', '.join(sorted(special)) or 'nothing'}. Put the tokenizer's files "
            "(tokenizer.json, or vocab.txt and the like) into the model's folder"
        )


def check_tokens(model: str, base: str, read: Any, ids: Tensor, seen: Tensor) -> None:
    """Make sure that the model has a row for each token, and that the tokens tell something.

    Args:
      ids, seen: (texts, tokens); what is not seen fills rows up.

    Raises:
      PlanError: the tokenizer makes tokens that the model has no row for.
      DataError: most tokens stand for what the tokenizer does not know.
    """
    rows = getattr(config_of(base).get_text_config(), "vocab_size", None)
    largest = int(ids[seen].max()) if seen.any() else 0
    if rows and largest >= rows:
        raise PlanError(
            f"the tokenizer of {model!r} makes the token {largest}, and the model has "
            f"{rows} rows, 0 to {rows - 1}: they do not belong together. Take the tokenizer that "
            "the model was trained with, or a model whose embedding was resized with it"
        )
    if read.unk_token_id is None or read.unk_token_id == read.eos_token_id:
        return
    added = read.num_special_tokens_to_add() * len(ids)
    unknown, total = int((ids[seen] == read.unk_token_id).sum()), int(seen.sum()) - added
    if total > 0 and unknown > MOST_UNKNOWN * total:
        raise DataError(
            f"{unknown / total:.0%} of the tokens of these texts are unknown to the tokenizer of "
            f"{model!r}: it was made for another language or alphabet, or its vocabulary is not "
            "the whole one. Name a model that knows these texts"
        )
