"""Few-shot classes of texts: embeddings in which a class that nobody trained on is known by a few
examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import PREDICTION, Outputs, head_input
from fedpeft.core.types import Batch, Summed, Table, Tensors, Weighted
from fedpeft.errors import PlanError
from fedpeft.tasks import scoring
from fedpeft.tasks.loader import TOKENIZER, Loader
from fedpeft.tasks.pretrained import encoder_model
from fedpeft.tasks.prototypes import all_losses, batch_losses, episode_draws, episode_hits
from fedpeft.tasks.row_features import first_reasons
from fedpeft.tasks.text_classification import (
    MINILM,
    TOKENS,
    check_length,
    pad_tokens,
    resolve_name,
    shortened,
    tokenizer,
)

TASK = "few-shot learning"
GROUP, SPAN = "group", "span"
"""The columns of each text's class, and of the marked part of each token, from 1; 0 for none."""


@dataclass(frozen=True)
class FewShot:
    """−log of the probability of a text's class, by the distance to the mean embedding of each
    class of the batch, its own without the text itself: prototypical networks (arXiv:1703.05175).

    Nothing of the model belongs to a class, so that clients may hold different ones. A text alone
    of its class in a batch teaches nothing: take batches in which classes come twice. A text's loss
    depends on the others of its batch, so that no text has a gradient of its own.

    Held out, `accuracy` is that of `episodes` drawn episodes of `ways` classes, known by `shots`
    texts each. Give held-out texts of classes that nobody trains on, and data.label = "none": the
    data's own classes would have to be held by some client. An owner with fewer classes of
    so many texts has no accuracy. `loss` is the training loss of all held-out texts together.

    Attributes:
      model: "minilm", a folder or a hub name of an encoder.
      group: the column of the classes, of any values.
      marks: what opens and closes each part of a text that is embedded, such as ["[E1]", "[/E1]",
        "[E2]", "[/E2]"] for the two entities of a relation. An embedding is then the mean of the
        last layer over each part, side by side; without marks over the whole text. Texts that lack
        a part are left out and counted.
      max_length: tokens a text is cut to.
      scale: what multiplies squared distances of embeddings, which have length 1.
      ways, shots, queries, episodes: of the measured episodes, `queries` for each class.
      seed: of the episodes.

    Raises:
      ValueError: a value out of range.
      PlanError: no such model, or one that cannot take so many tokens.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    couples_examples: ClassVar[bool] = True
    compares_examples: ClassVar[bool] = True
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_LOGITS})
    model: str = MINILM
    group: str = GROUP
    marks: tuple[str, ...] = ()
    max_length: int = 128
    scale: float = 10.0
    ways: int = 5
    shots: int = 1
    queries: int = 5
    episodes: int = 500
    seed: int = 1

    def __post_init__(self) -> None:
        counts = ("max_length", "shots", "queries", "episodes")
        if small := [name for name in counts if getattr(self, name) < 1]:
            raise ValueError(f"{small[0]} must be at least 1, got {getattr(self, small[0])}")
        if self.ways < 2:
            raise ValueError(f"ways is a number of classes, at least 2, got {self.ways}")
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if len(self.marks) % 2 or not all(self.marks):
            raise ValueError(
                'marks open and close each part in turn, such as ["[E1]", "[/E1]"], got '
                f"{list(self.marks)}"
            )

    @property
    def base(self) -> str:
        """The folder, or the hub name, that `transformers` loads."""
        return resolve_name(self.model)

    @property
    def _parts(self) -> range:
        """The numbers of the marked parts."""
        return range(1, len(self.marks) // 2 + 1)

    @property
    def loader(self) -> Loader:
        """How `transformers` loads the models."""
        where = f"the tokens between {' and '.join(self.marks[:2])}, and so on" * bool(self.marks)
        usage = (
            'inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")',
            "states = model(**inputs).last_hidden_state",
            f"# an embedding is the mean of a text's states over {where or 'its tokens'}",
        )
        return Loader(
            "AutoModel",
            TOKENIZER,
            "feature-extraction",
            classifies=False,
            usage=usage,
            unit="texts",
        )

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """The classes of the data are no matter of the model's."""
        return encoder_model(self.base, pretrained)

    def unfit(self, table: Table) -> Mapping[str, Sequence[int]]:
        """The texts without a class, and those that lack a marked part within `max_length`."""
        if not len(table):
            return {}
        classes = scoring.column(table, self.group, TASK)
        gaps = {f"texts without {self.group!r}": torch.tensor([one is None for one in classes])}
        if self.marks:
            spans = self._read(table)[SPAN]
            whole = [(spans == part).any(1) for part in self._parts]
            why = f"texts without something between all marks in {self.max_length} tokens"
            gaps[why] = ~torch.stack(whole, 1).all(1)
        return first_reasons(gaps)

    def prepare(self, table: Table) -> Tensors:
        """`input_ids`, `span` (int32) and `attention_mask` (bool), (n, tokens of the longest), and
        `group` (n,), the number of each text's class in this table.

        Raises:
          DataError: a column is not there, or some rows have nothing in it.
        """
        values = scoring.column(table, self.group, TASK)
        # Classes are compared within one table alone, so that they need no common numbers.
        names = list(map(str, values.tolist() if isinstance(values, Tensor) else values))
        number = {name: k for k, name in enumerate(sorted(set(names)))}
        return {**self._read(table), GROUP: torch.tensor([number[name] for name in names])}

    def _read(self, table: Table) -> dict[str, Tensor]:
        check_length(self.model, self.base, self.max_length)
        texts = scoring.read_texts(table, "text", TASK)
        read = tokenizer(self.base)
        if not read.is_fast:
            raise PlanError(f"the tokenizer of {self.base!r} does not tell where its tokens lie")
        made = read(
            texts,
            truncation=True,
            max_length=self.max_length,
            return_offsets_mapping=True,
            split_special_tokens=True,
        )
        pad = read.pad_token_id or 0
        ids = [list(one) or [pad] for one in made["input_ids"]]
        spans = [
            self._spans(text, places) or [0]
            for text, places in zip(texts, made["offset_mapping"], strict=True)
        ]
        return {**pad_tokens(ids, pad), SPAN: pad_tokens(spans, 0)["input_ids"]}

    def _spans(self, text: str, places: Sequence[tuple[int, int]]) -> list[int]:
        """In which marked part each token lies, from 1; 0 for none."""
        found = [0] * len(places)
        for part, (opens, closes) in enumerate(zip(self.marks[::2], self.marks[1::2], strict=True)):
            _, _, after = text.partition(opens)
            inside, closed, _ = after.partition(closes)
            if not closed or not inside.strip():
                continue
            # Without the spaces: tokens of some vocabularies begin with the space before a word.
            start = text.index(opens) + len(opens) + len(inside) - len(inside.lstrip())
            end = start + len(inside.strip())
            for k, (first, last) in enumerate(places):
                if first < end and last > start:
                    found[k] = part + 1
        return found

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """The rows, cut to the longest text in the batch."""
        made = shortened(rows)
        span = rows[SPAN][:, : made["input_ids"].shape[1]].long()
        return {**made, SPAN: span, GROUP: rows[GROUP]}

    def example(self) -> Batch:
        """Two texts of one class."""
        inside = " a ".join(self.marks)
        table = Table({"text": [inside or "a"] * 2, self.group: ["a", "a"]})
        return {**self.batch(self.prepare(table), None), "mask": torch.ones(2)}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        """`prediction` (batch, features): the embeddings, of length 1."""
        with head_input(model, head) as seen:
            states = model(**{n: batch[n] for n in TOKENS if n in batch}).last_hidden_state
        masks = [batch["attention_mask"] > 0]
        if self.marks:
            masks = [batch[SPAN] == part for part in self._parts]
        means = [_mean(states, mask) for mask in masks]
        return {PREDICTION: normalize(torch.cat(means, -1), dim=-1), **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return batch_losses(*_columns(outputs, batch), self.scale)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
        """The loss and the episodes of all examples that are given; see `compares_examples`."""
        z, label, mask = _columns(outputs, batch)
        counted = (mask > 0).cpu()
        told = episode_hits(
            z.cpu()[counted], label.cpu()[counted], self.ways, self.shots, self.queries,
            episode_draws(self.seed), self.episodes,
        )  # fmt: skip
        right, asked = torch.zeros(len(z)), torch.zeros(len(z))
        right[counted], asked[counted] = told.totals, told.weights
        hits = Summed(right.to(z.device), asked.to(z.device))
        return {"loss": all_losses(z, label, mask, self.scale), "accuracy": hits}

    def check_sums(self, sums: Mapping[str, Weighted], examples: int) -> None:
        """Raises ValueError for more answers than the episodes ask for, or more right ones than
        answers."""
        told = sums.get("accuracy", Weighted(0.0, 0.0))
        most = self.episodes * self.ways * self.queries
        if not 0 <= told.total <= told.weight <= most:
            raise ValueError(
                f"its accuracy counts {told.total:g} right answers of {told.weight:g}, and its "
                f"episodes ask {most:,} questions"
            )


def _columns(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels and which examples count; all where the batch does not say."""
    label = batch[GROUP]
    mask = batch.get("mask")
    return outputs[PREDICTION].float(), label, torch.ones_like(label) if mask is None else mask


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of the states of some tokens, (batch, features); zero of none."""
    seen = mask[..., None].to(states.dtype)
    return (states * seen).sum(1) / seen.sum(1).clamp_min(1)
