"""Drawing pictures with a diffusion model by DDIM (Song et al., 2021, arXiv:2010.02502), the same
ones each time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.seeds import generator
from fedpeft.tasks.diffusion import PictureAutoencoder, library, read_captions, scheduler_config
from fedpeft.tasks.taef2 import Taef2
from fedpeft.tasks.text_to_image import TextToImage


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn.

    Attributes:
      steps: of the sampler.
      guidance: w of f(∅) + w·(f(caption) − f(∅)), arXiv:2207.12598; 1 for the caption alone.
      seed: of the noise that the pictures begin as; the k-th caption has noise of its own.
    """

    steps: int = 25
    guidance: float = 3.0
    seed: int = 0


@dataclass(frozen=True)
class Drawn:
    """Draws with one denoiser or another of a task."""

    task: TextToImage
    how: Drawing
    size: int
    autoencoder: PictureAutoencoder | Taef2

    @torch.no_grad()
    def __call__(self, model: Any, captions: Sequence[str]) -> Tensor:
        """Pictures, uint8 (captions, 3, size, size), drawn where the model is."""
        told = read_captions(self.task.model, [*captions, *[""] * len(captions)]).to(model.device)
        scheduler: Any = library().DDIMScheduler.from_config(scheduler_config(self.task.model))
        scheduler.set_timesteps(self.how.steps)
        side = self.size // self.autoencoder.factor
        noise = [
            torch.randn(
                self.autoencoder.channels,
                side,
                side,
                generator=generator(self.how.seed, "picture", k),
            )
            for k in range(len(captions))
        ]
        x = torch.stack(noise).to(model.device) * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            with_caption, without = model(torch.cat([x, x]), time, told).sample.chunk(2)
            x = scheduler.step(
                without + self.how.guidance * (with_caption - without), time, x
            ).prev_sample
        return (self.autoencoder.decode(x.cpu()) * 255).round().to(torch.uint8)


def prepare_drawing(task: TextToImage, how: Drawing) -> Drawn:
    """What draws for this task, ready.

    Raises:
      PlanError: see `TextToImage.encoding`.
    """
    return Drawn(task, how, *task.encoding())
