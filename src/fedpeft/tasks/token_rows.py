"""Examples of tokens as rows of a table, and packed: several in one row, each of which sees itself
alone.

A batch of examples of different lengths is mostly padding. Packed, its examples lie one after
another in rows as long as the longest, first those that are longest; attention is block-diagonal,
and each example counts its positions from 0. So each has the loss that it has alone, except for
rounding.

A packed batch has (rows, tokens) tensors: `input_ids`, `position_ids`, `labels`, and `segment`,
which is the number of the token's example in its batch, -1 for padding; and `tokens` (batch,), the
length of each example.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedpeft.core.facts import Fact
from fedpeft.core.outputs import evaluation_mode
from fedpeft.core.seeds import seed_torch
from fedpeft.core.types import Batch, Tensors
from fedpeft.errors import PlanError
from fedpeft.tasks.text_classification import tokenizer
from fedpeft.tasks.vocabulary import check_tokens

UNCOUNTED = -100
"""The label of a token that no loss counts, as `transformers` has it."""
PACKS = frozenset({Fact.PACKED})
"""What a task offers that packs."""
SEGMENT, TOKENS = "segment", "tokens"
"""The columns that a packed batch has, and no other."""


def check_rows(model: str, base: str, ids: Tensor, seen: Tensor) -> None:
    """Raises what `check_tokens` does, for rows of the tokenizer of `base`: (texts, tokens)."""
    check_tokens(model, base, tokenizer(base), ids, seen)


def token_rows(
    ids: Sequence[Sequence[int]], counted: Sequence[Sequence[bool]], padding: int
) -> dict[str, Tensor]:
    """`input_ids` and `labels` (int32) and `attention_mask` (bool), all (n, tokens of the longest).

    Args:
      ids: the tokens of each example; of one without any there is one token of padding.
      counted: of each token whether a loss counts it; its label is then itself, else `UNCOUNTED`.
      padding: the token that fills rows up.
    """
    rows = [torch.tensor(list(one) or [padding], dtype=torch.int32) for one in ids]
    marks = [torch.tensor(list(one) or [False], dtype=torch.bool) for one in counted]
    made = pad_sequence(rows, batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    told = pad_sequence(marks, batch_first=True, padding_value=False)
    return {
        "input_ids": made,
        "attention_mask": torch.arange(made.shape[1]) < lengths,
        "labels": made.masked_fill(~told, UNCOUNTED),
    }


def pack_rows(rows: Tensors, room: int) -> Batch:
    """The rows of a batch, `input_ids`, `attention_mask` and `labels` (batch, tokens), packed.

    Args:
      room: the most tokens of a row; at least the longest example's.
    """
    lengths = rows["attention_mask"].sum(1).tolist()
    places = _places(lengths, room)
    width = max(begin + length for (_, begin), length in zip(places, lengths, strict=True))
    shape = (max(row for row, _ in places) + 1, width)
    packed = {
        "input_ids": torch.full(shape, int(rows["input_ids"][0, 0])),
        "position_ids": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, UNCOUNTED),
        SEGMENT: torch.full(shape, -1),
    }
    for number, ((row, begin), length) in enumerate(zip(places, lengths, strict=True)):
        here = (row, slice(begin, begin + length))
        packed["input_ids"][here] = rows["input_ids"][number, :length].long()
        packed["position_ids"][here] = torch.arange(length)
        packed["labels"][here] = rows["labels"][number, :length].long()
        # nothing tells the first token of an example: what stands before it is another's
        packed["labels"][row, begin] = UNCOUNTED
        packed[SEGMENT][here] = number
    return {**packed, TOKENS: torch.tensor(lengths)}


def sum_by_example(each: Tensor, batch: Batch) -> Tensor:
    """The sum over each example's tokens, (batch,), of values (rows, tokens) of a packed batch."""
    where = batch[SEGMENT].clamp_min(0).flatten()
    sums = torch.zeros(len(batch[TOKENS]), dtype=each.dtype, device=each.device)
    return sums.index_add(0, where, each.masked_fill(batch[SEGMENT] < 0, 0).flatten())


def _places(lengths: list[int], room: int) -> list[tuple[int, int]]:
    """Of each example its row and where it begins there: the longest first, each into the first row
    that has room for it."""
    used: list[int] = []
    places = [(0, 0)] * len(lengths)
    for number in sorted(range(len(lengths)), key=lambda k: (-lengths[k], k)):
        length = lengths[number]
        fitting = [row for row, taken in enumerate(used) if taken + length <= room]
        row = fitting[0] if fitting else len(used)
        if not fitting:
            used.append(0)
        places[number] = (row, used[row])
        used[row] += length
    return places


def block_diagonal(model: nn.Module, segment: Tensor) -> Tensor:
    """What each token sees, (rows, 1, tokens, tokens): the tokens of its own example up to itself;
    padding sees itself."""
    tokens = segment.shape[1]
    same = segment[:, :, None] == segment[:, None, :]
    seen = (same & torch.ones(tokens, tokens, dtype=torch.bool, device=segment.device).tril())[
        :, None
    ]
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", "") != "eager":
        return seen
    # this one adds the mask to what it masks
    dtype = next(x.dtype for x in model.parameters() if x.is_floating_point())
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(
        ~seen, torch.finfo(dtype).min
    )


def check_packing(name: str, model: nn.Module, max_length: int) -> None:
    """Make sure that two examples in one row have the logits that each has alone.

    Raises:
      PlanError: they do not, or the model's layers see fewer tokens than a row has.
    """
    hint = f"packing: the model {name!r} {{}}: leave out task.packing"
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < max_length:
        seen = f"has layers that see {window} tokens, fewer than max_length = {max_length}"
        raise PlanError(hint.format(seen))
    one, other = [1, 2, 3], [2, 1, 0, 1]
    segment = torch.tensor([[0] * len(one) + [1] * len(other)])
    places = torch.tensor([[*range(len(one)), *range(len(other))]])
    try:
        with torch.no_grad(), evaluation_mode(model), seed_torch(0):
            alone = [model(input_ids=torch.tensor([ids])).logits for ids in (one, other)]
            packed = model(
                input_ids=torch.tensor([[*one, *other]]),
                attention_mask=block_diagonal(model, segment),
                position_ids=places,
            ).logits
    except Exception as error:  # whatever a model raises that takes no such arguments
        words = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise PlanError(hint.format(f"takes no examples in one row ({words})")) from None
    if not torch.allclose(packed, torch.cat(alone, 1), rtol=1e-3, atol=1e-4):
        raise PlanError(hint.format("mixes the examples of a row"))
