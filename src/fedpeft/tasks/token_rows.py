"""Examples of tokens as the rows of a table."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

UNCOUNTED = -100
"""The label of a token that no loss counts, as `transformers` has it."""


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
