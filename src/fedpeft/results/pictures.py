"""What text-to-image models draw of captions, before their tuning and after, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
from torch import Tensor

from fedpeft.core.types import State
from fedpeft.errors import RunError
from fedpeft.evaluation.measure import with_params
from fedpeft.plan.plan import Plan
from fedpeft.registry import REGISTERED, Code
from fedpeft.rounds.site import threads
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.folder import reopen
from fedpeft.tasks.diffusion import squares
from fedpeft.tasks.drawing import Drawing, Drawn, prepare_drawing
from fedpeft.tasks.text_to_image import TextToImage

LEAST = 96
"""Pixels a side of a picture in a grid; smaller ones are enlarged."""
HEAD, MARGIN, LETTERS = 18, 4, 22


@dataclass(frozen=True)
class Grid:
    """Columns of pictures, uint8 (captions, 3, side, side), by what they are of."""

    captions: Sequence[str]
    columns: Mapping[str, Tensor]

    def png(self) -> bytes:
        """One row for each caption, which stands before it."""
        from PIL import Image, ImageDraw

        side = max(LEAST, next(iter(self.columns.values())).shape[-1])
        step, left = side + MARGIN, LETTERS * 6 + MARGIN
        sheet = Image.new(
            "RGB", (left + step * len(self.columns), HEAD + step * len(self.captions)), "white"
        )
        pen = ImageDraw.Draw(sheet)
        for row, caption in enumerate(self.captions):
            pen.multiline_text(
                (MARGIN, HEAD + step * row + MARGIN), _fold_case(caption), fill="black"
            )
        for column, (name, pictures) in enumerate(self.columns.items()):
            pen.text((left + step * column, MARGIN), name[-(side // 6) :], fill="black")
            for row, picture in enumerate(pictures):
                tile = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
                place = (left + step * column, HEAD + step * row)
                sheet.paste(tile.resize((side, side), Image.Resampling.NEAREST), place)
        held = BytesIO()
        sheet.save(held, "PNG", optimize=True)
        return held.getvalue()


def grid(
    runs: Sequence[Path],
    how: Drawing,
    number: int = 6,
    captions: Sequence[str] = (),
    code: Code = REGISTERED,
) -> Grid:
    """Pictures by the base model and by each run's last checkpoint, all from the same noise.

    Args:
      number: of held-out examples, evenly spread over them, whose own pictures stand first; where
        `captions` are given, these are drawn instead.
      code: which modules the runs' plans may name.

    Raises:
      RunError: a folder is no run with a checkpoint of a text-to-image model that all clients
        share, or the runs have different base models.
    """
    opened = [_open_run(run, code) for run in runs]
    (plan, task, _), columns = opened[0], dict[str, Tensor]()
    if other := next((one for _, one, _ in opened if one != task), None):
        raise RunError(
            f"the runs are of different models, {task} and {other}: draw a grid for each"
        )
    with threads(plan.compute.threads):
        drawn = prepare_drawing(task, how)
        if not captions:
            captions, columns["held out"] = pick_examples(plan, drawn, number)
        model: Any = plan.model(()).eval()
        columns["before"] = drawn(model, captions)
        for run, (each, _, state) in zip(runs, opened, strict=True):
            columns[run.name] = drawn(
                with_params(each, each.model(()).eval(), state.flat), captions
            )
    return Grid(captions, columns)


def pick_examples(plan: Plan, drawn: Drawn, number: int) -> tuple[list[str], Tensor]:
    """So many held-out captions and their pictures, evenly spread over the examples."""
    test = plan.data.load().test
    rows = torch.linspace(0, len(test) - 1, min(number, len(test))).long().tolist()
    pictures = squares([test.columns["image"][k] for k in rows], drawn.size)
    return [test.columns["text"][k] for k in rows], torch.cat(list(pictures))


def _open_run(run: Path, code: Code) -> tuple[Plan, TextToImage, State]:
    folder, plan = reopen(run, code)
    saved = load_checkpoint(folder.checkpoint, plan)
    if saved is None:
        raise RunError(f"{run} has no checkpoint yet: no round of it is done")
    if not isinstance(plan.task, TextToImage) or plan.personal:
        raise RunError(
            f"{run} is no run of a text-to-image model that all clients share: there is nothing to "
            "draw"
        )
    return plan, plan.task, saved.state


def _fold_case(caption: str) -> str:
    return "\n".join(wrap(caption, LETTERS)[: LEAST // 14])
