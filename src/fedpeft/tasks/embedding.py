"""Embeddings of texts: those that belong together come to lie together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import PREDICTION, Outputs, head_input
from fedpeft.core.tensors import add_prefix, take_prefix
from fedpeft.core.types import Batch, Table, Tensors
from fedpeft.tasks import scoring
from fedpeft.tasks.loader import TOKENIZER, Loader
from fedpeft.tasks.pretrained import config_of, encoder_model
from fedpeft.tasks.text_classification import (
    MINILM,
    TOKENS,
    check_length,
    read_tokens,
    resolve_name,
    shortened,
    tokenizer,
)
from fedpeft.tasks.vocabulary import check_tokens

SECOND = "second"
"""What the names of the second texts' columns begin with."""
MODULES = ("Transformer", "Pooling", "Normalize")
"""What `sentence-transformers` makes an embedding of, in this order."""


@dataclass(frozen=True)
class Embedding:
    """−log(exp(s·cos(aᵢ, bᵢ)) / Σⱼ exp(s·cos(aᵢ, bⱼ))) for the pairs (aᵢ, bᵢ) of a batch: each
    second text is to be told from those of the other pairs (Henderson et al., 2017,
    arXiv:1705.00652, section 4.2, with the scaled cosine of `sentence-transformers`).

    An embedding is the mean of the last layer over the tokens of a text. So a pair's loss depends
    on the others of its batch: larger batches are harder, a batch of one pair teaches nothing, and
    no pair has a gradient of its own, which rules out DP-SGD. A second text that is the same as
    another one's is no counterexample of it. Held out, `accuracy` is how often a text is nearest to
    its own second text among those of its batch of up to 256 pairs, and `mrr` the mean of one over
    that one's place. What is as near as the own one counts as nearer, so that a model that gives
    all texts the same vector finds nothing.

    Attributes:
      model: "minilm", a folder or a hub name of an encoder.
      first, second: the columns of the two texts.
      max_length: tokens a text is cut to.
      scale: s.

    Raises:
      ValueError: a value out of range.
      PlanError: no such model, or one that cannot take so many tokens.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "mrr")
    model: str = MINILM
    first: str = "anchor"
    second: str = "positive"
    max_length: int = 128
    scale: float = 20.0
    couples_examples: ClassVar[bool] = True
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_LOGITS})
    loader: ClassVar[Loader] = Loader(
        "AutoModel",
        TOKENIZER,
        "sentence-similarity",
        classifies=False,
        usage=(
            "import torch",
            'inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")',
            'seen = inputs["attention_mask"][..., None]',
            "means = (model(**inputs).last_hidden_state * seen).sum(1) / seen.sum(1)",
            "embeddings = torch.nn.functional.normalize(means, dim=-1)",
            "# or with sentence-transformers: SentenceTransformer(folder).encode(texts)",
        ),
        unit="pairs",
    )

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length is a number of tokens, at least 1, got {self.max_length}")
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be positive and finite, got {self.scale}")

    @property
    def base(self) -> str:
        """The folder, or the hub name, that `transformers` loads."""
        return resolve_name(self.model)

    @property
    def extra_files(self) -> Mapping[str, Any]:
        """What `sentence-transformers` reads beside the model, by path, as plain values."""
        kind = "sentence_transformers.models"
        paths = ("", "1_Pooling", "2_Normalize")
        modules = [
            {"idx": k, "name": str(k), "path": paths[k], "type": f"{kind}.{name}"}
            for k, name in enumerate(MODULES)
        ]
        width = int(config_of(self.base).get_text_config().hidden_size)
        pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
        others = ("cls_token", "max_tokens", "mean_sqrt_len_tokens")
        return {
            "modules.json": modules,
            "1_Pooling/config.json": pooling | {f"pooling_mode_{one}": False for one in others},
            "sentence_bert_config.json": {
                "max_seq_length": self.max_length,
                "do_lower_case": False,
            },
        }

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """The classes of the data, if they have some, are no matter of the model's."""
        return encoder_model(self.base, pretrained)

    def prepare(self, table: Table) -> Tensors:
        """`input_ids` (int32) and `attention_mask` (bool), both (n, tokens of the longest), and the
        same of the second texts as `second/input_ids` and so on; `label` if any.

        Raises:
          DataError: a column is not there, or some rows have nothing in it.
        """
        check_length(self.model, self.base, self.max_length)
        sides = [
            read_tokens(self.base, self.max_length, scoring.read_texts(table, name, "embedding"))
            for name in (self.first, self.second)
        ]
        for side in sides:
            ids, seen = side["input_ids"], side["attention_mask"]
            check_tokens(self.model, self.base, tokenizer(self.base), ids, seen)
        made = {**sides[0], **add_prefix(SECOND, sides[1])}
        return made if table.labels is None else {**made, "label": table.labels}

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """Each side as long as its longest text in the batch."""
        return {**shortened(rows), **add_prefix(SECOND, shortened(take_prefix(SECOND, rows)))}

    def example(self) -> Batch:
        """Two pairs of a word or two."""
        sides = [
            read_tokens(self.base, self.max_length, texts) for texts in (["a", "b"], ["c d"] * 2)
        ]
        return self.batch({**sides[0], **add_prefix(SECOND, sides[1])}, None)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        """`prediction` (batch, 2, features): the embeddings of both texts, of length 1."""
        with head_input(model, head):
            sides = [_embed(model, one) for one in (batch, take_prefix(SECOND, batch))]
        return {PREDICTION: torch.stack(sides, 1)}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        scores = self._scores(outputs, batch)
        own = torch.arange(len(scores), device=scores.device)
        return cross_entropy(scores, own, reduction="none")

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        scores = self._scores(outputs, batch)
        own = scores.diagonal()[:, None]
        place = (scores >= own).sum(1)  # its own text is one of these
        return {
            "loss": self.losses(outputs, batch),
            "accuracy": (place == 1).float(),
            "mrr": 1 / place,
        }

    def _scores(self, outputs: Outputs, batch: Batch) -> Tensor:
        """s·cos of each first text with each second one, (batch, batch); −∞ for a second text that
        fills the batch up, or is the same as a pair's own."""
        first, second = outputs[PREDICTION].float().unbind(1)
        ids = batch[f"{SECOND}/input_ids"]
        left_out = (ids[:, None] == ids[None]).all(-1)
        if "mask" in batch:
            left_out = left_out | (batch["mask"] == 0)
        own = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        return (self.scale * first @ second.T).masked_fill(left_out & ~own, float("-inf"))


def _embed(model: nn.Module, tokens: Tensors) -> Tensor:
    """The mean of the last layer over the tokens of each text, of length 1, (batch, features)."""
    read = {name: tokens[name] for name in TOKENS if name in tokens}
    last: Tensor = model(**read).last_hidden_state
    seen = read["attention_mask"][..., None].to(last.dtype)
    return normalize((last * seen).sum(1) / seen.sum(1).clamp_min(1), dim=-1)
