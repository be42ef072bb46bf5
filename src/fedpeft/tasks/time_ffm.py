"""Time-FFM: forecasts by a frozen language model that reads patches of a series (Liu et al., 2024,
arXiv:2405.14252)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fedpeft.compute.trainable import mark_new_layers
from fedpeft.core.facts import Fact
from fedpeft.core.outputs import PREDICTION, Outputs, head_input
from fedpeft.core.types import Batch, Table, Tensors
from fedpeft.errors import PlanError
from fedpeft.tasks.forecasting import Forecasting
from fedpeft.tasks.pretrained import config_of, encoder_model

EPSILON = 1e-5
"""Added to the variance of a window."""


class PromptAdaption(nn.Module):
    """Chooses of all prototypes of words those that fit a window's patches (Section 3.3).

    A prompt is made of the keys of the chosen ones; each head chooses for itself, by its attention
    over all patches.

    The choice has no gradient, so that `query` is never trained.
    """

    def __init__(self, words: int, width: int, prototypes: int, heads: int, chosen: int) -> None:
        super().__init__()
        self.words = nn.Linear(words, prototypes)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.heads, self.chosen = heads, chosen

    def forward(self, patches: Tensor, vocabulary: Tensor) -> Tensor:
        """From patches (n, patches, width) and the words' embeddings (words, width) to prompts (n,
        chosen, width)."""
        n, _, width = patches.shape
        size = width // self.heads
        prototypes = self.words(vocabulary.T).T
        keys = self.key(prototypes).view(-1, self.heads, size)
        queries = self.query(patches).view(n, -1, self.heads, size)
        scores = torch.einsum("blhe,she->bhls", queries, keys) / sqrt(size)
        fits = scores.softmax(-1).sum(2)
        places = fits.topk(self.chosen).indices[..., None].expand(-1, -1, -1, size)
        every = keys.permute(1, 0, 2)[None].expand(n, -1, -1, -1)
        chosen = every.gather(2, places).permute(0, 2, 1, 3)
        prompts: Tensor = self.out(chosen.reshape(n, self.chosen, width))
        return prompts


class WordForecaster(nn.Module):
    """A language model with a front end of patches, prompts of words, and a head for the horizon.

    A window is standardised by its own mean and spread, and its forecast is scaled back.
    """

    def __init__(self, lm: Any, patch: tuple[int, int], context: int, horizon: int, **prompt: int):
        super().__init__()
        words, width = lm.get_input_embeddings().weight.shape
        self.lm = lm
        self.length, self.stride = patch
        self.patches = nn.Linear(self.length, width)
        self.prompt = PromptAdaption(words, width, **prompt)
        tokens = prompt["chosen"] + count_patches(context, *patch)
        self.head = nn.Linear(tokens * int(lm.config.hidden_size), horizon)

    def forward(self, past: Tensor) -> Tensor:
        """From (n, context) to (n, horizon)."""
        mean = past.mean(1, keepdim=True)
        spread = (past.var(1, keepdim=True, correction=0) + EPSILON).sqrt()
        patches = self.patches(self.cut((past - mean) / spread))
        vocabulary = self.lm.get_input_embeddings().weight.float()
        embedded = torch.cat([self.prompt(patches, vocabulary), patches], 1)
        read = self.lm(inputs_embeds=embedded).last_hidden_state
        forecast: Tensor = self.head(read.float().flatten(1)) * spread + mean
        return forecast

    def cut(self, window: Tensor) -> Tensor:
        """Patches (n, patches, length); the last value goes on where the last patch has no more."""
        n = count_patches(window.shape[1], self.length, self.stride)
        more = (n - 1) * self.stride + self.length - window.shape[1]
        return pad(window, (0, more), mode="replicate").unfold(1, self.length, self.stride)


def count_patches(context: int, length: int, stride: int) -> int:
    """How many patches see all steps of a window."""
    return 1 + ceil(max(0, context - length) / stride)


@dataclass(frozen=True)
class TimeFfm:
    """The mean squared error of the `horizon` steps that follow `context` steps, told by a language
    model of `transformers` behind a front end of patches, with prompts of words before them.

    As published the language model is frozen, the front end and the prompts travel, and each client
    has a head of its own: method = { name = "named", trains = ["patches.*", "prompt.*"] } and
    personal = ["head.*"]. Metrics are those of "forecast", and so are the data.

    Attributes:
      model: a folder or hub name of a language model.
      context, horizon: the steps of past and future; the data must have the same.
      patch_length, patch_stride: of the patches, in steps.
      prototypes: how many mixtures of all words' embeddings there are to choose from.
      prompts: how many each window is given.
      heads: of the attention that chooses them; they divide the embedding's width.
      random: whether the language model has random weights, the same at all clients: what the
        pre-training is worth. A folder then needs no weights.

    Raises:
      ValueError: a value out of range.
      PlanError: no such model, or none that reads embeddings.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "mae")
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_LOGITS})
    reads_classes: ClassVar[bool] = False
    model: str
    context: int = 96
    horizon: int = 24
    patch_length: int = 16
    patch_stride: int = 16
    prototypes: int = 100
    prompts: int = 12
    heads: int = 8
    random: bool = False

    def __post_init__(self) -> None:
        lengths = (self.context, self.horizon, self.patch_length, self.patch_stride, self.heads)
        if min(lengths) < 1:
            raise ValueError(
                "context, horizon, patch_length, patch_stride and heads are at least 1, got "
                f"{', '.join(map(str, lengths))}"
            )
        if not 1 <= self.prompts <= self.prototypes:
            raise ValueError(f"prompts are 1 to prototypes = {self.prototypes}, got {self.prompts}")

    @property
    def windows(self) -> Forecasting:
        """What a forecast is, whatever the model."""
        return Forecasting(context=self.context, horizon=self.horizon)

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        config = config_of(self.model)
        _check_config(config, self)
        lm: Any = encoder_model(self.model, pretrained and not self.random)
        _check_embeddings(lm, self)
        lm.config.use_cache = False
        patch = (self.patch_length, self.patch_stride)
        prompt = {"prototypes": self.prototypes, "heads": self.heads, "chosen": self.prompts}
        made = WordForecaster(lm, patch, self.context, self.horizon, **prompt)
        mark_new_layers(made, head="head")
        return made

    def prepare(self, table: Table) -> Tensors:
        """Raises DataError: the data are no windows, or windows of another length."""
        return self.windows.prepare(table)

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        return self.windows.batch(rows, generator)

    def example(self) -> Batch:
        """One window of a rising line."""
        return self.windows.example()

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        with head_input(model, head) as seen:
            forecast = model(batch["past"])
        return {PREDICTION: forecast, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self.windows.losses(outputs, batch)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return self.windows.metrics(outputs, batch)

    def curves(self, outputs: Outputs, batch: Batch) -> Tensors:
        """What a report draws, on the scale of the data."""
        return self.windows.curves(outputs, batch)


def _check_config(config: Any, task: TimeFfm) -> None:
    """Raises PlanError for a model that reads no texts, or too few tokens."""
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "vocab_size", None):
        raise PlanError(
            f"model {task.model!r} ({config.model_type}) is no language model of one stack of "
            "layers: name one such as GPT-2 or Llama"
        )
    tokens = task.prompts + count_patches(task.context, task.patch_length, task.patch_stride)
    most = getattr(config, "max_position_embeddings", None) or tokens
    if tokens > most:
        raise PlanError(
            f"{task.prompts} prompts and the patches of {task.context} steps are {tokens} tokens, "
            f"and model {task.model!r} reads {most}: raise task.patch_length and task.patch_stride"
        )


def _check_embeddings(lm: Any, task: TimeFfm) -> None:
    """Raises PlanError where prompts cannot be mixed of the model's words."""
    words = lm.get_input_embeddings()
    if not isinstance(words, nn.Embedding):
        raise PlanError(
            f"model {task.model!r} has no table of words' embeddings: name a language model"
        )
    if words.embedding_dim % task.heads:
        raise PlanError(
            f"task.heads = {task.heads} does not divide the {words.embedding_dim} numbers of an "
            f"embedding of {task.model!r}: set it to a divisor"
        )
