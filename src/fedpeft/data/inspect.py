"""What was read of someone's data, before anything is trained: numbers only, so that an owner may
send them to the server. Of the data themselves there are the names of classes and columns, and no
name of a file, no text and no other value."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.types import Examples, Table
from fedpeft.data.client_data import Partitioned, lengths
from fedpeft.data.pictures import Pictures
from fedpeft.data.recordings import Clips
from fedpeft.errors import DataError, say_count

PASSED = (Tensor, Pictures, Clips)
"""Columns whose values are not counted."""
KNOWN = ("label", "image", "video", "text", "file")
"""Columns that are inputs or labels."""
NONE_HERE = "   none here: another owner must have some"
CLASSES = 12
"""So many classes get a line; of more, the smallest do."""


@dataclass(frozen=True)
class Report:
    """Attributes:
    train, test: examples to train on, and held out.
    classes: by name how many of each.
    left_out: by reason how much of what lies there is left out.
    pictures, texts, columns: lines that describe them; empty where there are none.
    unreadable: pictures that cannot be read.
    """

    train: int
    test: int
    classes: Mapping[str, tuple[int, int]]
    left_out: Mapping[str, int]
    pictures: Sequence[str] = ()
    texts: Sequence[str] = ()
    columns: Sequence[str] = ()
    unreadable: int = 0

    @property
    def lines(self) -> list[str]:
        """One screen of text."""
        lines = [_sizes(self.train, self.test)]
        if self.classes:
            lines += ["", *_class_lines(self.classes)]
        for title, rows in (
            ("pictures", self.pictures),
            ("texts", self.texts),
            ("other columns", self.columns),
            ("left out", [say_count(count, what) for what, count in self.left_out.items()]),
        ):
            lines += ["", title, *(f"  {row}" for row in rows)] if rows else []
        return lines


def _sizes(train: int, test: int) -> str:
    """How many examples there are. Without a test split nothing is said to be trained on: a plan
    may set a share of them apart afterwards."""
    if not test:
        return f"{say_count(train, 'examples')}; the data have no test split of their own"
    held = "1 is held out" if test == 1 else f"{test:,} are held out"
    return f"{say_count(train, 'examples')} to train on; {held}"


def inspect(examples: Examples, most: int = 0, pixels: float = inf, text_pair: str = "") -> Report:
    """Look at all examples once; pictures are decoded.

    Args:
      text_pair: the column of the second text, where an example is a pair of texts.
      most: decode at most so many pictures of each side, evenly over their order; 0 for all.
      pixels: decode no further picture of a side after so many pixels of it.

    Raises:
      DataError: no picture can be read.
    """
    sides = (examples.train, examples.test)
    counts = [_counts(side.labels, len(examples.classes)) for side in sides]
    pictures = [side.columns["image"] for side in sides if "image" in side.columns]
    seen = _look_at(pictures, most, pixels)
    return Report(
        len(examples.train),
        len(examples.test),
        dict(zip(examples.classes, zip(*counts, strict=True), strict=True)),
        examples.left_out,
        list(_of_pictures(seen)) if pictures else (),
        list(_of_texts(_texts(sides, ["text", text_pair] if text_pair else ["text"]))),
        list(_of_columns(sides[0].columns, text_pair)),
        seen.bad,
    )


def _counts(label: Tensor | None, classes: int) -> list[int]:
    if label is None:
        return [0] * classes
    counts: list[int] = torch.bincount(label, minlength=classes).tolist()
    return counts


def _class_lines(classes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    shown = sorted(classes, key=lambda name: classes[name][0])[:CLASSES]
    names = [name for name in classes if name in shown]
    which = f", of which these are the {CLASSES} smallest" if len(classes) > CLASSES else ""
    width = max(len("class"), *map(len, names))
    yield f"{say_count(len(classes), 'classes')}{which}"
    yield f"  {'class':<{width}}  {'train':>9}  {'held out':>9}"
    for name in names:
        train, test = classes[name]
        yield f"  {name:<{width}}  {train:>9,}  {test:>9,}{'' if train else NONE_HERE}"


@dataclass
class Seen:
    """What was found in pictures that were decoded.

    Attributes:
      whole: how many pictures there are.
      sizes: width and height, by how often they come; `modes` likewise.
      least, most: of each picture its smallest and its largest value.
      bad: how many cannot be read.
    """

    whole: int
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    least: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)
    bad: int = 0


def _look_at(sides: Sequence[Any], most: int, pixels: float) -> Seen:
    """Decode pictures, at most so many of each side; 0 for all."""
    seen = Seen(sum(map(len, sides)))
    for side in sides:
        step = -(-len(side) // most) if most else 1
        left = pixels
        for at in _places(range(0, len(side), max(1, step)), pixels):
            if left <= 0:
                break
            try:
                picture = side.upright(at) if isinstance(side, Pictures) else side[at]
            except DataError:
                seen.bad += 1
                continue
            left -= _note_picture(seen, picture)
    return seen


def _places(every: Sequence[int], pixels: float) -> Sequence[int]:
    """In which order to look: in no order where an end may come before the last, so that those
    before it are of the whole side."""
    if pixels == inf:
        return every
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    return [every[k] for k in order.tolist()]


def _note_picture(seen: Seen, picture: Any) -> int:
    """Add a picture to what was found; the number of its pixels."""
    import numpy as np

    values, size, mode = _values(picture, np)
    seen.sizes[size] += 1
    seen.modes[mode] += 1
    finite = values[np.isfinite(values)]
    seen.least.append(float(finite.min()) if finite.size else float("nan"))
    seen.most.append(float(finite.max()) if finite.size else float("nan"))
    return size[0] * size[1]


def _of_pictures(seen: Seen) -> Iterator[str]:
    import numpy as np

    if not seen.sizes:
        raise DataError(f"none of {seen.bad} pictures can be read")
    (width, height), often = seen.sizes.most_common(1)[0]
    small, large = min(seen.sizes), max(seen.sizes)
    total = seen.sizes.total()
    looked = total + seen.bad
    part = "" if looked == seen.whole else f"{looked:,} of {seen.whole:,} were looked at: "
    yield f"{part}{total:,} can be read, {seen.bad:,} cannot"
    yield (
        f"sizes: {often:,} of {width}x{height}; the narrowest {small[0]}x{small[1]}, the widest "
        f"{large[0]}x{large[1]}"
    )
    yield "kinds: " + ", ".join(f"{count:,} {mode}" for mode, count in seen.modes.most_common())
    yield (
        f"values: from {np.nanmin(seen.least):g} to {np.nanmax(seen.most):g}; half of the pictures "
        f"reach {np.nanmedian(seen.most):g}"
    )


def _values(picture: Any, np: Any) -> tuple[Any, tuple[int, int], str]:
    """The values of a picture, its width and height, and its kind."""
    if isinstance(picture, Tensor):
        height, width = picture.shape[-2:]
        channels = picture.shape[0]
        kind = "with 1 channel" if channels == 1 else f"with {channels} channels"
        return picture.numpy(), (width, height), kind
    return np.asarray(picture), picture.size, picture.mode


def _texts(sides: Sequence[Table], names: Sequence[str]) -> dict[str, list[str]]:
    """The columns of texts of both sides; none where a column is no texts."""
    found = {
        name: [text for side in sides for text in side.columns.get(name, ())] for name in names
    }
    whole = all(texts and isinstance(texts[0], str) for texts in found.values())
    return found if whole else {}


def _of_texts(columns: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Lines about texts, or about pairs of texts, which are repeated where both texts are."""
    for name, texts in columns.items():
        before = f"{name}: " if len(columns) > 1 else ""
        for what, sizes in (
            ("characters", [len(text) for text in texts]),
            ("words", [len(text.split()) for text in texts]),
        ):
            yield (
                f"{before}{what}: {min(sizes):,} at least, {median(sizes):,g} in the middle, "
                f"{max(sizes):,} at most"
            )
    examples = list(zip(*columns.values(), strict=True))
    if examples:
        blank = sum(any(not text.strip() for text in texts) for texts in examples)
        again = len(examples) - len(set(examples))
        lack = "pairs have a blank text" if len(columns) > 1 else "are blank"
        yield f"{blank:,} {lack}, and {again:,} are there before already"


def _of_columns(columns: Mapping[str, Any], text_pair: str) -> Iterator[str]:
    """Columns that are neither inputs nor labels, and how many values they have: natural clients
    are found so."""
    for name, values in columns.items():
        if name in {*KNOWN, text_pair} or isinstance(values, PASSED):
            continue
        known = [value for value in values if value is not None]
        gaps = f", {len(values) - len(known):,} missing" if len(known) < len(values) else ""
        yield f"{name}: {len(set(map(str, known))):,} different values{gaps}"


def second_text(task: Any) -> str:
    """The column of the second text of a task on pairs of texts; "" for all others."""
    return str(getattr(task, "text_pair", ""))


def describe_full_texts(task: Any, data: Any) -> str:
    """How many texts are as long as the task lets them be, so that their ends may be cut off;
    empty where there are no texts, or nobody's training examples."""
    limit = getattr(task, "max_length", None)
    if limit is None or not isinstance(data, Partitioned) or "attention_mask" not in data.train:
        return ""
    tokens = lengths(data.train)
    full = int((tokens >= limit).sum())
    return (
        f"{full:,} of {len(tokens):,} texts fill all {limit} tokens, so that ends are cut off; "
        f"the middle one has {int(tokens.median())}"
    )
