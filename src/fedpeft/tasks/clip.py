"""How well pictures fit their captions, by a CLIP model: CLIPScore (Hessel et al., 2021,
arXiv:2104.08718)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedpeft.errors import PlanError
from fedpeft.storage.hub import spare_lookups
from fedpeft.storage.locate import locate
from fedpeft.tasks.pretrained import NO_CODE, quiet

TOGETHER = 32
"""Pictures that go through the model at once."""


@dataclass(frozen=True)
class Clip:
    """2.5·max(cos(f(picture), g(caption)), 0), with a CLIP's encoders f and g.

    Captions stand as they are, without the paper's "A photo depicts": a generator is judged by what
    it was told. What does not fit into the text encoder is cut off.

    Attributes:
      name: the folder or hub name.
    """

    name: str
    model: Any
    processor: Any

    @torch.no_grad()
    def __call__(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """Scores (n,) of pictures, uint8 (n, 3, h, w)."""
        from PIL import Image

        images = [Image.fromarray(one.permute(1, 2, 0).contiguous().numpy()) for one in pictures]
        cosines = []
        for at in range(0, len(images), TOGETHER):
            part = slice(at, at + TOGETHER)
            words = {"padding": True, "truncation": True, "return_tensors": "pt"}
            told = self.model(
                **self.processor(text=list(captions[part]), images=images[part], **words)
            )
            cosines.append((told.image_embeds * told.text_embeds).sum(-1))  # both of length 1
        return 2.5 * torch.cat(cosines).clamp(min=0)


def clip(name: str) -> Clip:
    """The CLIP in a folder or on the hub, in float32; only safetensors are read.

    Raises:
      PlanError: there is none that can be read.
    """
    from transformers import CLIPModel, CLIPProcessor

    if (found := locate(name)) is None:
        spare_lookups()
    place = str(found or name)
    try:
        with quiet():
            settings = {"dtype": torch.float32, "use_safetensors": True}
            model: Any = CLIPModel.from_pretrained(place, **settings, **NO_CODE)
            return Clip(name, model.eval(), CLIPProcessor.from_pretrained(place, **NO_CODE))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise PlanError(
            f"{name!r} is no CLIP that can be read: a folder (looked for here, "
            "in $FEDPEFT_DATA and in the package) or a hub name with a CLIPModel in safetensors "
            f"and its processor, as transformers saves them: {first}"
        ) from None
