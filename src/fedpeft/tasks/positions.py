"""Let a vision transformer take pictures of another size: its position embeddings are resized as
`transformers` does it with `interpolate_pos_encoding`, once and not in each forward."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fedpeft.core.outputs import evaluation_mode
from fedpeft.core.seeds import seed_torch
from fedpeft.errors import PlanError
from fedpeft.tasks.pixels import ImageInput, sides

BY_PATCHES = "spatial_shapes"
"""What a model is told of pictures that come as rows of patches."""
MOST_SPECIAL = 16
"""Positions before those of the patches: of class, distillation and register tokens."""


def fit_size(model: nn.Module, see: ImageInput) -> None:
    """Make the model one for pictures of the size of `see`, in place.

    Models without such embeddings, those that interpolate by themselves (BEiT, DINOv2) and those
    of convolutions take any size as they are.

    Raises:
      PlanError: the model can take no other size than its own, or not this one.
    """
    check_sees_pictures(model)
    config: Any = model.config
    seen = getattr(config, "vision_config", config)  # CLIP's keys are a level deeper
    old, new = sides(getattr(seen, "image_size", None)), (see.height, see.width)
    if old is None or old == new or not (why := _refusal(model, see)):
        return
    changed = [_resize(module, old, new) for module in list(model.modules())]
    if any(changed):
        seen.image_size = new[0] if new[0] == new[1] else list(new)
        why = _refusal(model, see)
    if why:
        raise PlanError(
            f"{type(model).__name__} is one for pictures of {old[0]} by {old[1]} pixels, and does "
            f"not take {new[0]} by {new[1]}: {why}. Leave out task.size, or name a model whose "
            "positions can be interpolated (ViT, DeiT, BEiT, DINOv2, CLIP, SigLIP)"
        )


def check_sees_pictures(model: nn.Module) -> None:
    """Raises PlanError for a model that takes rows of patches instead of pictures of one size, as
    the NaFlex variant of SigLIP 2 does."""
    pictures = getattr(model, "get_image_features", model.forward)
    if BY_PATCHES in signature(pictures).parameters:
        raise PlanError(
            f"{type(model).__name__} takes patches of pictures of any shape, and this task gives "
            "pictures of one size: name the variant for one size, such as "
            "google/siglip2-base-patch16-224"
        )


def _resize(module: nn.Module, old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Resize the table of one module, if it has one: a parameter of shape (1, positions, d), as
    ViT and DeiT have it, or an embedding, as CLIP and SigLIP have it."""
    patches = getattr(module, "patch_embeddings", getattr(module, "patch_embedding", None))
    table = getattr(module, "position_embeddings", None)
    if patches is None:
        return False
    if isinstance(table, nn.Parameter) and table.ndim == 3:
        patch = _patch(patches.patch_size)
        grid = _interpolated(table.data, old, new, patch)
        module.position_embeddings = nn.Parameter(grid)
        module.image_size = patches.image_size = new  # type: ignore[assignment]
        patches.num_patches = (new[0] // patch[0]) * (new[1] // patch[1])
        return True
    rows = getattr(module, "position_embedding", None)
    if not isinstance(rows, nn.Embedding):
        return False
    if new[0] != new[1]:
        raise PlanError(
            f"{type(module).__name__} takes squares alone, and {new[0]} by {new[1]} pixels are no "
            "square: set size to a number of pixels a side"
        )
    grid = _interpolated(rows.weight.data[None], old, new, _patch(module.patch_size))[0]
    table_of = nn.Embedding(len(grid), grid.shape[1], device="meta")  # so that nothing is drawn
    table_of.weight = nn.Parameter(grid)
    module.position_embedding = table_of
    ids = torch.arange(len(grid), device=grid.device)[None]
    module.register_buffer("position_ids", ids, persistent=False)
    module.image_size = new[0]  # type: ignore[assignment]
    module.num_positions = len(grid)  # type: ignore[assignment]
    module.num_patches = (new[0] // _patch(module.patch_size)[0]) ** 2  # type: ignore[assignment]
    return True


def _patch(size: Any) -> tuple[int, int]:
    return sides(size) or (1, 1)


def _interpolated(
    table: Tensor, old: tuple[int, int], new: tuple[int, int], patch: tuple[int, int]
) -> Tensor:
    """A table of shape (1, positions, d), whose last positions are those of patches, row by row."""
    if new[0] % patch[0] or new[1] % patch[1]:
        what = f"size = {new[0]}" if new[0] == new[1] else f"{new[0]} by {new[1]} pixels"
        raise PlanError(
            f"{what} is no multiple of the model's patch of {patch[0]} pixels: set size to one"
        )
    rows, columns = old[0] // patch[0], old[1] // patch[1]
    to = new[0] // patch[0], new[1] // patch[1]
    special = table.shape[1] - rows * columns
    if not 0 <= special <= MOST_SPECIAL:
        return table  # its positions are not those of patches side by side, as Hiera's
    grid = table[:, special:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    grid = interpolate(grid, to, mode="bicubic", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).reshape(1, to[0] * to[1], -1)
    return torch.cat([table[:, :special], grid], 1)


def _refusal(model: nn.Module, see: ImageInput) -> str:
    """What a model says of a black picture of this size; "" where it takes it."""
    first = next(model.parameters())
    black = torch.zeros(1, see.channels, see.height, see.width, device=first.device)
    try:
        with torch.no_grad(), evaluation_mode(model), seed_torch(0):
            model(pixel_values=black)
    except (RuntimeError, ValueError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    return ""
