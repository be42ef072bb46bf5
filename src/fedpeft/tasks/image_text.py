"""Pictures and captions in one space: models of two towers, as CLIP and SigLIP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import PREDICTION, Outputs
from fedpeft.core.types import Batch, Summed, Table, Tensors, Weighted
from fedpeft.errors import DataError, unknown
from fedpeft.tasks import contrast
from fedpeft.tasks.caption_rows import has_caption, has_picture, read_pixels, sides_of
from fedpeft.tasks.loader import TOKENIZER, Loader
from fedpeft.tasks.pixels import ImageInput, image_input
from fedpeft.tasks.positions import check_sees_pictures
from fedpeft.tasks.pretrained import config_of, two_tower_model
from fedpeft.tasks.text_classification import (
    TOKENS,
    check_length,
    padding_token,
    read_tokens,
    resolve_name,
    shortened,
    tokenizer,
)
from fedpeft.tasks.vocabulary import check_tokens

TASK = "image-text"
LEAVE_OUT, BY_LABEL = "leave_out", "label"
LOGARITHM_MOST = 4.6052
"""Of the softmax's scale, which CLIP clips at 100."""


@dataclass(frozen=True)
class ImageText:
    """A picture is told from those of the batch that other captions belong to, and a caption from
    the other captions. The loss is InfoNCE with the model's own temperature, as CLIP's; or the
    sigmoid loss where the model has a `logit_bias`, as SigLIP.

    So a pair's loss depends on its batch, which rules out DP-SGD; larger batches are harder, and a
    batch of one pair teaches nothing. Captions with the same tokens are no counterexamples of each
    other.

    An example may have one side alone, where its owner has no more. With one_sided = "label" its
    tower learns from it by its label: examples with one side and one label come to lie together.

    Measured, over all held-out pairs of one owner at once, are the loss, `recall` at 1 and 5 in
    both directions, and `chance`, which is what recall at 1 would be by chance. A search among more
    pairs is harder, so that recalls of owners with unequal numbers do not compare.

    Attributes:
      model: a folder or a hub name of a model of two towers.
      caption: the column of captions.
      max_length: tokens a caption is cut to; SigLIP's captions are filled up to as many.
      one_sided: "leave_out" for examples without a picture or a caption, which are counted and
        told, or "label". An example with neither is always left out.

    Raises:
      ValueError: a value out of range.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", *contrast.RECALLS, "chance")
    couples_examples: ClassVar[bool] = True
    compares_examples: ClassVar[bool] = True
    offers: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_LOGITS})
    model: str
    caption: str = "text"
    max_length: int = 64
    one_sided: str = LEAVE_OUT

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length is a number of tokens, at least 1, got {self.max_length}")
        if self.one_sided not in (LEAVE_OUT, BY_LABEL):
            raise ValueError(unknown("one_sided", self.one_sided, (LEAVE_OUT, BY_LABEL)))

    @property
    def base(self) -> str:
        """The folder, or the hub name, that `transformers` loads."""
        return resolve_name(self.model)

    @property
    def input(self) -> ImageInput:
        """What the picture tower sees."""
        return image_input(self.base)

    @property
    def fixed_length(self) -> bool:
        """Whether captions are filled up to the model's length, and the filling is read, as SigLIP
        does."""
        return str(config_of(self.base).model_type).startswith("siglip")

    @property
    def loader(self) -> Loader:
        """How `transformers` loads the models."""
        filled = '"max_length"' if self.fixed_length else "True"
        usage = (
            "from transformers import AutoImageProcessor",
            "processor = AutoImageProcessor.from_pretrained(folder)",
            f"read = dict(padding={filled}, truncation=True)",
            'words = tokenizer(texts, return_tensors="pt", **read)',
            'seen = processor(images=pictures, return_tensors="pt")  # a list of PIL pictures',
            "scores = model(**words, **seen).logits_per_image  # (pictures, texts)",
        )
        return Loader(
            "AutoModel",
            TOKENIZER,
            "zero-shot-image-classification",
            classifies=False,
            usage=usage,
            unit="pairs",
        )

    def build(self, classes: Sequence[str], pretrained: bool = True) -> nn.Module:
        """The classes of the data, if they have some, are no matter of the model's."""
        model = two_tower_model(self.base, pretrained)
        check_sees_pictures(model)
        return model

    def unfit(self, table: Table) -> Mapping[str, Sequence[int]]:
        """The examples without a picture, a caption or both, as `one_sided` says.

        Raises:
          DataError: there is no such column.
        """
        if not len(table):
            return {}
        seen, told = self._sides(table)
        found = {"rows with neither a picture nor a caption": ~seen & ~told}
        if self.one_sided == LEAVE_OUT:
            found |= {
                "rows without a picture": ~seen & told,
                "rows without a caption": seen & ~told,
            }
        return {why: rows.nonzero()[:, 0].tolist() for why, rows in found.items() if rows.any()}

    def prepare(self, table: Table) -> Tensors:
        """`image`, uint8 (n, channels, height, width), `input_ids` (int32) and `attention_mask`
        (n, tokens), `has_image` and `has_text` (n,), and `label` if any.

        Raises:
          DataError: a column is not there, a picture cannot be read, or an example with one side
            has no label.
          PlanError: the model does not take so many tokens.
        """
        seen, told = self._sides(table)
        if table.labels is None and not (seen & told).all():
            raise DataError(
                f"{TASK}: {int((~(seen & told)).sum())} of {len(seen)} examples have a picture or "
                f'a caption alone, and with one_sided = "{BY_LABEL}" these are learned by their '
                f'labels, of which there are none: set data.label, or one_sided = "{LEAVE_OUT}"'
            )
        tokens = self._tokens(table, told)
        ids, counted = tokens["input_ids"][told], tokens["attention_mask"][told]
        check_tokens(self.model, self.base, tokenizer(self.base), ids, counted)
        made = {
            "image": read_pixels(table, seen, self.input),
            **tokens,
            "has_image": seen,
            "has_text": told,
        }
        return made if table.labels is None else {**made, "label": table.labels}

    def _sides(self, table: Table) -> tuple[Tensor, Tensor]:
        if self.one_sided == LEAVE_OUT:
            return sides_of(table, self.caption, TASK)
        return has_picture(table), has_caption(table, self.caption)

    def _tokens(self, table: Table, told: Tensor) -> dict[str, Tensor]:
        check_length(self.model, self.base, self.max_length)
        words = table.columns.get(self.caption, [""] * len(told))
        texts = [str(words[k]) if has else "" for k, has in enumerate(told.tolist())]
        read = read_tokens(self.base, self.max_length, texts)
        if not self.fixed_length:
            return read
        more = (0, self.max_length - read["input_ids"].shape[1])
        ids = pad(read["input_ids"], more, value=padding_token(self.base))
        return {"input_ids": ids, "attention_mask": pad(read["attention_mask"], more)}

    def batch(self, rows: Tensors, generator: torch.Generator | None) -> Batch:
        """A batch without any picture, or any caption, has none of that side's columns: no pass
        through that tower is made."""
        made = {name: rows[name] for name in ("has_image", "has_text", "label") if name in rows}
        if rows["has_image"].any():
            made["pixel_values"] = self.input.normalised(rows["image"].float() / 255)
        if rows["has_text"].any():
            whole = {name: rows[name].long() for name in TOKENS if name in rows}
            made |= whole if self.fixed_length else shortened(rows)
        return made

    def example(self) -> Batch:
        """Two pairs of a black picture and a word or two."""
        see = self.input
        both = torch.ones(2, dtype=torch.bool)
        black = torch.zeros(2, see.channels, see.height, see.width, dtype=torch.uint8)
        tokens = self._tokens(Table({self.caption: ["a", "b"]}), both)
        return self.batch({"image": black, **tokens, "has_image": both, "has_text": both}, None)

    def forward(self, model: nn.Module, batch: Batch, head: str | None = None) -> Outputs:
        """`prediction` (batch, 2, features): the embeddings of pictures and captions, of length 1;
        zeros for a side that is not there. `scale`, the logarithm, and `bias`, (batch,)."""
        towers: Any = model
        n, device = len(batch["has_image"]), batch["has_image"].device
        sides: list[Tensor | None] = [None, None]
        if "pixel_values" in batch:
            sides[0] = _pooled(towers.get_image_features(pixel_values=batch["pixel_values"]))
        if "input_ids" in batch:
            names = ("input_ids",) if self.fixed_length else ("input_ids", "attention_mask")
            sides[1] = _pooled(towers.get_text_features(**{one: batch[one] for one in names}))
        like = next(x for x in sides if x is not None)
        vectors = [like.new_zeros(like.shape) if x is None else normalize(x, dim=-1) for x in sides]
        has = torch.stack([batch["has_image"], batch["has_text"]], 1)
        found = {
            PREDICTION: torch.stack(vectors, 1) * has[..., None],
            "scale": towers.logit_scale.reshape(1).expand(n).to(device),
        }
        bias = getattr(towers, "logit_bias", None)
        return found if bias is None else {**found, "bias": bias.reshape(1).expand(n).to(device)}

    def losses(self, outputs: Outputs, batch: Batch) -> Tensor:
        pairs, seen, told = _kinds(batch)
        scores, equal = _scores(outputs), _equal(batch)
        contrasted = contrast.sigmoid_losses if "bias" in outputs else contrast.softmax_losses
        losses = contrasted(scores, pairs, equal)
        if self.one_sided == LEAVE_OUT or "label" not in batch:
            return losses
        vectors, scale = outputs[PREDICTION].float(), _scale(outputs)
        for side, alone in enumerate((seen & ~pairs, told & ~pairs)):
            losses = losses + contrast.label_losses(vectors[:, side], batch["label"], alone, scale)
        return losses

    def metrics(self, outputs: Outputs, batch: Batch) -> Mapping[str, Tensor | Summed]:
        """See `compares_examples`: of all examples that are given."""
        pairs = _kinds(batch)[0]
        found = contrast.search_recalls(_scores(outputs), pairs, _equal(batch))
        return {"loss": self.losses(outputs, batch), **found}

    def check_sums(self, sums: Mapping[str, Weighted], examples: int) -> None:
        """Raises ValueError for more right ones than pairs, or more pairs than examples."""
        for name in (*contrast.RECALLS, "chance"):
            one = sums.get(name, Weighted(0.0, 0.0))
            if not 0 <= one.total <= one.weight <= examples:
                raise ValueError(
                    f"its {name} counts {one.total:g} found of {one.weight:g} pairs, and there are "
                    f"{examples:,} examples"
                )


def _pooled(features: Any) -> Tensor:
    """What a tower gives of each example; older versions of `transformers` give it alone."""
    found: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return found


def _kinds(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows are pairs, and which have a picture and a caption; none of what fills up."""
    seen, told = batch["has_image"], batch["has_text"]
    if "mask" in batch:
        seen, told = seen & (batch["mask"] > 0), told & (batch["mask"] > 0)
    return seen & told, seen, told


def _scale(outputs: Outputs) -> Tensor:
    told = outputs["scale"].float()
    return told.exp() if "bias" in outputs else told.clamp(max=LOGARITHM_MOST).exp()


def _scores(outputs: Outputs) -> Tensor:
    """s·cos of each picture with each caption, and the bias, (batch, batch)."""
    pictures, captions = outputs[PREDICTION].float().unbind(1)
    scores = _scale(outputs)[:, None] * (pictures @ captions.T)
    return scores + outputs["bias"].float()[:, None] if "bias" in outputs else scores


def _equal(batch: Batch) -> Tensor:
    if "input_ids" in batch:
        return contrast.equal_rows(batch["input_ids"])
    return torch.eye(len(batch["has_image"]), dtype=torch.bool, device=batch["has_image"].device)
