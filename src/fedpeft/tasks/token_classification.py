"""A tag for each word of a text, such as the names in it, with any `transformers` backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedpeft.core.outputs import COUNTED, LOGITS, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors
from fedpeft.errors import DataError, PlanError, unknown
from fedpeft.tasks import scoring
from fedpeft.tasks.loader import TOKENIZER, Loader
from fedpeft.tasks.pretrained import NO_CODE, classifier
from fedpeft.tasks.tagging import find_entities, has_entities
from fedpeft.tasks.text_classification import (
    TOKENS,
    check_length,
    pad_tokens,
    padding_token,
    resolve_name,
    shortened,
    tokenizer,
)
from fedpeft.tasks.vocabulary import check_tokens

UNCOUNTED = -100
"""The tag of a token that no loss counts, as `transformers` has it."""
BY_WORD, BY_ENTITY = ("loss", "accuracy"), ("entity_f1", "entity_precision", "entity_recall")
"""The names of the metrics."""
TAGGER = Loader(
    "AutoModelForTokenClassification",
    TOKENIZER,
    "token-classification",
    usage=(
        "inputs = tokenizer(words, is_split_into_words=True, truncation=True, "
        'return_tensors="pt")  # the words of one text',
        "tags = [model.config.id2label[k] for k in model(**inputs).logits[0].argmax(-1).tolist()]",
        "starts = {word: at for at, word in reversed(list(enumerate(inputs.word_ids())))}",
        "print([(word, tags[starts[k]]) for k, word in enumerate(words) if k in starts])",
    ),
    unit="words",
)


@dataclass(frozen=True)
class TokenClassification:
    """Cross entropy of each word's tag. Of one text, the mean over its words.

    A word's first token predicts its tag; no loss counts its other tokens. Held-out texts count by
    their
    words, and entities by the CoNLL rule: `entity_f1` is over all entities of all texts.

    Attributes:
      model: "minilm", a folder or a hub name; its tokenizer must tell which token is of which word.
      max_length: tokens a text is cut to; the words that are cut off do not count, and the log says
        how many they are.
      words, tags: the columns, of lists, or of texts with blanks between.
      labels: the tags' names, in the order of the head's rows; numbers in the column count them
        from 0.

    Raises:
      ValueError: no tokens, or labels that are none.
      PlanError: no such model, or one that cannot take so many tokens.
    """

    model: str = "minilm"
    max_length: int = 128
    words: str = "tokens"
    tags: str = "ner_tags"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length is a number of tokens, at least 1, got {self.max_length}")
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError(
                "labels are the names of two tags or more that all sites agree on, such as "
                f'["O", "B-PER", "I-PER"], each once; got {list(self.labels)}'
            )

    @property
    def base(self) -> str:
        """The folder, or the hub name, that `transformers` loads."""
        return resolve_name(self.model)

    @property
    def loader(self) -> Loader:
        """How `transformers` loads the models."""
        return replace(TAGGER, outputs=self.labels)

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the metrics; tags of entities have those of entities too."""
        return (*BY_WORD, *(BY_ENTITY if has_entities(self.labels) else ()))

    @property
    def tokenizer(self) -> Any:
        """The tokenizer as it reads words."""
        return word_tokenizer(self.base)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """The classes of the data, if they have some, are no matter of the model's."""
        from transformers import AutoModelForTokenClassification as Auto

        return classifier(Auto, self.base, self.labels, pretrained)

    def prepare(self, table: Table) -> Tensors:
        """`input_ids` (int32), `attention_mask` (bool) and `labels` (int32), all (n, tokens of the
        longest); `label` if any.

        `labels` are the tags' numbers at the words' first tokens, else -100.

        Raises:
          DataError: a column is not there, a text has not as many words as tags, or a tag is none
            of the labels.
        """
        check_length(self.model, self.base, self.max_length)
        words = [_listed(one) for one in self._column(table, self.words)]
        tags = [_listed(one) for one in self._column(table, self.tags)]
        uneven = [k for k in range(len(words)) if len(words[k]) != len(tags[k])]
        if uneven:
            first = uneven[0]
            raise DataError(
                f"{len(uneven)} of {len(words)} examples have not as many {self.words!r} as "
                f"{self.tags!r}, first example {first}: {len(words[first])} and {len(tags[first])}"
            )
        numbers = [self._numbers(row, one) for row, one in enumerate(tags)]
        made = self._rows([[str(word) for word in one] for one in words], numbers)
        ids, seen = made["input_ids"], made["attention_mask"]
        check_tokens(self.model, self.base, self.tokenizer, ids, seen)
        _tell_left_out(made["labels"], sum(map(len, words)))
        return made if table.labels is None else {**made, "label": table.labels}

    def _column(self, table: Table, name: str) -> Sequence[Any]:
        values: Sequence[Any] = scoring.column(table, name, "token classification")
        if missing := sum(value is None for value in values):
            raise DataError(f"{missing} of {len(values)} examples have no {name!r}")
        return values

    def _numbers(self, row: int, tags: Sequence[Any]) -> list[int]:
        """The numbers of one text's tags."""
        found = []
        for tag in tags:
            number = self.labels.index(tag) if tag in self.labels else tag
            if isinstance(number, bool | str) or number not in range(len(self.labels)):
                raise DataError(
                    f"the column {self.tags!r} of example {row}: "
                    + unknown("label", str(tag), self.labels)
                    + f" Numbers go from 0 to {len(self.labels) - 1}"
                )
            found.append(int(number))
        return found

    def _rows(
        self, words: Sequence[Sequence[str]], numbers: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        pad = padding_token(self.base)
        made = self.tokenizer(
            [list(one) for one in words],
            is_split_into_words=True,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
        )
        rows = pad_tokens([one or [pad] for one in made["input_ids"]], pad)
        labels = torch.full_like(rows["input_ids"], UNCOUNTED)
        for row, of_text in enumerate(numbers):
            before = None
            for place, word in enumerate(made.word_ids(row)):
                if word is not None and word != before:
                    labels[row, place] = of_text[word]
                before = word
        return {**rows, "labels": labels}

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """The rows, cut to the longest text in the batch."""
        tokens = shortened(rows)
        longest = tokens["input_ids"].shape[1]
        return {**tokens, "labels": rows["labels"][:, :longest].long()}

    def example(self) -> Batch:
        """One text of a word."""
        return self.batch(self._rows([["a"]], [[0]]), None)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            logits: Tensor = model(**{n: batch[n] for n in TOKENS if n in batch}).logits
        return {LOGITS: logits, COUNTED: batch["labels"] != UNCOUNTED, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        total, counted = sum_losses(outputs, batch)
        return total / counted.clamp_min(1)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Summed]:
        total, counted = sum_losses(outputs, batch)
        right = (outputs[LOGITS].argmax(-1) == batch["labels"]) & outputs[COUNTED]
        found = {"loss": Summed(total, counted), "accuracy": Summed(right.sum(1), counted)}
        if not has_entities(self.labels):
            return found
        both, told, true = self._count_entities(outputs, batch)
        return {
            **found,
            "entity_f1": Summed(2 * both, told + true),
            "entity_precision": Summed(both, told),
            "entity_recall": Summed(both, true),
        }

    def _count_entities(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Of each text the entities that are right, told and true, float32 (3, batch)."""
        counts = []
        guesses, wanted = outputs[LOGITS].argmax(-1).cpu(), batch["labels"].cpu()
        for guess, labels in zip(guesses, wanted, strict=True):
            words = labels != UNCOUNTED
            told, true = (
                find_entities([self.labels[k] for k in row[words].tolist()])
                for row in (guess, labels)
            )
            counts.append([len(told & true), len(told), len(true)])
        return torch.tensor(counts, dtype=torch.float32, device=batch["labels"].device).T


def sum_losses(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """The sum of the losses of each example's counted `labels`, and their number: both (batch,).
    The logits at a label's own place predict it."""
    wanted = batch["labels"]
    each = cross_entropy(outputs[LOGITS].mT, wanted, reduction="none", ignore_index=UNCOUNTED)
    return each.sum(1), (wanted != UNCOUNTED).sum(1).to(each.dtype)


@cache
def word_tokenizer(base: str) -> Any:
    """The tokenizer of a model, for texts that come as words.

    One that takes a blank for a part of the next word (RoBERTa, GPT-2) puts one before each word.

    Raises:
      PlanError: it does not tell which token is of which word.
    """
    from transformers import AutoTokenizer

    read = tokenizer(base)
    if getattr(read, "add_prefix_space", None) is False:
        read = AutoTokenizer.from_pretrained(base, add_prefix_space=True, **NO_CODE)
    if not read.is_fast:
        raise PlanError(
            f"the tokenizer of {base!r} does not tell which token is of which word: put a "
            "tokenizer.json into the model's folder, or name another model"
        )
    return read


def _listed(value: Any) -> list[Any]:
    return value.split() if isinstance(value, str) else list(value)


def _tell_left_out(labels: Tensor, words: int) -> None:
    left = words - int((labels != UNCOUNTED).sum())
    if left:
        getLogger("fedpeft").warning(
            "%s of %s words do not count: they are beyond max_length, or the tokenizer makes "
            "nothing of them",
            f"{left:,}",
            f"{words:,}",
        )
