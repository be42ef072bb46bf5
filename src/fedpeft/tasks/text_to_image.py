"""Pictures from captions: a latent diffusion model whose denoiser is tuned (Rombach et al., 2022,
arXiv:2112.10752)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedpeft.compute.trainable import tensors_of
from fedpeft.core.facts import Fact
from fedpeft.core.outputs import PREDICTION, Outputs, head_input
from fedpeft.core.seeds import generator as stream
from fedpeft.core.tensors import add_prefix
from fedpeft.core.types import Batch, Table, Tensors
from fedpeft.errors import DataError, PlanError
from fedpeft.tasks import scoring
from fedpeft.tasks.diffusion import (
    PictureAutoencoder,
    autoencoder,
    caption_tokenizer,
    denoiser,
    denoiser_config,
    latents_of,
    read_captions,
    read_schedule,
    scheduler_config,
    text_encoder,
)
from fedpeft.tasks.loader import DENOISER, Loader
from fedpeft.tasks.taef2 import Taef2
from fedpeft.tasks.text_classification import tokenizer_settings

MEASURED = 16
"""Examples that are measured together."""


@dataclass(frozen=True)
class TextToImage:
    """Mean squared error of what the denoiser tells of a noisy latent (Ho et al., 2020,
    arXiv:2006.11239).

    Of one example in training ‖f(√ᾱ_t·x + √(1 − ᾱ_t)·ε, t, caption) − told‖² / entries, with t
    uniform and ε normal, drawn again each time; `told` is ε or what else the model's scheduler
    says. A held-out example is measured at times and with noise of its own that never change, so
    that losses compare between rounds, runs and seeds.

    The autoencoder and the text encoder stay as they are: what they make of an example is computed
    once. Pictures are cut to a square around their middle; the autoencoder's mean is taken; no
    caption is left out.

    Attributes:
      model: a folder or hub name of a model as `diffusers` saves it, of the kind of Stable
        Diffusion 1 and 2.
      vae: a folder of another autoencoder, of `diffusers` or TAEF2; empty for the model's own.
      size: pixels a side; 0 for what the model was trained with.
      measured_at: times, evenly spread, at which a held-out example is measured.

    Raises:
      ValueError: a value out of range.
    """

    model: str
    vae: str = ""
    size: int = 0
    measured_at: int = 4
    loader: ClassVar[Loader] = DENOISER
    measures: ClassVar[tuple[str, ...]] = ("loss",)
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_LOGITS})

    def __post_init__(self) -> None:
        if self.size < 0 or self.measured_at < 1:
            raise ValueError(
                f"size must not be negative and measured_at at least 1, got {self.size} and "
                f"{self.measured_at}"
            )

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """The denoiser; the classes of the data, if they have some, are no matter of its."""
        made: nn.Module = denoiser(self.model, pretrained)
        return made

    def prepare(self, table: Table) -> Tensors:
        """`latent` (n, c, h, w), `caption` (n, tokens, width), `row` (n,) for the held-out noise;
        `label` if any.

        Raises:
          DataError: there are no pictures or captions, one is empty or cannot be read.
          PlanError: the model cannot be read, or its parts do not fit together.
        """
        pictures = scoring.column(table, "image", "text to image")
        captions = [text or "" for text in scoring.column(table, "text", "text to image")]
        if missing := sum(not text.strip() for text in captions):
            raise DataError(
                f"{missing} of {len(captions)} pictures have no caption: "
                "leave them out, as data.where can, or set data.text to another column"
            )
        latent = latents_of(pictures, *self.encoding())
        rows = {
            "latent": latent,
            "caption": read_captions(self.model, captions),
            "row": torch.arange(len(latent)),
        }
        return rows if table.labels is None else {**rows, "label": table.labels}

    def encoding(self) -> tuple[int, PictureAutoencoder | Taef2]:
        """Pixels a side, and the autoencoder; all parts of the model are looked at.

        Raises:
          PlanError: the model cannot be read, or does not fit the autoencoder or the size.
        """
        config, module = denoiser_config(self.model), autoencoder(self.model, self.vae)
        read_schedule(self.model)
        if (wanted := config["in_channels"]) != module.channels:
            raise PlanError(
                f"the denoiser of {self.model!r} takes {wanted} channels, "
                f"the autoencoder {self.vae or self.model!r} gives {module.channels}: "
                "set task.vae to the one that the denoiser was trained with"
            )
        size = self.size or config["sample_size"] * module.factor
        if size % module.factor:
            raise PlanError(
                f"size = {size} is no multiple of {module.factor}, the factor by which the "
                "autoencoder downsamples"
            )
        return size, module

    def beside(self) -> dict[str, Tensor]:
        """The weights of the parts that make examples of captions and pictures, which no method
        trains."""
        parts = {"text_encoder": text_encoder(self.model), "vae": autoencoder(self.model, self.vae)}
        return {
            n: x
            for name, part in parts.items()
            for n, x in add_prefix(name, tensors_of(part)).items()
        }

    def input_settings(self) -> dict[str, Any]:
        """What becomes of captions and pictures before the denoiser sees them, except `beside`, as
        plain values."""
        size, module = self.encoding()
        schedule = {
            key: x for key, x in scheduler_config(self.model).items() if not key.startswith("_")
        }
        return {
            "size": size,
            "scale": module.scale,
            "scheduler": schedule,
            "tokenizer": tokenizer_settings(caption_tokenizer(self.model)),
        }

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """`noisy` and `told` (n, k, c, h, w), `time` (n, k), `caption`; k is 1 in training."""
        x, schedule = rows["latent"], read_schedule(self.model)
        times, shape = len(schedule.alphas), x.shape[1:]
        if generator is None:
            spread = (torch.arange(self.measured_at) + 0.5) / self.measured_at * times
            time = spread.long().expand(len(x), -1)
            fixed = [
                torch.randn(self.measured_at, *shape, generator=stream(0, "held out", int(k)))
                for k in rows["row"]
            ]
            noise = torch.stack(fixed)
        else:
            time = torch.randint(times, (len(x), 1), generator=generator)
            noise = torch.randn(len(x), 1, *shape, generator=generator)
        noisy, told = schedule(x[:, None], noise, time)
        return {"noisy": noisy, "told": told, "time": time, "caption": rows["caption"]}

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        """`prediction` (n · k, c, h, w), the times of one example after another."""
        caption = batch["caption"].repeat_interleave(batch["time"].shape[1], 0)
        with head_input(model, head) as seen:
            guess: Tensor = model(
                batch["noisy"].flatten(0, 1), batch["time"].flatten(), caption
            ).sample
        return {PREDICTION: guess, **seen}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        n, k = batch["time"].shape
        error = outputs[PREDICTION] - batch["told"].flatten(0, 1)
        return error.square().flatten(1).mean(1).view(n, k).mean(1)

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.losses(outputs, batch)}

    def chunks(self, batch: Batch) -> Iterator[Batch]:
        """Some examples at a time."""
        for at in range(0, len(batch["time"]), MEASURED):
            yield {name: x[at : at + MEASURED] for name, x in batch.items()}
