"""Language models that read left to right, tuned on plain texts, on instructions with their
answers, or on conversations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from fedpeft.compute.token_losses import token_losses
from fedpeft.core.outputs import COUNTED, LOGITS, TOKEN_LOSSES, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors
from fedpeft.errors import DataError, unknown
from fedpeft.registry import unwritten
from fedpeft.tasks import scoring
from fedpeft.tasks.chat import CHAT_TEMPLATES, Chats
from fedpeft.tasks.instructions import TEMPLATES
from fedpeft.tasks.loader import LANGUAGE, Loader
from fedpeft.tasks.pretrained import check_causal, language_model
from fedpeft.tasks.text_classification import check_length, padding_token, resolve_name, tokenizer
from fedpeft.tasks.token_rows import (
    PACKS,
    SEGMENT,
    UNCOUNTED,
    block_diagonal,
    check_packing,
    check_rows,
    pack_rows,
    sum_by_example,
    token_rows,
)

LOSS_ON = ("all", "answer")
QUANTIZE = ("nf4", "bfloat16")
SHORTEST = 4
"""Tokens of the shortest example that has room for a beginning, an answer of one token, and an
end."""
OPENING = 8
"""Tokens of a plain text that a sample goes on from; of a short one half."""
MEASURED = 16
"""Examples that are measured together: an output is as large as the vocabulary for each token."""
MEASURED_TOKENS = 2**12
"""Their tokens, with those that fill them up, unless one example alone has more."""


@dataclass(frozen=True)
class CausalLM:
    """Cross entropy of each token given those before it. Of one example, the mean over its counted
    tokens.

    An example begins with the tokenizer's token for that, if it has one, and ends with the other
    unless it is cut. In training each example counts the same, as everywhere; held-out examples
    count by their tokens, so that `loss` is the mean over all held-out tokens and `perplexity` its
    exponential.

    Attributes:
      model: a folder or hub name of a decoder.
      template: "none" for texts, in the column `text`; "alpaca" for instructions; "own", for the
        tokenizer's chat template, "chatml", "llama3" or "vicuna" for conversations. Where there is
        a column of conversations, "alpaca" is for these too; where there is none, a conversation is
        made of an instruction and its answer.
      instruction, context, response: the columns of instructions; there may be no context, or an
        empty one.
      loss_on: "all" tokens but the first, or those of the "answer": of a conversation all that the
        assistant says.
      max_length: tokens an example is cut to. A text loses its end, and so does a conversation. Of
        an instruction, the answer keeps at least half of the room and loses its end; what stands
        before it loses its beginning.
      special_tokens: whether what is written in a text like a special token, e.g. "</s>" or
        "[SEP]", is one; left out, it is text. Set it where texts were made from a chat template.
      quantize: "nf4" holds the frozen linear layers in four bits (QLoRA, arXiv:2305.14314), through
        `bitsandbytes`; "bfloat16" those and the embeddings in 16 bits, mapped from the model's own
        file where that has them so; left out: in float32.
      messages: the column of conversations: lists of {role, content}, or JSON of such lists.
      packing: whether a training batch's examples lie in as few rows of `max_length` tokens as they
        fit in, each seeing itself alone; the losses are the same, without most of the padding.

    Raises:
      ValueError: a value out of range.
      PlanError: no such model, one that cannot take so many tokens, or one that would mix the
        examples of a row.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "perplexity")
    model: str = "stories260k"
    template: str = "none"
    instruction: str = "instruction"
    context: str = "context"
    response: str = "response"
    loss_on: str = "all"
    max_length: int = 256
    quantize: str | None = None
    messages: str = unwritten("messages")
    packing: bool = unwritten(False)
    special_tokens: bool = unwritten(False)
    loader: ClassVar[Loader] = LANGUAGE

    def __post_init__(self) -> None:
        if self.template not in (known := sorted({*TEMPLATES, *CHAT_TEMPLATES})):
            raise ValueError(unknown("template", self.template, known))
        if self.loss_on not in LOSS_ON:
            raise ValueError(unknown("loss_on", self.loss_on, LOSS_ON))
        if self.quantize not in (None, *QUANTIZE):
            raise ValueError(unknown("quantize", str(self.quantize), QUANTIZE))
        if self.loss_on == "answer" and self.template == "none":
            raise ValueError('loss_on = "answer" needs a template: a plain text has no answer')
        if self.max_length < SHORTEST:
            raise ValueError(
                f"max_length is a number of tokens, at least {SHORTEST}, got {self.max_length}"
            )

    @property
    def offers(self) -> frozenset[Any]:
        return PACKS if self.packing else frozenset()

    @property
    def base(self) -> str:
        """The folder, or the hub name, that `transformers` loads."""
        return resolve_name(self.model)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """The classes of the data, if they have some, are no matter of the model's."""
        model = language_model(self.base, pretrained, self.quantize)
        check_causal(self.model, model)
        if self.packing:
            check_packing(self.model, model, self.max_length)
        return model

    def unfit(self, table: Table) -> Mapping[str, list[int]]:
        """By reason the conversations of which nothing is learned."""
        return self._chat.unfit(table) if self._chats(table) else {}

    def prepare(self, table: Table) -> Tensors:
        """`input_ids` and `labels` (int32), `attention_mask` (bool), all (n, tokens of the
        longest); `label` if any.

        `labels` are the tokens themselves where they count, else -100.
        """
        check_length(self.model, self.base, self.max_length)
        if self._chats(table):
            made = self._chat.rows(table, self.loss_on == "answer")
        else:
            made = self._rows(self._pairs(table))
        ids, seen = made["input_ids"], made["attention_mask"]
        check_rows(self.model, self.base, ids, seen)
        return made if table.labels is None else {**made, "label": table.labels}

    def _rows(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        cut = self._tokens(pairs)
        ids = [[*prompt, *answer] for prompt, answer in cut]
        unasked = [len(prompt) if self.loss_on == "answer" else 1 for prompt, _ in cut]
        counted = [
            [place >= first for place in range(len(one))]
            for one, first in zip(ids, unasked, strict=True)
        ]
        return token_rows(ids, counted, padding_token(self.base))

    def _chats(self, table: Table) -> bool:
        """Whether these rows are learned from as conversations."""
        if self.template in TEMPLATES:
            return self.template in CHAT_TEMPLATES and self.messages in table.columns
        return True

    @property
    def _chat(self) -> Chats:
        columns = (self.messages, self.instruction, self.context, self.response)
        return Chats(self.base, self.template, self.max_length, *columns)

    def _pairs(self, table: Table) -> list[tuple[str, str]]:
        """What is given and what is learned, of each example."""
        if self.template == "none":
            return [("", text) for text in scoring.column(table, "text", "a language model")]
        given, answers = (
            scoring.column(table, name, f"the template {self.template!r}")
            for name in (self.instruction, self.response)
        )
        contexts = table.columns.get(self.context, [None] * len(table))
        if missing := sum(not text for text in given):
            raise DataError(f"{missing} of {len(table)} examples have no {self.instruction!r}")
        make = TEMPLATES[self.template]
        return [
            (make(*one), answer or "")
            for *one, answer in zip(given, contexts, answers, strict=True)
        ]

    def openings(self, table: Table, number: int) -> list[tuple[list[int], str]]:
        """The tokens to go on from, and the text that follows, for the first rows: a prompt, or
        some tokens of a text."""
        if self._chats(table):
            return self._chat.openings(table, number)
        read = ("text", self.instruction, self.context, self.response)
        pairs = self._pairs(
            Table({name: x[:number] for name, x in table.columns.items() if name in read})
        )
        if self.template != "none":
            return [
                (ids, answer)
                for (ids, _), (_, answer) in zip(self._tokens(pairs), pairs, strict=True)
            ]
        begun = [(ids, text, min(OPENING, len(text) // 2)) for ids, text in self._tokens(pairs)]
        return [
            (
                [*ids, *text[:k]],
                str(tokenizer(self.base).decode(text[k:], skip_special_tokens=True)),
            )
            for ids, text, k in begun
        ]

    def _tokens(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """What is given and what is learned as tokens, with those that begin and end an example,
        cut to fit."""
        read = tokenizer(self.base)
        first, last = (
            [] if one is None else [one] for one in (read.bos_token_id, read.eos_token_id)
        )

        def tokens(texts: Sequence[str]) -> list[list[int]]:
            made = read(
                list(texts),
                add_special_tokens=False,
                return_attention_mask=False,
                verbose=False,
                split_special_tokens=not self.special_tokens,
            )
            return list(made["input_ids"])

        before, after = (tokens(texts) for texts in zip(*pairs, strict=True))
        return [
            self._cut(first, prompt, [*answer, *last])
            for prompt, answer in zip(before, after, strict=True)
        ]

    def _cut(
        self, first: list[int], prompt: list[int], answer: list[int]
    ) -> tuple[list[int], list[int]]:
        """What is given, with the token that begins it, and what follows, so long that both have
        room."""
        room = self.max_length - len(first)
        kept = min(len(answer), max(room - len(prompt), room // 2))
        return [*first, *prompt[max(0, len(prompt) - (room - kept)) :]], answer[:kept]

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """The rows, cut to the longest example in the batch; packed in training, where this is
        asked for."""
        if self.packing and generator is not None:
            return pack_rows(rows, self.max_length)
        longest = int(rows["attention_mask"].sum(1).max())
        return {
            name: rows[name][:, :longest].long()
            for name in ("input_ids", "attention_mask", "labels")
        }

    def example(self) -> Batch:
        """What is given and what is learned, of a word each."""
        return self.batch(self._rows([("a", "a")]), None)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        given = {"input_ids": batch["input_ids"]}
        if SEGMENT in batch:
            given["attention_mask"] = block_diagonal(model, batch[SEGMENT])
            given["position_ids"] = batch["position_ids"]
        else:
            given["attention_mask"] = batch["attention_mask"]
        with head_input(model, head) as seen:
            logits: Tensor = model(**given).logits
        # the logits after a token are judged by the next one, and those after the last by none
        counted = pad(batch["labels"][:, 1:], (0, 1), value=UNCOUNTED) != UNCOUNTED
        return {LOGITS: logits, COUNTED: counted, **seen}

    def forward_losses(self, model: nn.Module, batch: Batch) -> Outputs:
        """The losses of a large batch's tokens in place of their logits."""
        if SEGMENT in batch:  # packed: its masks and positions are other ones
            return self.forward(model, batch)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        each = token_losses(model, inputs, batch["labels"][:, 1:], UNCOUNTED)
        return self.forward(model, batch) if each is None else {TOKEN_LOSSES: each}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        total, counted = _sums(outputs, batch)
        return total / counted.clamp_min(1)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Summed]:
        total, counted = _sums(outputs, batch)
        return {
            "loss": Summed(total, counted),
            "perplexity": Summed(total, counted, geometric=True),
        }

    def chunks(self, batch: Batch) -> Iterator[Batch]:
        """Some examples at a time, as long as the longest of them."""
        rows, tokens = batch["labels"].shape
        some = min(MEASURED, max(1, MEASURED_TOKENS // max(1, tokens)))
        for at in range(0, rows, some):
            yield self.batch({name: x[at : at + some] for name, x in batch.items()}, None)


def _sums(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of each example the sum of its counted tokens' losses and their number, (batch,)."""
    wanted = batch["labels"][:, 1:]
    each = _token_losses(outputs, wanted)
    number = (wanted != UNCOUNTED).to(each.dtype)
    if SEGMENT not in batch:
        return each.sum(1), number.sum(1)
    # the loss of a token stands where the one before it is, which is of the same example
    total, counted = (sum_by_example(pad(x, (0, 1)), batch) for x in (each, number))
    return total, counted


def _token_losses(outputs: Outputs, wanted: Tensor) -> Tensor:
    """The cross entropy of each token but the first, (rows, tokens - 1)."""
    if TOKEN_LOSSES in outputs:
        return outputs[TOKEN_LOSSES]
    logits = outputs[LOGITS][:, :-1].mT
    return cross_entropy(logits, wanted, reduction="none", ignore_index=UNCOUNTED)
