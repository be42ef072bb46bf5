"""Language models that learn which of two answers is the better one: DPO (Rafailov et al., 2023,
arXiv:2305.18290) and IPO (Azar et al., 2023, arXiv:2310.12036)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, pad

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import COUNTED, LIKELIHOODS, Outputs, head_input
from fedpeft.core.types import Batch, Table, Tensors
from fedpeft.errors import unknown
from fedpeft.tasks.chat_templates import NAMED, OWN
from fedpeft.tasks.conversations import NotUnderstood, unfit_rows
from fedpeft.tasks.loader import LANGUAGE, Loader
from fedpeft.tasks.pairs import Pair, pair_at
from fedpeft.tasks.pretrained import check_causal, language_model
from fedpeft.tasks.rendering import Rendered, Renderer, tell_cut
from fedpeft.tasks.text_classification import check_length, padding_token, resolve_name
from fedpeft.tasks.token_rows import UNCOUNTED, check_rows, token_rows

LOSSES = ("dpo", "ipo")
MEASURED = 8
"""Pairs that are measured together."""


@dataclass(frozen=True)
class Preference:
    """A pair of answers to one prompt, the chosen one and the rejected one.

    Let log π be the sum of an answer's log-probabilities by the model in training, let log π_ref be
    that by the model that the run starts from, and let
    h = (log π(chosen) − log π_ref(chosen)) − (log π(rejected) − log π_ref(rejected)).
    The loss is −log σ(β·h) for "dpo" (arXiv:2305.18290, Eq. 7) and (h − 1/(2β))² for "ipo"
    (arXiv:2310.12036, Eq. 17). The reference is the base, also of a method that trains all of it,
    and in every round; where a method begins with a saved adapter (`init`), it is the base with
    that. A template makes the texts, and what counts is what the assistant says after the turns
    that both have in common.

    Measured are `loss`, `margin`, β·h, and `accuracy`, the share of pairs with h > 0; one with
    h = 0, as all have at first, counts one half.

    Attributes:
      model: a folder or hub name of a decoder.
      template: "own" for the tokenizer's chat template, "alpaca", "chatml", "llama3" or "vicuna".
      prompt, chosen, rejected: the columns: texts, or lists of messages. Where answers are lists of
        messages, they may begin with the prompt, and there may be no column of prompts.
      loss: "dpo" or "ipo".
      beta: β; the larger, the closer the model stays to the reference.
      max_length: tokens that a prompt with its answer is cut to; the end is lost.
      quantize: see `CausalLM`.

    Raises:
      ValueError: a value out of range.
      PlanError: no such model, or one that cannot take so many tokens.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "margin", "accuracy")
    model: str = "stories260k"
    template: str = "alpaca"
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    loss: str = "dpo"
    beta: float = 0.1
    max_length: int = 256
    quantize: str | None = None
    loader: ClassVar[Loader] = LANGUAGE
    compares_with_base: ClassVar[tuple[str, ...]] = (LIKELIHOODS,)
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_LOGITS})
    forbids: ClassVar[Mapping[Fact, str]] = {
        Fact.MOVES_START: "preference tuning compares with the base, and {other} {what}: take a "
        "method that changes nothing before it is trained, such as lora, ia3 or full"
    }

    def __post_init__(self) -> None:
        if self.template not in (OWN, *NAMED):
            raise ValueError(unknown("template", self.template, (OWN, *NAMED)))
        if self.loss not in LOSSES:
            raise ValueError(unknown("loss", self.loss, LOSSES))
        if not (self.beta > 0 and isfinite(self.beta)):
            raise ValueError(f"beta must be positive and finite, got {self.beta}")
        if self.quantize not in (None, "nf4"):
            raise ValueError(unknown("quantize", str(self.quantize), ("nf4",)))
        if self.max_length < 2:
            raise ValueError(f"max_length is a number of tokens, at least 2, got {self.max_length}")

    @property
    def base(self) -> str:
        """The folder, or the hub name, that `transformers` loads."""
        return resolve_name(self.model)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """The classes of the data, if they have some, are no matter of the model's."""
        model = language_model(self.base, pretrained, self.quantize)
        check_causal(self.model, model)
        return model

    def unfit(self, table: Table) -> Mapping[str, list[int]]:
        """By reason the pairs of which nothing is learned."""
        render = self._renderer
        _ = render.template  # what is wrong with it is no row's failure

        def read(row: int) -> None:
            both = _render_pair(render, self._pair(table, row))
            if not all(any(one.said[1:]) for one in both):
                raise NotUnderstood(f"have an answer beyond max_length = {render.max_length}")

        return unfit_rows(table, read, "pairs of answers")

    def prepare(self, table: Table) -> Tensors:
        """`input_ids` and `labels` (int32), `attention_mask` (bool), all (n, 2, tokens of the
        longest), the chosen answer first; `label` if any.

        `labels` are the tokens themselves where they count, else -100.
        """
        check_length(self.model, self.base, self.max_length)
        render = self._renderer
        texts = [
            one for row in range(len(table)) for one in _render_pair(render, self._pair(table, row))
        ]
        tell_cut(texts, self.max_length, "answers with their prompts")
        made = _as_rows(texts, padding_token(self.base))
        ids, seen = (made[name].flatten(0, 1) for name in ("input_ids", "attention_mask"))
        check_rows(self.model, self.base, ids, seen)
        return made if table.labels is None else {**made, "label": table.labels}

    def openings(self, table: Table, number: int) -> list[tuple[list[int], str]]:
        """The tokens up to the answers, and the chosen answer, for the first pairs."""
        pairs = [self._pair(table, row) for row in range(min(number, len(table)))]
        return [
            (self._renderer.opening(pair.chosen[: pair.common]), pair.chosen[pair.common].content)
            for pair in pairs
        ]

    def _pair(self, table: Table, row: int) -> Pair:
        return pair_at((self.prompt, self.chosen, self.rejected), table, row)

    @property
    def _renderer(self) -> Renderer:
        return Renderer(self.base, self.template, self.max_length)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """The rows, cut to the longest text in the batch; all other tensors stay as they are."""
        longest = int(rows["attention_mask"].sum(-1).max())
        tokens = ("input_ids", "attention_mask", "labels")
        rest = {name: x for name, x in rows.items() if name not in (*tokens, "label")}
        return {**rest, **{name: rows[name][..., :longest].long() for name in tokens}}

    def example(self) -> Batch:
        """A pair of words."""
        texts = [Rendered([token, token], [False, True]) for token in (0, 1)]
        return self.batch(_as_rows(texts, 0), None)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        """`likelihoods` (n, 2); with `head` also `features` and `counted`, the tokens of both texts
        one after the other."""
        pairs = len(batch["input_ids"])
        ids, seen, labels = (
            batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask", "labels")
        )
        with head_input(model, head) as found:
            logits: Tensor = model(input_ids=ids, attention_mask=seen).logits
        each = cross_entropy(
            logits[:, :-1].mT, labels[:, 1:], reduction="none", ignore_index=UNCOUNTED
        )
        outputs = {LIKELIHOODS: -each.sum(1).view(pairs, 2)}
        if head is None:
            return outputs
        counted = pad(labels[:, 1:], (0, 1), value=UNCOUNTED) != UNCOUNTED
        features = {name: x.reshape(pairs, -1, x.shape[-1]) for name, x in found.items()}
        return {**outputs, COUNTED: counted.view(pairs, -1), **features}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        """The loss of each pair, (n,); `base/likelihoods` of the batch is the reference."""
        gain = _gain(outputs, batch)
        if self.loss == "dpo":
            return -logsigmoid(self.beta * gain)
        return (gain - 1 / (2 * self.beta)).square()

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        gain = _gain(outputs, batch)
        return {
            "loss": self.losses(outputs, batch),
            "margin": self.beta * gain,
            "accuracy": (1 + gain.sign()) / 2,
        }

    def chunks(self, batch: Batch) -> Iterator[Batch]:
        """Some pairs at a time, as long as the longest text of them."""
        for at in range(0, len(batch["labels"]), MEASURED):
            yield self.batch({name: x[at : at + MEASURED] for name, x in batch.items()}, None)


def _gain(outputs: Outputs, batch: Batch) -> Tensor:
    """h of each pair, (n,)."""
    ratio = outputs[LIKELIHOODS] - batch[f"base/{LIKELIHOODS}"]
    return ratio[:, 0] - ratio[:, 1]


def _render_pair(render: Renderer, pair: Pair) -> list[Rendered]:
    return [render(turns, pair.common) for turns in (pair.chosen, pair.rejected)]


def _as_rows(texts: Sequence[Rendered], padding: int) -> dict[str, Tensor]:
    """Pairs of texts, one after the other, as rows of two."""
    counted = [[said and place > 0 for place, said in enumerate(one.said)] for one in texts]
    made = token_rows([one.ids for one in texts], counted, padding)
    return {name: x.view(-1, 2, x.shape[1]) for name, x in made.items()}
