"""What processors make of pictures, as rows with the example as their first axis.

A processor of `transformers` gives per picture some rows: one of a picture (LLaVA), one for each of
its patches (Qwen-VL), or one that holds a stack of crops (Idefics3). A model wants those of all
examples one after another along the first axis, and where they differ along other axes, filled up
with zeros. So an example's rows lie in one tensor, with their number beside it where that differs.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedpeft.core.types import Batch, Tensors
from fedpeft.errors import PlanError
from fedpeft.tasks.token_rows import UNCOUNTED

PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a model is told of each token, by the names of `transformers`."""
LABELS = "labels"
SEEN, NUMBER = "picture/", "number/"
"""What the names of columns begin with that are of pictures, and that count their rows."""


def stack_examples(examples: Sequence[Tensors], padding: int) -> dict[str, Tensor]:
    """The columns of examples, filled up.

    Args:
      examples: what a processor gave for one example each, of the first axis 1 where it is of
        tokens; and `labels` (tokens,).
      padding: the token that fills `input_ids` up.

    Returns:
      The columns of `PER_TOKEN` that there are and `labels`, (n, tokens of the longest);
      `picture/<name>` (n, most rows, ...), and `number/<name>` (n,), how many rows an example has.
    """
    columns: dict[str, Tensor] = {}
    for name in examples[0]:
        each = [one[name] for one in examples]
        if name in PER_TOKEN:
            filling = padding if name == "input_ids" else 0
            made = _filled([x[0] for x in each], filling)
            columns[name] = made.bool() if name == "attention_mask" else made.int()
        elif name == LABELS:
            columns[name] = _filled(each, UNCOUNTED).int()
        else:
            columns[SEEN + name] = _small(_filled(each, 0))
            columns[NUMBER + name] = torch.tensor([len(x) for x in each])
    return columns


def crop_rows(rows: Tensors) -> dict[str, Tensor]:
    """Rows as long as the longest text of them; the numbers of a picture's rows are left out where
    all are alike.

    Of `labels` the last columns are left, from the token before the first counted one on, each of
    them moved to the token before it: by whose logits it is judged.
    """
    longest = int(rows["attention_mask"].sum(1).max())
    made = {name: rows[name][:, :longest].long() for name in PER_TOKEN if name in rows}
    told = pad(rows[LABELS][:, 1:longest], (0, 1), value=UNCOUNTED).long()
    counted = (told != UNCOUNTED).any(0).nonzero()
    made[LABELS] = told[:, int(counted[0]) if len(counted) else -1 :]
    for name, x in rows.items():
        if not name.startswith(SEEN):
            continue
        number = rows[NUMBER + name.removeprefix(SEEN)]
        most = int(number.max())
        made[name] = x[:, :most] if x.is_floating_point() else x[:, :most].long()
        # what differs is chosen by its values, which clients in a stack cannot be
        if bool((number != most).any()):
            made[NUMBER + name.removeprefix(SEEN)] = number
    return made


def some_rows(batch: Batch, at: int, number: int) -> Batch:
    """Some examples of a batch."""
    return {name: x[at : at + number] for name, x in batch.items()}


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """What a model takes: pictures' rows of one example after another."""
    given = {name: batch[name] for name in PER_TOKEN if name in batch}
    for key, x in batch.items():
        if key.startswith(SEEN):
            name = key.removeprefix(SEEN)
            given[name] = _flat(x, batch.get(NUMBER + name))
    return given


def check_columns(examples: Sequence[Mapping[str, object]], base: str) -> None:
    """Raises PlanError for inputs that are no tensors, or not the same ones for each example."""
    for one in examples:
        wrong = next((name for name, x in one.items() if not isinstance(x, Tensor)), None)
        if wrong is not None:
            raise PlanError(
                f"the processor of {base!r} gives {wrong!r}, which is no tensor: this task takes "
                "models whose inputs are tensors, such as LLaVA, Qwen-VL, Idefics and Gemma 3"
            )
        if other := sorted({*one} ^ {*examples[0]}):
            raise PlanError(
                f"the processor of {base!r} gives {other[0]!r} for some pictures alone: set its "
                "files so that all pictures are treated alike"
            )


def _flat(x: Tensor, number: Tensor | None) -> Tensor:
    if number is None:
        return x.flatten(0, 1)
    return x[torch.arange(x.shape[1], device=x.device) < number[:, None]]


def _filled(each: Sequence[Tensor], value: int) -> Tensor:
    """Tensors of one number of axes, each filled up at the ends of its axes, as one."""
    most = [max(sizes) for sizes in zip(*(x.shape for x in each), strict=True)]
    filled = each[0].new_full((len(each), *most), value)
    for row, x in enumerate(each):
        room = filled[row]
        for axis, size in enumerate(x.shape):
            room = room.narrow(axis, 0, size)
        room.copy_(x)
    return filled


def _small(x: Tensor) -> Tensor:
    """A mask of pixels as one byte each, where a processor has eight."""
    is_mask = not x.is_floating_point() and x.ndim > 3 and bool(((x == 0) | (x == 1)).all())
    return x.bool() if is_mask else x
