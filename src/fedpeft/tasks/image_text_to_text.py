"""Answers to questions about a picture: a vision-language model of `transformers`, such as LLaVA
(Liu et al., 2023, arXiv:2304.08485)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from logging import getLogger
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.core.outputs import COUNTED, LOGITS, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors
from fedpeft.errors import unknown
from fedpeft.registry import unwritten
from fedpeft.tasks import picture_model, picture_rows
from fedpeft.tasks.chat_templates import NAMED, OWN
from fedpeft.tasks.conversations import ask_and_answer
from fedpeft.tasks.loader import Loader
from fedpeft.tasks.picture_chats import PictureChats
from fedpeft.tasks.token_classification import UNCOUNTED, sum_losses

QUANTIZE = ("bfloat16",)
MEASURED = 16
"""Examples that are measured together."""
MEASURED_TOKENS = 2**12
"""Their tokens, with those that fill them up, unless one example alone has more."""


@dataclass(frozen=True)
class ImageTextToText:
    """Cross entropy of each token of the answer, given the picture and what stands before the
    token. Of one example, the mean over its answer's tokens.

    An example is one picture and a conversation about it, all that the assistant says in it being
    the answer. Held-out examples count by their tokens, so that `loss` is the mean over all
    held-out tokens of answers, and `perplexity` its exponential.

    The model's own processor makes the inputs, once, without any augmentation. Rows of which it
    makes nothing are left out and counted.

    Attributes:
      model: a folder or hub name of a model that `AutoModelForImageTextToText` loads, with its
        processor.
      template: "own", for the processor's chat template, "chatml", "llama3", "vicuna" or "alpaca".
      messages: the column of conversations: lists of {role, content}, or JSON of such lists; the
        picture is shown where a user's text has `<image>`, or in the first message of the user.
      question, answer: where there is no such column, the columns of what is asked and of the
        answer; data.text names the column that is `text` here, which is what is asked where both
        of these are others.
      prompt: what is asked of every picture where there is no column of questions.
      max_length: tokens that the text of an example is cut to, at its end; those of the picture
        come on top.
      quantize: "bfloat16" holds the frozen linear layers and embeddings in 16 bits; see `CausalLM`.

    Raises:
      ValueError: a value out of range.
      PlanError: no such model, one without a processor, or one that takes fewer tokens.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "perplexity")
    model: str
    template: str = OWN
    messages: str = "messages"
    question: str = "question"
    answer: str = "text"
    prompt: str = "Describe the picture."
    max_length: int = 256
    quantize: str | None = unwritten(None)

    def __post_init__(self) -> None:
        if self.template not in (known := (OWN, *NAMED)):
            raise ValueError(unknown("template", self.template, known))
        if self.quantize not in (None, *QUANTIZE):
            raise ValueError(unknown("quantize", str(self.quantize), QUANTIZE))
        if self.max_length < 2:
            raise ValueError(f"max_length is a number of tokens, at least 2, got {self.max_length}")
        if not self.prompt.strip():
            raise ValueError("prompt is what is asked of a picture, got an empty text")

    @property
    def base(self) -> str:
        """The folder, or the hub name, that `transformers` loads."""
        return picture_model.find_model(self.model)

    @property
    def loader(self) -> Loader:
        """How `transformers` loads the models."""
        return picture_model.loader(self.base, self.template)

    @property
    def _chats(self) -> PictureChats:
        most = picture_model.most_tokens(self.base)
        columns = (self.messages, self.question, self.answer, self.prompt)
        return PictureChats(self.base, self.template, self.max_length, most, *columns)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """The model, whose parts "language" and "vision" are marked on it; the classes of the data,
        if they have some, are no matter of its."""
        return picture_model.picture_model(self.base, pretrained, self.quantize)

    def unfit(self, table: Table) -> Mapping[str, list[int]]:
        """By reason the rows of which nothing is learned; each is made once for that, and once more
        when it is prepared."""
        picture_model.check_text_length(self.model, self.base, self.max_length)
        return self._chats.unfit(table)

    def prepare(self, table: Table) -> Tensors:
        """`input_ids`, `labels` and what else the model takes per token (int32), `attention_mask`
        (bool), all (n, tokens of the longest); `picture/<input>` (n, most rows, ...), and
        `number/<input>` (n,), how many rows an example has; `label` if any.

        `labels` are the tokens of the answers themselves, else -100.

        Raises:
          DataError: a column is not there, or a row has no answer or no picture.
        """
        chats = self._chats
        examples = chats.examples(table)
        picture_rows.check_columns(examples, self.model)
        rows = picture_rows.stack_examples(examples, picture_model.padding(self.base))
        picture_model.check_vocabulary(self.model, self.base, rows)
        self._tell(table)
        return rows if table.labels is None else {**rows, "label": table.labels}

    def _tell(self, table: Table) -> None:
        """Say what is asked where the data have no questions."""
        if self.messages not in table.columns and self._chats.questions(table) is None:
            getLogger("fedpeft").warning(
                "the data have no column %r and no %r: of each picture is asked %r",
                self.messages, self.question, self.prompt,
            )  # fmt: skip

    def openings(self, table: Table, number: int) -> list[tuple[list[int], str]]:
        """The tokens up to the last answer, and that answer, for the first rows."""
        return [
            (one["input_ids"][0].tolist(), answer) for one, answer in self._openings(table, number)
        ]

    def opening_inputs(self, table: Table, number: int) -> list[Tensors]:
        """What the model is told beside these tokens: of the picture, and of each token."""
        beside = ("input_ids", "attention_mask")
        return [
            {name: x for name, x in one.items() if name not in beside}
            for one, _ in self._openings(table, number)
        ]

    def _openings(self, table: Table, number: int) -> list[tuple[Tensors, str]]:
        return [self._chats.opening_at(table, row) for row in range(min(number, len(table)))]

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """The rows, cut to the longest example in the batch. `labels` have the last columns alone,
        moved so that the logits at a label's own place predict it."""
        return picture_rows.crop_rows(rows)

    def example(self) -> Batch:
        """A small picture, and what is asked and answered of a word each."""
        return self._example("a")

    def longest_example(self) -> Batch:
        """The same with an answer as long as may be."""
        return self._example("a " * self.max_length)

    def _example(self, answer: str) -> Batch:
        chats = self._chats
        turns = chats.show_once(ask_and_answer("a", None, answer))
        one, _ = chats.read(turns, picture_model.grey_picture())
        picture_rows.check_columns([one], self.model)
        rows = picture_rows.stack_examples([one], picture_model.padding(self.base))
        return self.batch(rows, None)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        told = batch["labels"]
        given: dict[str, Any] = picture_rows.model_inputs(batch)
        # an output is as large as the vocabulary for each token: it is made of the last ones alone
        if "logits_to_keep" in signature(model.forward).parameters:
            given["logits_to_keep"] = told.shape[1]
        with head_input(model, head) as seen:
            logits: Tensor = model(**given).logits
        last = {name: x[:, -told.shape[1] :] for name, x in seen.items()}
        return {LOGITS: logits[:, -told.shape[1] :], COUNTED: told != UNCOUNTED, **last}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        total, counted = sum_losses(outputs, batch)
        return total / counted.clamp_min(1)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Summed]:
        total, counted = sum_losses(outputs, batch)
        return {
            "loss": Summed(total, counted),
            "perplexity": Summed(total, counted, geometric=True),
        }

    def chunks(self, batch: Batch) -> Iterator[Batch]:
        """Some examples at a time."""
        rows, tokens = batch["input_ids"].shape
        number = min(MEASURED, max(1, MEASURED_TOKENS // max(1, tokens)))
        for at in range(0, rows, number):
            yield picture_rows.some_rows(batch, at, number)

    def input_settings(self) -> dict[str, Any]:
        """What becomes of a picture and a text before the model sees them, as plain values."""
        return picture_model.processor_settings(self.base, self.template)

    def save_inputs(self, folder: Path) -> None:
        """Write the processor's files, with the chat template that was trained with."""
        picture_model.save_processor(self.base, self.template, folder)
