"""Texts out of texts, such as summaries and translations, with any encoder and decoder of
`transformers`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.core.outputs import COUNTED, LOGITS, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors
from fedpeft.tasks import scoring
from fedpeft.tasks.loader import TOKENIZER, Loader
from fedpeft.tasks.pretrained import sequence_model
from fedpeft.tasks.text_classification import (
    check_length,
    pad_tokens,
    padding_token,
    resolve_name,
    shortened,
    tokenizer,
)
from fedpeft.tasks.token_classification import UNCOUNTED, sum_losses
from fedpeft.tasks.vocabulary import check_tokens

READ, TOLD = "input_ids", "labels"
MEASURED = 16
"""Examples that are measured together: an output is as large as the vocabulary for each token."""


@dataclass(frozen=True)
class Seq2Seq:
    """Cross entropy of each token of the answer, given the text and the answer's tokens before it
    (teacher forcing). Of one example, the mean over its answer's tokens, its end among them.

    Held-out examples count by their tokens, so that `loss` is the mean over all held-out tokens,
    `perplexity` its exponential and `accuracy` the share of tokens that are predicted right.

    Attributes:
      model: a folder or hub name of an encoder with a decoder, such as T5 or BART.
      source, answer: the columns with what is read and what is to be told.
      prefix: what stands before each text, such as "summarize: " for T5.
      max_length, max_answer: tokens that a text and an answer are cut to; the log says how many
        were cut.

    Raises:
      ValueError: no tokens.
      PlanError: no such model, or one that cannot take so many tokens.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "accuracy")
    model: str
    source: str = "source"
    answer: str = "target"
    prefix: str = ""
    max_length: int = 256
    max_answer: int = 64
    loader: ClassVar[Loader] = Loader(
        "AutoModelForSeq2SeqLM",
        TOKENIZER,
        "text2text-generation",
        classifies=False,
        usage=(
            'inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")',
            "told = model.generate(**inputs, max_new_tokens=100)",
            "print(tokenizer.batch_decode(told, skip_special_tokens=True))",
        ),
        unit="tokens",
    )

    def __post_init__(self) -> None:
        if min(self.max_length, self.max_answer) < 1:
            raise ValueError(
                "max_length and max_answer are numbers of tokens, at least 1, got "
                f"{self.max_length} and {self.max_answer}"
            )

    @property
    def base(self) -> str:
        """The folder, or the hub name, that `transformers` loads."""
        return resolve_name(self.model)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """The classes of the data, if they have some, are no matter of the model's."""
        return sequence_model(self.base, pretrained)

    def prepare(self, table: Table) -> Tensors:
        """`input_ids` (int32) and `attention_mask` (bool), both (n, tokens of the longest text);
        `labels` (int32), (n, tokens of the longest answer), -100 after its end; `label` if any.

        Raises:
          DataError: a column is not there, or some rows have nothing in it.
        """
        for length in (self.max_length, self.max_answer):
            check_length(self.model, self.base, length)
        given, told = (
            scoring.read_texts(table, name, "a model from text to text")
            for name in (self.source, self.answer)
        )
        made = self._rows(given, told)
        for ids, seen in ((READ, made["attention_mask"]), (TOLD, made[TOLD] != UNCOUNTED)):
            check_tokens(self.model, self.base, tokenizer(self.base), made[ids], seen)
        self._tell_cut(made)
        return made if table.labels is None else {**made, "label": table.labels}

    def openings(self, table: Table, number: int) -> list[tuple[list[int], str]]:
        """The tokens of the text, and the answer, of each of the first rows."""
        given, told = (
            scoring.read_texts(table, name, "a model from text to text")[:number]
            for name in (self.source, self.answer)
        )
        read = tokenizer(self.base)
        texts = [self.prefix + text for text in given]
        ids = read(texts, truncation=True, max_length=self.max_length)["input_ids"]
        return list(zip(map(list, ids), told, strict=True))

    def _rows(self, given: Sequence[str], told: Sequence[str]) -> dict[str, Tensor]:
        read, pad = tokenizer(self.base), padding_token(self.base)
        how: dict[str, Any] = {"truncation": True, "return_attention_mask": False}
        texts = [self.prefix + text for text in given]
        source = read(texts, max_length=self.max_length, **how)["input_ids"]
        answers = read(text_target=list(told), max_length=self.max_answer, **how)["input_ids"]
        after = pad_tokens([one or [pad] for one in answers], pad)
        labels = after["input_ids"].masked_fill(~after["attention_mask"], UNCOUNTED)
        return {**pad_tokens([one or [pad] for one in source], pad), TOLD: labels}

    def _tell_cut(self, rows: Tensors) -> None:
        """Say how many rows are as long as they may be, so that something was cut or just fits."""
        texts = int((rows["attention_mask"].sum(1) >= self.max_length).sum())
        answers = int(((rows[TOLD] != UNCOUNTED).sum(1) >= self.max_answer).sum())
        if texts or answers:
            getLogger("fedpeft").warning(
                "%s texts and %s answers of %s examples fill all tokens that they may have, so "
                "that they are cut or just fit: max_length and max_answer say how many these are",
                f"{texts:,}",
                f"{answers:,}",
                f"{len(rows[TOLD]):,}",
            )

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """The rows, cut to the longest text and the longest answer in the batch."""
        longest = int((rows[TOLD] != UNCOUNTED).sum(1).max())
        return {**shortened(rows), TOLD: rows[TOLD][:, : max(1, longest)].long()}

    def example(self) -> Batch:
        """A text and an answer of a word each."""
        return self.batch(self._rows(["a"], ["a"]), None)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        told = batch[TOLD]
        # how answers are moved behind their beginning differs from family to family
        shift: Any = model.prepare_decoder_input_ids_from_labels
        with head_input(model, head) as seen:
            logits: Tensor = model(
                input_ids=batch[READ],
                attention_mask=batch["attention_mask"],
                decoder_input_ids=shift(labels=told),
                use_cache=False,
            ).logits
        return {LOGITS: logits, COUNTED: told != UNCOUNTED, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        total, counted = sum_losses(outputs, batch)
        return total / counted.clamp_min(1)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Summed]:
        total, counted = sum_losses(outputs, batch)
        right = (outputs[LOGITS].argmax(-1) == batch[TOLD]) & outputs[COUNTED]
        return {
            "loss": Summed(total, counted),
            "perplexity": Summed(total, counted, geometric=True),
            "accuracy": Summed(right.sum(1), counted),
        }

    def chunks(self, batch: Batch) -> Iterator[Batch]:
        """Some examples at a time, as long as the longest of them."""
        for at in range(0, len(batch[TOLD]), MEASURED):
            yield self.batch({name: x[at : at + MEASURED] for name, x in batch.items()}, None)
